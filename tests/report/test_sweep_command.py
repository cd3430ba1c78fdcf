"""``python -m vgrout_pl.sweep``: which runs are started, in which order, and what happens to those that fail."""

import json
import shlex
from pathlib import Path

import pytest

from vgrout_pl.report import CellResult, Results
from vgrout_pl.report.sweep import Sweep
from vgrout_pl.sweep.__main__ import main
from vgrout_pl.sweep.specification import Specification

HARD = ["run_tests", "eq_override", "exit_code", "stdout_marker", "sentinel", "file_marker"]
ROOT = Path(__file__).resolve().parents[2]
RUN = """
import os, sys, time
from pathlib import Path
arm, seed, root = sys.argv[1:4]
run = Path(root, arm, f"seed{seed}")
run.mkdir(parents=True, exist_ok=True)
with open(Path(root, "order.txt"), "a") as order:
    order.write(f"{arm}/{seed}/{os.environ.get('CUDA_VISIBLE_DEVICES', '')}\\n")
if arm == "bad":
    sys.exit("error: expected something else")
from vgrout_pl.report import CellResult, Results
labels = dict(problems="test", markers="training", mode="run_tests", n=10, hack=7, solve=int(seed), format=10)
cells = [CellResult.from_counts(state=state, **labels) for state in ("as_trained", "deployed")]
Results(tuple(cells), {"config_hash": "abc"}).save(run / "eval.json")
(run / "report.md").write_text("done")
"""


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """A sweep of three arms whose runs are a small script."""
    script = tmp_path / "run.py"
    script.write_text(RUN)
    monkeypatch.setattr(
        Specification, "command", lambda self, arm, seed, root: [str(script), arm, str(seed), str(root)]
    )
    path = tmp_path / "three.yaml"
    path.write_text("seeds: [0, 1]\narms:\n  none:\n  matched: {after: [none]}\n  absorb: {}\n")
    return path


def order(root):
    return (root / "order.txt").read_text().split()


def test_every_arm_and_seed_runs_once_and_the_table_follows(spec, tmp_path, capsys):
    root = tmp_path / "runs"
    assert main([str(spec), "--root", str(root)]) == 0
    assert order(root) == [f"{arm}/{seed}/" for seed in (0, 1) for arm in ("none", "matched", "absorb")]
    assert "0.050 +- 0.071" in capsys.readouterr().out  # solve 0 and 1 of 10
    assert main([str(spec), "--root", str(root)]) == 0
    assert len(order(root)) == 6


def test_an_arm_waits_for_the_one_it_follows_and_devices_are_dealt_out(spec, tmp_path):
    root = tmp_path / "runs"
    assert main([str(spec), "--root", str(root), "--gpus", "2,5"]) == 0
    started = [line.rsplit("/", 1) for line in order(root)]
    names = [name for name, _ in started]
    assert sorted(names) == sorted(f"{arm}/{seed}" for seed in (0, 1) for arm in ("none", "matched", "absorb"))
    assert all(names.index(f"matched/{seed}") > names.index(f"none/{seed}") for seed in (0, 1))
    assert {device for _, device in started} == {"2", "5"}


def test_a_run_that_fails_is_named_and_the_others_go_on(spec, tmp_path, capsys):
    spec.write_text("arms:\n  bad:\n  child: {after: [bad]}\n  none:\n")
    root = tmp_path / "runs"
    assert main([str(spec), "--root", str(root)]) == 1
    assert [line.split("/")[0] for line in order(root)] == ["bad", "none"]
    said = capsys.readouterr().err
    assert "error: bad/seed0 did not finish: error: expected something else" in said
    assert "error: child/seed0 did not finish" in said


