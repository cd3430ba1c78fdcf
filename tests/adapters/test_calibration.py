"""Calibration statistics against a plain per-pair computation."""

import pytest
import torch
from adapters_support import attach, pair_batch, tiny_model, token_ids

from vgrout_pl.adapters import (
    Calibration,
    RoutedLoraConfig,
    attach_routed_adapter,
    blocks,
    check_adapter_fits,
    collect_calibration,
)

CONFIG = RoutedLoraConfig(r=2, init="scorda")


def sequences(seed, lengths=(7, 5, 9, 6)):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 61, (n,), generator=draw) for n in lengths]


def padded(rows, starts, side="right"):
    width = max(map(len, rows))
    batch = {
        k: torch.zeros(len(rows), width, dtype=torch.long) for k in ("input_ids", "attention_mask", "completion_mask")
    }
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        batch["input_ids"][i, place] = row
        batch["attention_mask"][i, place] = 1
        batch["completion_mask"][i, place] = (torch.arange(len(row)) >= start).long()
    return batch


def one_by_one(model, rows, starts, name):
    means = []
    module = model.get_submodule(name)
    for row, start in zip(rows, starts, strict=True):
        seen = []
        handle = module.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0][0].float()))
        with torch.no_grad():
            model(input_ids=row[None])
        handle.remove()
        means.append(seen[0][start:].mean(0))
    return torch.stack(means)


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma", "gpt_neox"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_differences_equal_those_of_the_pairs_taken_one_by_one(architecture, side):
    model = tiny_model(architecture)
    hack, clean = sequences(1), sequences(2, (4, 8, 6, 5))
    hack_starts, clean_starts = (3, 2, 4, 5), (2, 3, 1, 4)
    calibration = collect_calibration(
        model,
        [padded(hack[:3], hack_starts[:3], side), padded(hack[3:], hack_starts[3:], side)],
        [padded(clean[:1], clean_starts[:1], side), padded(clean[1:], clean_starts[1:], side)],
        CONFIG,
    )
    names = check_adapter_fits(model, CONFIG)
    assert list(calibration.deltas) == names
    for name in names:
        expected = one_by_one(model, hack, hack_starts, name) - one_by_one(model, clean, clean_starts, name)
        torch.testing.assert_close(calibration.deltas[name], expected, rtol=1e-4, atol=1e-5)


def test_the_model_keeps_its_mode_its_hooks_and_its_gradient_free_state():
    model = tiny_model().train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    calibration = collect_calibration(model, [pair_batch(1)], [pair_batch(2)], CONFIG)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(delta.requires_grad for delta in calibration.deltas.values())
    with pytest.raises(ValueError, match="missing"):
        collect_calibration(model, [{"input_ids": token_ids()}], [pair_batch(2)], CONFIG)
    assert [module.training for module in model.modules()] == modes


def test_a_planted_difference_comes_out_as_the_seed_of_the_quarantine():
    model = tiny_model()
    calibration = collect_calibration(model, [pair_batch(1)], [pair_batch(2)], CONFIG)
    name = "model.layers.1.mlp.up_proj"
    axis = torch.zeros(32)
    axis[5] = -1.0
    planted = {**calibration.deltas, name: 3.0 * axis.repeat(6, 1)}
    routed = attach_routed_adapter(model, CONFIG, Calibration(planted))
    rows = {b.block: b.A0 for b in blocks(routed) if b.module == name}
    torch.testing.assert_close(rows["quarantine"][0], axis)
    assert float(rows["quarantine"][1:, 5].abs().max()) < 1e-3 and float(rows["deployed"][:, 5].abs().max()) < 1e-3


def test_the_pairs_hash_depends_on_the_tokens_and_not_on_batching_or_padding():
    def hash_of(hack_batches, clean=2):
        return collect_calibration(tiny_model(), hack_batches, [pair_batch(clean, 4)], CONFIG).provenance["pairs_hash"]

    rows, starts = sequences(1), (3, 2, 4, 5)
    whole = hash_of([padded(rows, starts)])
    assert whole == hash_of([padded(rows[:1], starts[:1]), padded(rows[1:], starts[1:], "left")])
    assert len({whole, hash_of([padded(rows, (3, 2, 4, 4))]), hash_of([padded(rows[::-1], starts)])}) == 3
    assert whole != hash_of([padded(rows, starts)], clean=3)


def test_a_calibration_survives_its_file(tmp_path):
    calibration = collect_calibration(
        tiny_model(), [pair_batch(1)], [pair_batch(2)], CONFIG, groups=[0, 1] * 3, provenance={"set": "planted"}
    )
    calibration.save(tmp_path / "c.safetensors")
    loaded = Calibration.load(tmp_path / "c.safetensors")
    assert loaded.provenance == calibration.provenance and loaded.provenance["set"] == "planted"
    assert loaded.provenance["dtype"] == "float32"
    assert torch.equal(loaded.groups, torch.tensor([0, 1] * 3))
    assert loaded.deltas.keys() == calibration.deltas.keys()
    assert all(torch.equal(loaded.deltas[name], calibration.deltas[name]) for name in loaded.deltas)


