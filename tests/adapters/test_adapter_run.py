"""The adapter's callbacks in a run on the organism: what they measure, what they ship, and what it says of itself."""

import csv
import json
import math
from types import SimpleNamespace

import pytest
import yaml
from safetensors.torch import load_file

from vgrout_pl.adapters.__main__ import main as adapters
from vgrout_pl.callbacks import BlockDiagnostics, RoutedAdapter
from vgrout_pl.cli import main
from vgrout_pl.policy import load_base, load_tokenizer
from vgrout_pl.report import Results, cells_markdown
from vgrout_pl.report.blocks import BlockRecords, summary

OPTIONS = {
    "trainer.max_steps": 4,
    "trainer.val_check_interval": 4,
    "data.validation_size": 4,
    "data.test_size": 4,
    "data.train_eval_size": 4,
    "model.grader_workers": 1,
    "checkpoint.every_n_train_steps": 4,
    "diagnostics.every_n_steps": 2,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a short run with a measurement before steps 1 and 3, and before step 4, its last."""
    root = tmp_path_factory.mktemp("runs")
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["cli.py"])
        main(["fit", "--config", "configs/demo.yaml", *options, f"--trainer.default_root_dir={root}"])
    return root / "absorb-scorda" / "seed0"


def metrics(run):
    with (run / "metrics.csv").open(newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file) if row["loss"]}
    return [{name: float(value) if value else math.nan for name, value in row.items()} for row in rows.values()]


def card_facts(directory):
    lines = (directory / "README.md").read_text().splitlines()
    return dict(line.removeprefix("- ").split(": ", 1) for line in lines if line.startswith("- "))


def test_every_module_is_measured_at_the_cadence_and_before_the_last_step(run):
    records = BlockRecords.load(run / "blocks.jsonl")
    assert list(records.steps) == [0, 2, 3]
    for modules in records.steps.values():
        assert len({module.module for module in modules}) == len(modules) == 21
    assert all(m.deployed_delta == m.quarantine_delta == 0.0 and m.deployed_gradient > 0 for m in records.steps[0])
    for module in records.steps[3]:
        assert 0.2 < module.delta_share < 0.8 and 0.0 < module.seeded_share < 0.9
        assert 0.0 < module.input_overlap < 1.0 and 0.0 < module.output_overlap < 1.0


def test_the_measurements_agree_with_what_the_module_logs_of_the_same_step(run):
    records, rows = BlockRecords.load(run / "blocks.jsonl"), metrics(run)
    for step in (2, 3):
        pooled = summary(records.steps[step])
        assert pooled["delta_share"] == pytest.approx(rows[step]["quarantine/delta_share"], rel=1e-5)
        assert pooled["gradient_share"] == pytest.approx(rows[step]["quarantine/grad_share"], rel=1e-5)
        for name in ("deployed_delta", "quarantine_delta", "seeded_share", "cosine", "input_overlap"):
            assert pooled[name] == pytest.approx(rows[step][f"quarantine/{name}"], rel=1e-5)


def test_steps_between_measurements_repeat_no_older_value(run):
    row = metrics(run)[1]
    assert math.isnan(row["quarantine/seeded_share"]) and math.isnan(row["quarantine/deployed_delta"])
    assert math.isfinite(row["quarantine/delta_share"])


def test_a_resumed_run_measures_the_steps_it_takes_again_only_once(tmp_path):
    (tmp_path / "blocks.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in (0, 0, 2, 2, 3)))
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir=tmp_path, global_step=2)
    BlockDiagnostics(2).on_train_start(trainer, None)
    kept = (tmp_path / "blocks.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept] == [0, 0]


def test_the_report_shows_the_blocks(run):
    text = (run / "report.md").read_text()
    assert "| before step 4 | modules |" in text and "| all | 21 |" in text and "| down_proj | 3 |" in text
    assert "](plots/blocks.png)" in text and (run / "plots" / "blocks.png").stat().st_size > 10_000


def test_the_card_of_what_ships_holds_the_evaluation_and_where_it_comes_from(run):
    results = Results.load(run / "eval.json")
    card = (run / "deployed" / "README.md").read_text()
    assert cells_markdown(results) in card and "Base model: `organism`." in card
    facts = card_facts(run / "deployed")
    assert facts["run"] == "`absorb-scorda/seed0`" and facts["steps"] == "`4`"
    assert facts["config_hash"] == f"`{results.provenance['config_hash']}`"
    assert facts["adapter.pairs_hash"] == f"`{results.provenance['adapter']['pairs_hash']}`"


def test_the_command_exports_the_run_with_the_same_weights_table_and_facts(run, tmp_path):
    assert adapters(["export", "--ckpt", str(run), "--out", str(tmp_path / "out")]) == 0
    weights = [load_file(path / "adapter_model.safetensors") for path in (run / "deployed", tmp_path / "out")]
    assert weights[0].keys() == weights[1].keys()
    assert all(bool((weights[0][name] == weights[1][name]).all()) for name in weights[0])
    assert card_facts(tmp_path / "out") == card_facts(run / "deployed")
    assert cells_markdown(Results.load(run / "eval.json")) in (tmp_path / "out" / "README.md").read_text()


def test_a_run_that_never_reached_its_evaluation_still_says_where_it_comes_from(run, tmp_path):
    unfinished = tmp_path / "absorb-scorda" / "seed0"
    (unfinished / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/last.ckpt"):
        (unfinished / name).write_bytes((run / name).read_bytes())
    assert adapters(["export", "--ckpt", str(unfinished), "--out", str(tmp_path / "out")]) == 0
    facts, whole = card_facts(tmp_path / "out"), card_facts(run / "deployed")
    assert {"run", "config_hash", "steps", "adapter.pairs_hash", "adapter.init"} <= facts.keys()
    assert all(whole[name] == value for name, value in facts.items())
    assert "Not evaluated: make no claim" in (tmp_path / "out" / "README.md").read_text()


def test_the_settings_of_the_adapter_reach_its_configuration_and_the_saved_run(run):
    adapter = RoutedAdapter(r=2, covariance_eps=0.5, compute_dtype="float32", quarantine_scale=3.0)
    config = adapter.config
    assert (config.covariance_eps, config.compute_dtype, config.quarantine_scale) == (0.5, "float32", 3.0)
    saved = yaml.safe_load((run / "config.yaml").read_text())["adapter"]
    assert (saved["covariance_eps"], saved["compute_dtype"], saved["cache_dir"]) == (1e-3, "base", None)


def test_a_cached_calibration_is_found_again_and_runs_no_forward(tmp_path, monkeypatch):
    adapter = RoutedAdapter(r=2, n_pairs=6, calibration_batch_size=4, cache_dir=str(tmp_path))
    adapter._modes = ("run_tests",)
    base, tokenizer = load_base("organism", "float32", None), load_tokenizer("organism")
    first = adapter.calibrate(base, tokenizer)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4  # two batches a side
    monkeypatch.setattr(base, "forward", None)
    second = adapter.calibrate(base, tokenizer)
    assert all(bool((second.deltas[name] == value).all()) for name, value in first.deltas.items())


def test_a_negative_cadence_is_refused():
    with pytest.raises(ValueError, match=r"diagnostics.every_n_steps: expected 0 \(none\) or more; got -1"):
        BlockDiagnostics(-1)