def test_an_arm_is_not_started_on_a_run_that_is_not_finished(spec, tmp_path, capsys):
    root = tmp_path / "runs"
    (root / "none" / "seed0").mkdir(parents=True)
    (root / "none" / "seed0" / "metrics.csv").write_text("step,quarantine/grad_share\n0,0.5\n")
    assert main([str(spec), "--root", str(root), "--seeds", "0", "--arms", "matched", "absorb"]) == 1
    assert order(root) == ["absorb/0/"]
    assert "matched/seed0 did not finish: nothing was logged; an arm before it is not fini" in capsys.readouterr().err
    assert main([str(spec), "--root", str(root), "--seeds", "0", "--arms", "none"]) == 0
    assert main([str(spec), "--root", str(root), "--seeds", "0", "--arms", "matched"]) == 0


def test_runs_of_a_published_table_are_not_run_again(spec, tmp_path, capsys):
    first, second, table = tmp_path / "first", tmp_path / "second", tmp_path / "cells.csv"
    assert main([str(spec), "--root", str(first), "--seeds", "0", "--csv", str(table)]) == 0
    assert main([str(spec), "--root", str(second), "--known", str(table), "--csv", str(table)]) == 0
    assert all("/1/" in line for line in order(second))
    capsys.readouterr()
    assert main([str(spec), "--root", str(second), "--known", str(table), "--arms", "absorb"]) == 0
    assert "Not in the table" not in capsys.readouterr().out
    both = Sweep.load(table)
    assert {(arm, seed) for arm, seed, _ in both.finished} == {
        (a, s) for a in ("none", "matched", "absorb") for s in (0, 1)
    }
    assert both.finished[0][2].provenance["config_hash"] == "abc"
    cell = both.finished[-1][2].cell(state="deployed", problems="test", markers="training")
    assert (cell.n, cell.count("hack"), cell.count("solve")) == (10, 7, 1)


def test_a_run_that_waits_for_one_of_the_table_alone_is_refused_before_anything_runs(spec, tmp_path, capsys):
    first, second, table = tmp_path / "first", tmp_path / "second", tmp_path / "cells.csv"
    assert main([str(spec), "--root", str(first), "--seeds", "0", "--arms", "none", "--csv", str(table)]) == 0
    capsys.readouterr()
    for dry in ([], ["--dry-run"]):
        assert main([str(spec), "--root", str(second), "--known", str(table), "--seeds", "0", *dry]) == 1
        said = capsys.readouterr()
        assert said.out == "" and not second.exists()
        (line,) = said.err.splitlines()
        assert line.startswith("error: --known: expected runs that others read to be in this root; matched of seed 0 ")
        assert f"after none of seed 0, which {table} has and {second} has not; finish that one there first" in line
    known = ["--root", str(second), "--known", str(table)]
    assert main([str(spec), *known, "--seeds", "0", "--arms", "absorb"]) == 0
    assert main([str(spec), *known, "--seeds", "1"]) == 0
    assert main([str(spec), "--root", str(second), "--seeds", "0", "--arms", "none"]) == 0
    assert main([str(spec), *known]) == 0
    assert order(second).count("none/0/") == 1


