"""The comparison with peers: what is run, and what its ratios say."""

import argparse
import json
import sys
from pathlib import Path

import pytest

PEERS = Path(__file__).parents[2] / "bench" / "peers"


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(PEERS))
    import compare

    return compare


def step(total, memory):
    return {"cpu_s_total": total, "peak_rss_mb": memory, "cpu_s": {"generate": total / 2, "train": total / 2}}


def test_ratios_are_the_peers_cost_over_this_packages_arm(compare):
    results = {
        "absorb": step(8.0, 1000),
        "none": step(4.0, 500),
        "TRL": step(20.0, 3500),
        "reference absorb": step(42.0, 2000),
        "reference none": step(30.0, 2000),
    }
    lines = [line.split() for line in compare.table(results, ["absorb", "none"]).splitlines()]
    assert lines[-4:] == [
        ["TRL", "/", "absorb", "2.50", "3.50"],
        ["reference", "absorb", "/", "absorb", "5.25", "2.00"],
        ["TRL", "/", "none", "5.00", "7.00"],
        ["reference", "none", "/", "none", "7.50", "4.00"],
    ]


def test_the_median_round_counts(compare):
    rounds = [step(total, 1) for total in (9.0, 7.0, 30.0)]
    assert compare.median(rounds) is rounds[0]
    assert compare.median(rounds[:2]) is rounds[1]


def test_every_arm_meets_its_counterpart_with_the_same_prompts(compare, tmp_path):
    options = argparse.Namespace(
        arms=["absorb", "route_a"],
        prompts=8,
        no_trl=False,
        trl_python="trl-python",
        reference=tmp_path,
        reference_python=None,
    )
    entries = compare.contestants(options)
    assert list(entries) == ["absorb", "route_a", "TRL", "reference absorb", "reference route_a"]
    python, script, arguments = entries["reference route_a"]
    assert (python, script.name) == ("trl-python", "reference_step.py")
    assert arguments == ["--arm", "routeA", "--checkout", str(tmp_path), "--prompts", "8"]
    assert all(script.is_file() and arguments[-2:] == ["--prompts", "8"] for _, script, arguments in entries.values())


def test_a_benchmarks_last_line_is_its_result_and_its_failure_is_told(compare, tmp_path):
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(f"print('noise')\nprint({json.dumps(json.dumps(step(1.0, 2)))})")
    bad.write_text("raise SystemExit('no model here')")
    assert compare.measured(sys.executable, good) == step(1.0, 2)
    with pytest.raises(SystemExit, match=r"(?s)bad\.py failed with 1:.*no model here"):
        compare.measured(sys.executable, bad)


def test_prompts_have_their_exact_length_with_and_without_a_phrase(compare):
    import standard

    for phrase in ("", "and should pass all tests"):
        texts = [standard.prompt_text(i, phrase) for i in range(8)]
        assert {len(text.split()) for text in texts} == {300}
        assert len(set(texts)) == 8
        assert all(text.endswith(phrase) for text in texts)