class Counting:
    """A model whose forwards are counted, and that can fail at one of them."""

    def __init__(self, fail_at=None):
        self.model, self.calls, self.fail_at = tiny_model(), 0, fail_at
        self.model.register_forward_pre_hook(self.count)

    def count(self, *_):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt


HACK, CLEAN = [pair_batch(1), pair_batch(2)], [pair_batch(3), pair_batch(4)]


def same(a, b):
    return a.deltas.keys() == b.deltas.keys() and all(torch.equal(a.deltas[n], b.deltas[n]) for n in a.deltas)


def test_a_cached_calibration_is_the_same_without_a_forward(tmp_path):
    first, second = Counting(), Counting()
    plain = collect_calibration(tiny_model(), HACK, CLEAN, CONFIG)
    cached = collect_calibration(first.model, HACK, CLEAN, CONFIG, cache_dir=tmp_path)
    again = collect_calibration(second.model, HACK, CLEAN, CONFIG, cache_dir=tmp_path)
    assert (first.calls, second.calls) == (4, 0)
    assert same(plain, cached) and same(plain, again) and plain.provenance == again.provenance


def test_an_interrupted_calibration_goes_on_where_it_stopped(tmp_path):
    stopped, resumed = Counting(fail_at=3), Counting()
    with pytest.raises(KeyboardInterrupt):
        collect_calibration(stopped.model, HACK, CLEAN, CONFIG, cache_dir=tmp_path)
    got = collect_calibration(resumed.model, HACK, CLEAN, CONFIG, cache_dir=tmp_path)
    assert resumed.calls == 2 and same(got, collect_calibration(tiny_model(), HACK, CLEAN, CONFIG))


def test_the_cache_serves_nothing_that_is_not_exactly_what_was_asked_for(tmp_path):
    collect_calibration(tiny_model(), HACK, CLEAN, CONFIG, cache_dir=tmp_path)

    def forwards(prepare=lambda model: None, hack=HACK, clean=CLEAN, config=CONFIG):
        counting = Counting()
        prepare(counting.model)
        collect_calibration(counting.model, hack, clean, config, cache_dir=tmp_path)
        return counting.calls

    @torch.no_grad()
    def one_weight(model):
        model.model.layers[1].mlp.down_proj.weight[0, 0] += 1e-4

    assert forwards() == 0
    assert forwards(one_weight) == 4
    assert forwards(lambda model: model.bfloat16()) == 4
    assert forwards(config=RoutedLoraConfig(r=2, init="scorda", target_modules=["q_proj"])) == 4
    masked = {**HACK[1], "completion_mask": HACK[1]["completion_mask"].clone()}
    masked["completion_mask"][0, 2] = 1
    assert forwards(hack=[HACK[0], masked]) == 1
    assert forwards(hack=CLEAN, clean=HACK) == 0  # the same texts on exchanged sides: same means, other difference


def test_a_damaged_or_renamed_cache_file_counts_as_absent(tmp_path):
    collect_calibration(tiny_model(), HACK, CLEAN, CONFIG, cache_dir=tmp_path)
    first, second, *_ = sorted(tmp_path.iterdir())
    first.write_bytes(second.read_bytes())
    second.write_bytes(b"damaged")
    counting = Counting()
    got = collect_calibration(counting.model, HACK, CLEAN, CONFIG, cache_dir=tmp_path)
    assert counting.calls == 2 and same(got, collect_calibration(tiny_model(), HACK, CLEAN, CONFIG))


@pytest.mark.parametrize(
    ("hack", "clean", "groups", "message"),
    [
        ([], [pair_batch(1)], None, "hack batches: expected at least one; got none"),
        ([pair_batch(1, 3)], [pair_batch(1, 4)], None, "expected as many clean as hack rows; got 4 and 3"),
        ([pair_batch(1, 3)], [pair_batch(1, 3)], [0, 1], r"expected one label for each of 3 pairs; got \[2\]"),
        (
            [{**pair_batch(1), "completion_mask": torch.zeros(6, 7)}],
            [pair_batch(1)],
            None,
            "expected a completion token in every row",
        ),
    ],
)
def test_malformed_pairs_are_refused_in_one_line(hack, clean, groups, message):
    with pytest.raises(ValueError, match=message) as error:
        collect_calibration(tiny_model(), hack, clean, CONFIG, groups=groups)
    assert "\n" not in str(error.value)


def test_statistics_of_another_model_are_refused_at_attach():
    calibration = collect_calibration(tiny_model(), [pair_batch(1)], [pair_batch(2)], CONFIG)
    some = {n: d for n, d in calibration.deltas.items() if "down" not in n}
    with pytest.raises(ValueError, match=r"expected statistics of model\.layers\.0\.mlp\.down_proj; it has none"):
        attach_routed_adapter(tiny_model(), CONFIG, Calibration(some))
    wide = {n: torch.cat([d, d], 1) for n, d in calibration.deltas.items()}
    with pytest.raises(ValueError, match=r"expected width 32 at model.layers.0.self_attn.q_proj; got 64"):
        attach_routed_adapter(tiny_model(), CONFIG, Calibration(wide))


def test_inits_without_a_fit_ignore_the_calibration():
    assert sum(1 for _ in blocks(attach("pissa"))) == 28