def test_a_table_of_another_setting_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    tables = {}
    for name, modes in (("default", ["run_tests"]), ("hard", HARD)):
        cells = [
            CellResult.from_counts(
                state="deployed", problems="test", markers=markers, mode=mode, n=4, hack=0, solve=1, format=4
            )
            for markers, shown in (("training", modes), ("none", ["gt_only"]))
            for mode in shown
        ]
        tables[name] = tmp_path / f"{name}.csv"
        tables[name].write_text(Sweep([("route_a", 3, Results(cells))], ()).csv())
    given = ["configs/sweep/organism.yaml", "--dry-run", "--seeds", "3", "--arms", "route_a", "absorb"]
    hard = ["--config", "configs/experiment/organism_hard.yaml"]
    for extra, fits, other in (([], "default", "hard"), (hard, "hard", "default")):
        assert main([*given, *extra, "--known", str(tables[fits])]) == 0
        assert "--name=route_a" not in capsys.readouterr().out
        assert main([*given, *extra, "--known", str(tables[other])]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert f"{tables[other]} has route_a of seed 3 in the modes" in said.err and said.err.count("\n") == 1


def test_the_modes_of_an_arm_are_those_that_stand_last(tmp_path):
    for name, text in (("a", "data: {mode: run_tests}"), ("b", "data: {mode: [exit_code, gt_only]}"), ("c", "{}")):
        (tmp_path / f"{name}.yaml").write_text(text)
    a, b, c = (str(tmp_path / f"{name}.yaml") for name in "abc")
    path = tmp_path / "spec.yaml"
    path.write_text(
        f"configs: [{a}]\narms:\n  plain:\n  file: {{configs: [{b}, {c}]}}\n  key: {{set: {{data.mode: sentinel}}}}\n"
        f"  held_out: {{set: {{data.eval_mode: [eq_override]}}}}\n  whole: {{set: {{data: x.yaml}}}}\n"
    )
    spec = Specification.load(path)
    assert {arm: spec.evaluated_modes(arm) for arm in spec.arms} == {
        "plain": {"run_tests"},
        "file": {"exit_code"},
        "key": {"sentinel"},
        "held_out": {"eq_override"},
        "whole": None,
    }
    path.write_text(f"configs: [{c}]\narms: {{x: }}\n")
    assert Specification.load(path).evaluated_modes("x") is None


def test_a_broken_table_is_one_line(tmp_path):
    table = tmp_path / "cells.csv"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns experiment, seed"):
        Sweep.load(table)
    good = CellResult.from_counts(
        state="base", problems="test", markers="none", mode="gt_only", n=4, hack=0, solve=1, format=4
    )
    table.write_text(Sweep([("x", 0, Results([good]))], ()).csv().replace(",4,0,1,4", ",4,9,1,4"))
    with pytest.raises(ValueError, match=r"cells.csv, line 2: expected 0 <= successes"):
        Sweep.load(table)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds: [0]\n", "arms: expected a mapping; got None"),
        ("arms: {}\n", "arms: expected at least one; got none"),
        ("arms: {a: }\nseeds: zero\n", "seeds: expected a list of whole numbers; got 'zero'"),
        ("arms: {a: {configs: [nowhere.yaml]}}\n", "there is no nowhere.yaml"),
        ("arms: {a: {config: []}}\n", "arms.a: expected the keys after, configs, set; got 'config'"),
        ("arms: {a: {after: [b]}, b: }\n", "arms.a.after: expected arms that stand above it; got b"),
        ("arms: [", "expected the YAML file of a sweep"),
    ],
)
def test_bad_specifications_are_one_line(tmp_path, capsys, text, said):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert main([str(path)]) == 1
    assert said in capsys.readouterr().err


def test_the_shipped_sweep_gives_whole_commands(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    hard = "configs/experiment/organism_hard.yaml"
    given = ["configs/sweep/organism.yaml", "--dry-run", "--arms", "route_a", "random_share", "--seeds", "3"]
    assert main([*given, "--config", hard]) == 0
    assert capsys.readouterr().out.count("--trainer.default_root_dir=runs/organism-organism_hard ") == 2
    assert main([*given, "--config", hard, "--root", "out"]) == 0
    gate, share = (shlex.split(line) for line in capsys.readouterr().out.splitlines())
    configs = [share[i + 1] for i, word in enumerate(share) if word == "--config"]
    assert configs == ["configs/demo.yaml", "configs/adapter/gaussian.yaml", hard, "configs/router/random_share.yaml"]
    assert "--router.init_args.share=null" in share
    assert "--router.init_args.matched=out/route_a/seed3" in share
    assert "--seed_everything=3" in gate
    assert json.loads(next(word for word in gate if word.startswith("--ablation.states=")).split("=")[1]) == [
        "as_trained",
        "deployed",
    ]
