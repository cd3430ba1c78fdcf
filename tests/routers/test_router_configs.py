"""Every overlay in configs/router composes with the demo and trains; what is recorded of it is true."""

import csv
import json
from pathlib import Path

import pytest

from tests.loop.conftest import command
from vgrout_pl.cli import RunCLI
from vgrout_pl.directions.pair_sources import PAIRS_FILE
from vgrout_pl.directions.sources import load_pairs

OVERLAYS = sorted(Path("configs/router").glob("*.yaml"))
ELSEWHERE = {"absorb", "none", "oracle", "oracle_channel", "random_share", "route_a", "sign_flip"}
"""Overlays whose like runs in the fast suite anyway."""
CASES = [pytest.param(path, marks=pytest.mark.full if path.stem in ELSEWHERE else ()) for path in OVERLAYS]
NAMES = {
    "absorb": "absorb",
    "haar": "route_a-haar-0",
    "none": "none",
    "none_matched": "none_matched",
    "oracle": "oracle",
    "oracle_channel": "oracle-channel",
    "oracle_fit": "route_a-oracle_fit",
    "oracle_noisy": "oracle-recall0.5",
    "random_share": "random_share-0.1",
    "regex": "regex",
    "route_a": "route_a",
    "route_a_residual": "route_a-residual",
    "route_a_tokens": "route_a-tokens",
    "route_v": "route_v",
    "shrinkage": "shrinkage-0.5",
    "sign_flip": "route_a-sign_flipped",
}
ROUTES = {
    "absorb": {"absorb"},
    "none": {"none"},
    "shrinkage": {"none"},
    "none_matched": {"keep"},
    "oracle": {"keep", "route"},
    "oracle_channel": {"keep", "route"},
    "oracle_noisy": {"keep", "route"},
    "random_share": {"keep", "route"},
    "regex": {"keep", "route"},
}


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Two steps without a final evaluation; returns the run's directory."""
    monkeypatch.setattr("sys.argv", ["cli.py"])
    monkeypatch.setattr(RunCLI, "after_fit", lambda self: None)

    def run(*args):
        options = ("--trainer.limit_val_batches=0", *args)
        command("fit", *options, config="configs/demo.yaml", root=tmp_path)
        (found,) = tmp_path.glob("*/seed0")
        return found

    return run


def rows_of(run):
    with (run / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["reward"]]


def test_every_overlay_has_a_name_of_its_own():
    assert set(NAMES) == {path.stem for path in OVERLAYS}
    assert len(set(NAMES.values())) == len(NAMES)


@pytest.mark.parametrize("overlay", CASES, ids=lambda path: path.stem)
def test_every_overlay_trains_two_steps_under_its_name(train, overlay):
    run = train("--config", str(overlay))
    assert run.parent.name == f"{NAMES[overlay.stem]}-scorda"
    lines = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert len(lines) == 32
    given = {
        route for line in lines for route in ([line["route"]] if isinstance(line["route"], str) else line["route"])
    }
    assert given <= ROUTES.get(overlay.stem, {"keep", "absorb", "route"})
    rows = rows_of(run)
    assert [row["step"] for row in rows] == ["0", "1"]
    is_gate = NAMES[overlay.stem].startswith("route_")
    assert any(row["route/score_p50"] not in ("", "nan") for row in rows) == (is_gate and overlay.stem != "oracle_fit")
    if overlay.stem == "route_v":
        written = load_pairs(run / PAIRS_FILE)
        assert 0 < len(written) <= 32
        assert {pair.tags for pair in written} == {("run_tests", "self_generated")}


def test_a_gate_that_cannot_be_read_stops_before_any_weight(train, capsys):
    with pytest.raises(SystemExit):
        train("--config", "configs/router/route_v.yaml", "--adapter.init=antipasto")
    assert "gradient features: expected LoRA blocks" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train("--config", "configs/router/route_a_residual.yaml", "--router.init_args.layers=[7]")
    assert "out of the model's 3; got [7]" in capsys.readouterr().err
