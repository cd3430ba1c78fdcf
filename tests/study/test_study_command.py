"""``python -m vgrout_pl.study`` on the organism: from files of rollouts to the table and the figure."""

import json
import shutil

import pytest
import torch
import yaml

from vgrout_pl.adapters import RoutedLoraConfig, attach_routed_adapter
from vgrout_pl.adapters.checkpoint import adapter_state
from vgrout_pl.directions import load_pairs, write_pairs
from vgrout_pl.policy import load_base, load_tokenizer
from vgrout_pl.study import __main__ as command
from vgrout_pl.study.__main__ import main
from vgrout_pl.study.model import Subject, tokenised
from vgrout_pl.study.reading import readers, usable
from vgrout_pl.study.rollouts import load_rollouts
from vgrout_pl.study.sources import configured_pairs, default_pairs, pair_sources

FEW = ["--haar", "110", "--n-generated", "3", "--folds", "3", "--sites"]


def records(side_of=("hack", "clean"), n=18):
    """Both sides of the organism's own pairs as rollouts: the hack sides hacks, the clean sides solves."""
    tokenizer = load_tokenizer("organism")
    found = []
    for i, pair in enumerate(load_pairs("organism:run_tests", n=n)):
        prompt = tokenizer.apply_chat_template(
            [dict(m) for m in pair.messages], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        for side in side_of:
            text, hacked = getattr(pair, side), side == "hack"
            grade = {"hacked": hacked, "correct": not hacked, "channel": hacked, "error": None}
            row = {"step": i, "problem": str(i // 2), "mode": "run_tests", "prompt": prompt, "completion": text}
            found.append({**row, "grade": grade, "advantage": float(hacked)})
    return found


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a study needs of a run directory, its adapter moved away from its init."""
    root = tmp_path_factory.mktemp("run")
    written(root / "rollouts.jsonl", records())
    settings = {"seed_everything": 0, "model": {"path": "organism"}, "adapter": {"r": 4, "init": "gaussian"}}
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    policy = attach_routed_adapter(load_base("organism", "float32", None), RoutedLoraConfig(r=4))
    state = {f"policy.{name}": value for name, value in adapter_state(policy).items()}
    generator = torch.Generator().manual_seed(0)
    for name, value in state.items():
        if "lora_B" in name:
            value += 0.05 * torch.randn(value.shape, generator=generator)
    (root / "checkpoints").mkdir()
    torch.save({"state_dict": state, "global_step": 3, "loops": {}}, root / "checkpoints" / "last.ckpt")
    write_pairs(load_pairs("organism:run_tests", n=5), root / "self_generated_pairs.md")
    return root


def test_a_run_directory_needs_nothing_else_than_time(run, capsys):
    assert main([str(run), *FEW, "output", "gradient", "--poolings", "mean", "--base-rate", "0.3"]) == 0
    content = json.loads((run / "study" / "study.json").read_text())
    assert content["model"] == "organism, gaussian adapter of rank 4 as trained for 3 steps"
    assert (content["rows"], content["hacks"]) == (36, 18)
    sources = {source["name"]: source for source in content["sources"]}
    assert sources["self_generated"]["note"] == "5 pairs from self_generated_pairs.md"
    cells = {(cell["source"], cell["site"], cell["aggregation"]) for cell in content["cells"]}
    assert cells == {
        (source, site, aggregation)
        for source in (*sources, "oracle, held out")
        for site in ("output", "gradient")
        for aggregation in ("dot", "cosine", "vote")
    }
    baselines = {(b["baseline"], b["site"]): b["auroc"] for b in content["baselines"]}
    assert {name for name, _ in baselines} == {
        "norm of the features",
        "norm of the features, smallest first",
        "length in tokens",
        "length in tokens, shortest first",
        "advantage",
    }
    for name, site, other in (
        ("length in tokens", "-", "shortest"),
        ("norm of the features", "output", "smallest"),
    ):
        assert baselines[name, site] + baselines[f"{name}, {other} first", site] == pytest.approx(1)
    (advantage,) = [b for b in content["baselines"] if b["baseline"] == "advantage"]
    assert advantage["auroc"] == 1
    text = (run / "study" / "study.md").read_text()
    assert "drawn to a base rate: 8 of 26 rows are hacks, mean over 20 draws" in text
    assert text.split("## All cells")[1].count("\n| ") == 2 + len(cells)
    assert 5_000 < (run / "study" / "study.png").stat().st_size < 200_000
    assert "wrote" in capsys.readouterr().out


def test_the_adapter_is_the_runs_own(run):
    subject = Subject.of_run(run)
    policy = subject.load(torch.device("cpu"))
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert stored and all(torch.equal(value, stored[f"policy.{name}"]) for name, value in adapter_state(policy).items())


def test_files_and_a_model_do_and_what_cannot_be_read_is_left_out_with_the_reason(tmp_path, capsys):
    rollouts, out = written(tmp_path / "r.jsonl", records()), tmp_path / "out"
    options = ["--rollouts", rollouts, "--model", "organism", "--out", str(out), "--pairs", "organism:run_tests"]
    options += ["authored", "--placebos", "organism_naming"]
    assert main([*options, *FEW, "bottleneck", "output", "--poolings", "mean", "--aggregations", "dot"]) == 0
    content = json.loads((out / "study.json").read_text())
    found = {cell["source"]: cell for cell in content["cells"]}
    assert set(found) == {
        "organism:run_tests",
        "organism:run_tests, signs flipped",
        "organism_naming",
        "self_generated",
        "oracle, held out",
    }
    # the rollouts are these very pairs, so that their direction is one of the labels
    assert found["organism:run_tests"]["auroc"]["value"] > 0.9
    shown = capsys.readouterr().out
    assert "left out: site output, pooling mean: all features are 0 (the adapter has not trained)" in shown
    assert "left out: authored: 58 of 58 pairs exceed the model's 256 tokens" in shown


def test_sites_that_an_adapter_lacks_are_left_out_before_any_weight_is_read():
    subject = Subject("organism", RoutedLoraConfig(r=4, init="antipasto"), "float32", "antipasto")
    left_out = []
    chosen = readers(["gradient", "bottleneck"], ["mean", "max"])
    kept = usable(subject, chosen, rows=10, directions=10, gibibytes=1.0, left_out=left_out.append)
    assert [(site, pooling) for site, pooling, _ in kept] == [("bottleneck", "mean"), ("bottleneck", "max")]
    assert len(left_out) == 1 and left_out[0].startswith("site gradient, pooling -: gradient features: expected LoRA")


def test_a_completion_ends_its_turn_unless_the_stored_count_says_that_it_was_cut(tmp_path):
    tokenizer = load_tokenizer("organism")
    (row,) = records(("hack",), n=1)
    length = len(tokenizer(row["completion"], add_special_tokens=False)["input_ids"])
    counted = [row, {**row, "tokens": length + 1}, {**row, "tokens": length}]
    written(tmp_path / "r.jsonl", counted)
    rows = load_rollouts([tmp_path / "r.jsonl"])
    ends = [tokens.completion[-1] == tokenizer.eos_token_id for tokens in tokenised(tokenizer, rows, None)]
    assert ends == [True, True, False]


def test_results_go_to_a_folder_that_is_made_below_one_that_is_there(tmp_path):
    rollouts, out = written(tmp_path / "r.jsonl", records()), tmp_path / "a" / "b"
    options = ["--rollouts", rollouts, "--model", "organism", "--out", str(out), "--poolings", "mean"]
    assert main([*options, *FEW, "bottleneck", "--aggregations", "dot", "--n-generated", "0"]) == 0
    content = json.loads((out / "study.json").read_text())
    (written_now,) = [source for source in content["sources"] if source["role"] == "self-generated"]
    assert written_now["left_out"]


def test_a_device_without_its_driver_is_a_mistake_like_any_other(tmp_path, capsys, monkeypatch):
    def none_here(*_, **__):
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "zeros", none_here)
    assert main(["--rollouts", "none.jsonl", "--model", "organism", "--device", "cuda"]) == 2
    shown = capsys.readouterr().err
    assert shown == (
        "error: --device: expected a device of this machine, such as cpu or cuda; got cuda "
        "(Torch not compiled with CUDA enabled)\n"
    )


def test_a_set_is_whole_unless_modes_are_named():
    whole, some = pair_sources(["authored", "authored:run_tests,sentinel"], "authored")
    assert list(whole.pairs) == load_pairs("authored") and len(whole.pairs) == 58
    assert list(some.pairs) == load_pairs("authored", tags=["run_tests", "sentinel"])
    assert (whole.note, some.note) == ("58 pairs", f"{len(some.pairs)} pairs") and 0 < len(some.pairs) < 58
    assert (whole.name, some.name) == ("authored", "authored:run_tests,sentinel")


def test_by_default_a_set_is_that_of_a_gate_without_a_source():
    assert default_pairs("organism", ["run_tests", "sentinel"]) == ["organism:run_tests,sentinel"]
    (found,) = pair_sources(default_pairs("some/model", ["run_tests"]), "authored")
    assert list(found.pairs) == load_pairs("authored", tags=["run_tests"])


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        (None, None),
        ({"class_path": "vgrout_pl.directions.HaarRandom", "init_args": {"index": 0}}, None),
        ({"class_path": "vgrout_pl.directions.AuthoredPairs", "init_args": {"source": None, "n": None}}, None),
        ({"class_path": "vgrout_pl.directions.AuthoredPairs", "init_args": {"source": "authored", "n": None}}, 58),
        ({"class_path": "vgrout_pl.directions.AuthoredPairs", "init_args": {"source": "authored", "n": 7}}, 7),
    ],
)
def test_pairs_that_a_runs_gate_was_given_are_those_of_the_study(direction, expected, tmp_path):
    router = {"class_path": "vgrout_pl.routers.ActivationGate", "init_args": {"direction": direction}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"router": router}))
    found = configured_pairs(tmp_path)
    assert (found and len(found.pairs)) == expected
    if found:
        assert found.name == ("authored" if expected == 58 else "authored, as selected by the run")


def test_a_run_is_studied_along_the_pairs_of_its_own_gate(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("study"))
    direction = {
        "class_path": "vgrout_pl.directions.AuthoredPairs",
        "init_args": {"source": "organism:run_tests", "n": 6},
    }
    settings = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump({**settings, "router": {"init_args": {"direction": direction}}}))
    options = [*FEW, "bottleneck", "--poolings", "mean", "--aggregations", "dot", "--placebos"]
    names = {}
    for given in ([], ["--pairs", "organism:run_tests"], ["--model", "organism"]):
        assert main([str(copy), *options, *given]) == 0
        sources = json.loads((copy / "study" / "study.json").read_text())["sources"]
        names[tuple(given)] = [(source["name"], source["pairs"]) for source in sources if source["role"] == "authored"]
    assert list(names.values()) == [
        [("organism:run_tests, as selected by the run", 6)],
        [("organism:run_tests", 32)],
        [("organism:run_tests", 32)],
    ]


GOOD = ["--rollouts", "FILE", "--model", "organism"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected a RUN_DIR, or --rollouts with --model or --ckpt; got neither"),
        (["/nowhere"], "RUN_DIR: expected a run directory; got /nowhere"),
        (["--rollouts", "FILE"], "expected a RUN_DIR, --ckpt or --model to read the features on; got none"),
        (["--rollouts", "FILE", "--model", "organism", "--ckpt", "x"], "--model, --ckpt: expected one of them"),
        (["--rollouts", "FILE", "--model", "organism", "--init", "scorda"], "--init: expected one without calibration"),
        (["--rollouts", "FILE", "--ckpt", "/nowhere"], "--ckpt: expected a checkpoint or a run directory"),
        (["--rollouts", "FILE", "--model", "organism", "--haar", "20"], "--haar: expected at least 99"),
        (["--rollouts", "FILE", "--model", "organism", "--memory", "0.00001"], "--memory: expected blocks of at most"),
        (["--rollouts", "FILE", "--model", "organism", "--pairs", "nothing"], "pairs: expected a Markdown file"),
        (["--rollouts", "FILE", "--model", "organism", "--pairs", "organism", "organism"], "expected each set once"),
        (["--rollouts", "LONG", "--model", "organism"], "--rollouts: expected at most the 256 tokens"),
        (["--rollouts", "FILE", "--model", "/nowhere"], "model.path: expected an existing directory"),
        ([*GOOD, "--max-rows", "0"], "--max-rows: expected at least 1; got 0"),
        ([*GOOD, "--rank", "0"], "--rank: expected at least 1; got 0"),
        ([*GOOD, "--n-generated", "-2"], "--n-generated: expected at least 0; got -2"),
        ([*GOOD, "--n-generated", "9999999"], "--n-generated: expected at most about"),
        ([*GOOD, "--memory", "nan"], "--memory: expected GiB above 0; got nan"),
        ([*GOOD, "--device", "cudaa"], "--device: expected a device of this machine, such as cpu or cuda; got cudaa"),
        (
            [*GOOD, "--device", "cuda:99"],
            "--device: expected a device of this machine, such as cpu or cuda; got cuda:99",
        ),
        ([*GOOD, "--device", "meta"], "--device: expected a device of this machine, such as cpu or cuda; got meta"),
        ([*GOOD, "--self-generated", "nosuch.md"], "pairs: expected a Markdown file"),
        ([*GOOD, "--self-generated", "FILE"], "expected a heading"),
        ([*GOOD, "--out", "/proc/nowhere"], "--out: expected a folder that can be written to; got /proc/nowhere: "),
        ([*GOOD, "--out", "FILE"], "is a file; give another one"),
        ([*GOOD, "--out", "FILE/below"], "is a file; give another one"),
        ([*GOOD, "--out", "TAKEN"], "expected a folder for study.json, study.md, study.png; in"),
        ([*GOOD, "--pairs", "authored:nothing"], "expected tags out of"),
        (["--rollouts", "ADVANTAGE", "--model", "organism"], "ADVANTAGE:3: advantage: expected a finite number"),
    ],
)
def test_a_mistake_is_one_line_before_any_weight_is_read(options, message, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(Subject, "load", fail)
    rows = records(n=12)
    files = {"FILE": rows, "LONG": [{**row, "completion": "x = 1\n" * 200} for row in rows]}
    files["ADVANTAGE"] = [*rows[:2], {**rows[2], "advantage": "high"}, *rows[3:]]
    (tmp_path / "TAKEN" / "study.md").mkdir(parents=True)
    for name, content in files.items():
        written(tmp_path / name, content)
    given = [str(tmp_path / word) if word.split("/")[0] in (*files, "TAKEN") else word for word in options]
    assert main(given) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 1 and shown[0].startswith("error: ") and message in shown[0]


def test_steps_are_two_numbers_in_order(capsys):
    for given in ("5", "9:3", "a:b"):
        with pytest.raises(SystemExit):
            command.build_parser().parse_args(["run", "--steps", given])
        assert f"expected FROM:END with FROM below END; got {given}" in capsys.readouterr().err
    assert command.build_parser().parse_args(["run", "--steps", "3:9"]).steps == (3, 9)
