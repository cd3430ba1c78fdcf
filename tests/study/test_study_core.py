"""Planted truth is found, a null world stays silent, and a random direction is judged as any other."""

import json
from dataclasses import replace

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from vgrout_pl.directions import load_pairs
from vgrout_pl.directions.direction_source import HaarRandom, haar_direction
from vgrout_pl.directions.extract import mean_direction
from vgrout_pl.directions.features import Layout
from vgrout_pl.study import METRICS, ORACLE, Block, Design, Study, report
from vgrout_pl.study.core import Family, above_chance, facts
from vgrout_pl.study.report import write_results
from vgrout_pl.study.sources import GivenPairs, StudySource

LAYOUT = Layout(("a", "b", "c", "d"), (8, 8, 8, 8))
PLANTED = haar_direction(LAYOUT, "planted")


def world(n=300, strength=0.0, seed=0, rate=0.3):
    """Normal features, the hacks moved along the planted direction; one row a problem."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, LAYOUT.size, generator=generator)
    hacked = torch.rand(n, generator=generator) < rate
    return features + strength * hacked.unsqueeze(1) * PLANTED, hacked


def judged(features, hacked, directions, pooling="mean", problems=None, **design):
    study = Study(hacked, problems or [str(i) for i in range(len(hacked))], Design(**design))
    study.add(Block("bottleneck", pooling, LAYOUT, features, directions))
    return study


def by_source(study, aggregation="dot"):
    return {r["source"]: r for r in facts(study) if r["aggregation"] == aggregation}


def test_a_planted_direction_and_the_oracle_pass_the_family_and_a_random_one_does_not():
    study = judged(*world(strength=1.2), {"planted": PLANTED, "random": haar_direction(LAYOUT, "x")}, haar=200)
    for aggregation in ("dot", "cosine", "vote"):
        found = by_source(study, aggregation)
        assert found["planted"]["auroc"]["above_family"] and not found["random"]["auroc"]["above_family"]
        assert found[ORACLE]["auroc"]["value"] > study.family().thresholds["auroc"]
        assert found[ORACLE]["auroc"]["above_family"] is None
        assert found["planted"]["auroc"]["value"] > found["random"]["auroc"]["value"] + 0.2
    found = by_source(study)
    assert found["planted"]["f05"]["above_family"] and not found["random"]["f05"]["above_family"]
    assert found["planted"]["auroc"]["family_p"] <= 0.05


def test_in_a_null_world_a_source_passes_no_more_often_than_alpha_though_single_cells_often_do():
    worlds, alpha = 40, 0.2
    family, cells = 0, 0
    for seed in range(worlds):
        features, hacked = world(n=90, seed=seed)
        sources = {str(i): haar_direction(LAYOUT, "source", seed, i) for i in range(3)}
        study = judged(features, hacked, sources, haar=60, alpha=alpha, seed=seed, aggregations=("dot", "cosine"))
        study.add(Block("residual", "mean", LAYOUT, world(n=90, seed=1000 + seed)[0], sources))
        records = list(facts(study))
        family += any(r["auroc"]["above_family"] for r in records)
        cells += any(r["auroc"]["above_cell"] for r in records)
    assert family <= 14  # binomial(40, 0.2) is above 14 once in a hundred times
    assert cells > 30  # which is why the correction is there


def test_in_a_null_world_poolings_that_are_nearly_the_same_add_no_false_alarms():
    worlds, alpha, poolings = 40, 0.2, ("mean", "last", "max", "last_quarter")
    family = 0
    for seed in range(worlds):
        features, hacked = world(n=90, seed=seed)
        study = Study(hacked, [str(i) for i in range(90)], Design(("dot",), haar=40, alpha=alpha, seed=seed))
        for i, pooling in enumerate(poolings):
            nearly = features + 0.01 * world(n=90, seed=1000 + 10 * seed + i)[0]
            source = {"one": haar_direction(LAYOUT, "source", seed, i)}  # another direction in every pooling
            study.add(Block("residual", pooling, LAYOUT, nearly, source))
        family += any(record["auroc"]["above_family"] for record in facts(study))
    assert family <= 14  # binomial(40, 0.2) is above 14 once in a hundred times


def test_a_random_direction_given_as_a_source_has_the_numbers_of_that_random_direction():
    features, hacked = world(n=120, strength=0.4)
    study = Study(hacked, [str(i) for i in range(120)], Design(haar=60, seed=3, base_rate=0.2))
    for pooling in ("mean", "max"):
        seventh = {"seventh": haar_direction(LAYOUT, 3, 7, "residual", pooling)}
        study.add(Block("residual", pooling, LAYOUT, features, seventh))
    assert study.cells[0].values["seventh"] != study.cells[3].values["seventh"]
    for cell in study.cells:
        chance = {metric: float(cell.chance[metric][7]) for metric in (*METRICS, "flagged")}
        assert cell.values["seventh"] == pytest.approx(chance, abs=1e-9)


def test_the_sign_is_kept():
    found = by_source(judged(*world(strength=1.2), {"with": PLANTED, "against": -PLANTED}, haar=100))
    assert found["with"]["auroc"]["value"] + found["against"]["auroc"]["value"] == pytest.approx(1)
    assert found["against"]["f05"]["value"] < found["with"]["f05"]["value"] / 2


def test_the_oracle_is_judged_on_rows_that_it_was_not_fitted_to():
    held_out, in_sample = [], []
    for seed in range(20):
        features, hacked = world(n=60, seed=seed, rate=0.5)
        leaking = mean_direction((features[hacked].mean(0) - features[~hacked].mean(0)).unsqueeze(0), LAYOUT)
        found = by_source(judged(features, hacked, {"leaking": leaking}, haar=60, seed=seed))
        held_out.append(found[ORACLE]["auroc"]["value"])
        in_sample.append(found["leaking"]["auroc"]["value"])
    assert abs(sum(held_out) / 20 - 0.5) < 0.06  # the mean of 20 has a standard error of about 0.02
    assert sum(in_sample) / 20 > 0.75


def test_rows_of_one_problem_do_not_tell_the_oracle_about_each_other():
    features, hacked = world(n=30, rate=0.5)
    copies, labels, problems = features.repeat(6, 1), hacked.repeat(6), [str(i) for i in range(30)] * 6
    grouped = by_source(judged(copies, labels, {}, problems=problems, haar=60))[ORACLE]["auroc"]["value"]
    apart = by_source(judged(copies, labels, {}, haar=60))[ORACLE]["auroc"]["value"]
    assert apart > 0.8 > 0.7 > grouped


def test_baselines_come_without_a_direction():
    features, hacked = world()
    study = judged(features * (1 + 3 * hacked.unsqueeze(1)), hacked, {}, haar=60)
    study.baseline("label", hacked.float())
    found = {name: values["auroc"] for name, _, _, values in study.baselines}
    assert found["norm of the features"] > 0.99 and found["label"] == 1


def test_the_familys_p_and_threshold_by_hand():
    features, hacked = world(n=60)
    study = judged(features, hacked, {"one": PLANTED, "two": -PLANTED}, haar=99, alpha=0.1)  # 0.05 for each of two
    family = study.family()
    assert family.sources == 2
    assert family.thresholds["auroc"] == family.maxima["auroc"].sort(descending=True).values[4]
    maxima = Family({"auroc": torch.arange(1.0, 10.0)}, {}, 2)
    assert maxima.p_value("auroc", 8.5) == pytest.approx(2 * 2 / 10)
    assert maxima.p_value("auroc", 0.5) == 1


def test_above_the_threshold_and_a_corrected_p_within_alpha_are_the_same():
    features, hacked = world(n=90, strength=1.0)
    given = {str(i): haar_direction(LAYOUT, "source", i) for i in range(3)}
    study = judged(features, hacked, {**given, "planted": PLANTED, "against": -PLANTED}, haar=149, alpha=0.1)
    found = {
        (r[m]["family_p"] <= 0.1, r[m]["above_family"]) for r in facts(study) for m in METRICS if r["source"] != ORACLE
    }
    assert found == {(True, True), (False, False)}


def test_the_best_that_a_cut_allows_is_said():
    hacked = torch.tensor([True] * 40 + [False] * 60)
    study = Study(hacked, [str(i) for i in range(100)], Design())
    assert study.ceiling() == pytest.approx(1.25 * 0.25 / (0.25 + 0.25))  # 10 rows, all hacks: recall 0.25


def test_the_report_warns_where_random_directions_reach_the_best_that_the_cut_allows(tmp_path):
    about = {"model": "a model", "among": "rewarded", "selection": "all", "cpu_seconds": "1"}
    for rate, warned in ((0.9, True), (0.3, False)):
        features, hacked = world(n=120, rate=rate)
        study = judged(features, hacked, {"planted": PLANTED}, haar=100)
        source = StudySource("planted", "authored", HaarRandom(), "one")
        write_results(tmp_path, study, [source], about, ["site x: none"])
        text = (tmp_path / "study.md").read_text()
        assert ("draw to a lower --base-rate" in text) == warned
        assert "- left out: site x: none" in text
        assert "a `*` counts only where the placebos and flipped signs have none" in text
        assert "The cut is a quantile of the rows studied here, a live gate's one of all rows" in text


def voting(n=200, strength=0.0):
    """Three modules vote: ties leave nothing above a cut at 0.1 unless fewer rows than that have all three votes."""
    layout = Layout(("a", "b", "c"), (8, 8, 8))
    generator = torch.Generator().manual_seed(0)
    hacked = torch.rand(n, generator=generator) < 0.3
    features = torch.randn(n, layout.size, generator=generator)
    planted = haar_direction(layout, "planted")
    study = Study(hacked, [str(i) for i in range(n)], Design(haar=60, aggregations=("dot", "vote")))
    moved = features + strength * hacked.unsqueeze(1) * planted
    study.add(Block("residual", "mean", layout, moved, {"planted": planted}))
    return study


def test_a_cell_without_rows_above_the_cut_is_told_from_one_within_chance():
    study = voting(strength=1.4)
    found = {(r["source"], r["aggregation"]): r for r in facts(study)}
    dot, vote = found["planted", "dot"], found["planted", "vote"]
    assert dot["flagged"]["value"] == pytest.approx(0.1) and dot["speaks_at_cut"]
    assert dot["f05"]["above_family"] and dot["f05"]["above_cell"]
    # more than a tenth of the rows has all three votes: the cut is the highest score that there is
    assert vote["flagged"] == {"value": 0.0, "haar_median": pytest.approx(0.0, abs=0.05)}
    assert vote["f05"]["value"] == vote["precision"]["value"] == 0.0
    assert not vote["speaks_at_cut"] and vote["f05"]["above_cell"] is vote["precision"]["above_cell"] is None
    assert vote["auroc"]["above_cell"] and vote["auroc"]["value"] > 0.8
    assert above_chance(facts(study)) == [
        {"source": "planted", "cells": 2, "speaking": 1, "above_cell": 1, "above_family": 1}
    ]


def test_whether_a_cell_speaks_does_not_depend_on_the_labels():
    study = voting(strength=1.4)
    labels = study.hacked[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    other = Study(labels, [str(i) for i in range(200)], study.design)
    features = torch.randn(200, 24, generator=torch.Generator().manual_seed(2))
    layout, source = Layout(("a", "b", "c"), (8, 8, 8)), {"one": haar_direction(Layout(("a",), (24,)), "x")}
    for judged_by in (study, other):
        judged_by.cells.clear()
        judged_by.add(Block("residual", "mean", layout, features, source))
    spoken = [[cell.speaks("one", 0.1) for cell in each.cells] for each in (study, other)]
    assert spoken[0] == spoken[1] and set(spoken[0]) == {True, False}
    for here, there in zip(study.cells, other.cells, strict=True):
        assert torch.equal(here.chance["flagged"], there.chance["flagged"])
        assert here.values["one"]["flagged"] == there.values["one"]["flagged"]


def test_a_source_that_alone_flags_rows_has_no_chance_to_be_held_against():
    study = voting()
    (dot, vote) = study.cells
    silent = {**vote.chance, "flagged": torch.zeros(60)}
    live = {**vote.values["planted"], "flagged": 0.1}
    assert dot.speaks("planted", 0.1)
    assert not replace(vote, chance=silent, values={"planted": live}).speaks("planted", 0.1)
    spread = {**vote.chance, "flagged": torch.full((60,), 0.1)}
    assert replace(vote, chance=spread, values={"planted": live}).speaks("planted", 0.1)
    for share, speaks in ((0.05, True), (0.049, False)):
        here = replace(vote, chance=spread, values={"planted": {**live, "flagged": share}})
        assert here.speaks("planted", 0.1) == speaks


def test_silent_cells_change_no_threshold_of_the_confirmatory_metric():
    study = voting()
    before = study.family()
    silent = replace(study.cells[0], chance={m: torch.zeros_like(v) for m, v in study.cells[0].chance.items()})
    study.cells.append(silent)
    assert study.family().thresholds == before.thresholds
    assert torch.equal(study.family().maxima["f05"], before.maxima["f05"])


def test_the_report_says_what_says_nothing_and_which_metric_is_confirmatory(tmp_path):
    about = {"model": "a model", "among": "rewarded", "selection": "all", "cpu_seconds": "1"}
    pairs = load_pairs("organism:run_tests", n=4)
    sources = [StudySource("planted", "authored", GivenPairs(pairs), "four")]
    shown = write_results(tmp_path, voting(strength=1.4), sources, about, [])
    text = (tmp_path / "study.md").read_text()
    assert "F0.5 at the cut is the confirmatory metric" in text and "marks at the others are descriptive" in text
    assert "That rests on how many of the rows, as drawn, lie above the cut, not on which of them are hacks" in text
    (vote,) = [
        line for line in text.splitlines() if line.startswith("| planted | residual | mean | vote | 4 | 0.000~ (")
    ]
    assert vote.endswith("| 0.000 (0.000) |")
    assert "| planted | 1 of 2 | 1 | 1 |" in text
    assert "- planted (authored, n = 4): four" in text
    assert "| source | site | pooling | aggregation | n | F0.5 at cut |" in shown
    content = json.loads((tmp_path / "study.json").read_text())
    assert content["confirmatory"] == "f05"
    assert content["above_chance"][0]["speaking"] == 1
    assert [source["pairs"] for source in content["sources"]] == [4]
    assert {cell["source"]: cell["pairs"] for cell in content["cells"]} == {"planted": 4, ORACLE: None}


def test_marks_that_say_nothing_are_hollow_and_named_in_the_figures_legend(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "save", lambda figure, path: drawn.append(figure))
    roles = {"planted": "authored", ORACLE: "oracle"}
    for study in (voting(strength=1.4), judged(*world(), {"planted": PLANTED}, haar=60, aggregations=("dot",))):
        report.plot(list(facts(study, roles)), 0.2, tmp_path / "x.png", "title")
    fills = [
        [line.get_fillstyle() for axes in figure.axes for line in axes.lines if len(line.get_xdata()) == 1]
        for figure in drawn
    ]
    assert fills[0] == ["full", "full", "none", "none"] and set(fills[1]) == {"full"}
    for figure in drawn:
        FigureCanvasAgg(figure).draw()
        edges = figure.legends[0].get_window_extent()
        assert edges.x0 >= 0 and edges.x1 <= figure.bbox.x1
    named = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn]
    assert named[0][-1] == "says nothing at the cut" and "says nothing at the cut" not in named[1]


def test_every_mark_of_the_figure_is_inside_it(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "save", lambda figure, path: drawn.append(figure))
    study = judged(*world(strength=3.0), {"planted": PLANTED, "flipped": -PLANTED}, haar=100)
    roles = {"planted": "authored", "flipped": "placebo", ORACLE: "oracle"}
    report.plot(list(facts(study, roles)), 0.2, tmp_path / "x.png", "title")
    (figure,) = drawn
    assert len(figure.axes) == 3
    for axes in figure.axes:
        heights = [y for line in axes.lines for y in line.get_ydata() if line.get_marker() != "None"]
        assert len(heights) == 3 and all(axes.get_ylim()[0] <= y <= axes.get_ylim()[1] for y in heights)


@pytest.mark.parametrize(
    ("design", "message"),
    [
        ({"tail": 0.0}, r"--tail: expected a share in \(0, 0.5\]; got 0.0"),
        ({"base_rate": 1.0}, r"--base-rate: expected a share in \(0, 1\)"),
        ({"aggregations": ("sum",)}, "--aggregations: expected known ones"),
        ({"folds": 1}, "--folds: expected at least 2"),
    ],
)
def test_designs_that_cannot_be_meant_are_refused(design, message):
    with pytest.raises(ValueError, match=message):
        Design(**design)


def test_too_few_random_directions_to_show_anything_are_refused():
    for sources, least in ((1, 19), (5, 99)):
        Design(haar=least).check(sources)
        with pytest.raises(ValueError, match=f"expected at least {least} random directions for {sources} sources"):
            Design(haar=least - 1).check(sources)


def test_folds_that_leave_no_hack_are_refused():
    with pytest.raises(ValueError, match="--folds: expected hacks and other rows outside each of the 5 folds"):
        Study(torch.tensor([True] + [False] * 9), [str(i) for i in range(10)], Design())
