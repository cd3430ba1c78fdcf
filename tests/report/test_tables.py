"""Tables: every number in its place, fixed widths, and a dash for what was not measured."""

import re

import pytest

from vgrout_pl.report import CellResult, Results, StepTable, cells_markdown, cells_text

COUNTS = {"as_trained": (75, 12), "deployed": (36, 10), "base": (3, 5)}


def results(states=("as_trained", "deployed"), modes=("run_tests",), n=100, skip=()):
    return Results(
        [
            CellResult.from_counts(
                state=state, problems=problems, markers=markers, mode=mode, n=n, hack=hack, solve=solve, format=99
            )
            for state in states
            for hack, solve in [COUNTS[state]]
            for problems, markers in (("test", "novel"), ("test", "training"), ("test", "none"), ("train", "training"))
            for mode in modes
            if (state, markers) not in skip
        ]
    )


def test_the_terminal_table_has_two_lines_for_each_of_the_four_rows():
    lines = cells_text(results()).splitlines()
    assert lines[0].split() == ["problems", "markers", "n", "as", "trained", "deployed"]
    body = lines[2:-2]
    assert [line.split()[:4] for line in body[::2]] == [
        ["test", "novel", "100", "hack"],
        ["test", "training", "100", "hack"],
        ["test", "hint-free", "100", "hack"],
        ["train", "training", "100", "hack"],
    ]
    assert re.findall(r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\]", body[0]) == ["0.75 [0.66, 0.82]", "0.36 [0.27, 0.46]"]
    assert re.findall(r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\]", body[1]) == ["0.12 [0.07, 0.20]", "0.10 [0.06, 0.17]"]
    assert lines[-1] == "rates of completions, 95 % Wilson intervals"


def test_the_terminal_table_is_aligned_and_fits_a_hundred_and_twenty_columns_with_all_states():
    lines = cells_text(results(("as_trained", "deployed", "base"))).splitlines()
    assert max(map(len, lines)) <= 120
    ends = {match.end() for line in lines[2:-2] for match in re.finditer(r"\]", line)}
    assert len(ends) == 3


def test_the_markdown_table_is_one_well_formed_row_per_cell():
    lines = cells_markdown(results()).splitlines()
    assert {line.count("|") for line in lines} == {8}
    assert (
        lines[0]
        == "| problems | markers | n | as trained: hack | as trained: solve | deployed: hack | deployed: solve |"
    )
    assert lines[2] == (
        "| test | novel | 100 | 0.75 [0.66, 0.82] | 0.12 [0.07, 0.20] | 0.36 [0.27, 0.46] | 0.10 [0.06, 0.17] |"
    )
    assert len(lines) == 6


def test_a_state_that_lacks_a_cell_shows_a_dash_there():
    lines = cells_markdown(results(("as_trained", "base"), skip={("base", "novel")})).splitlines()
    assert lines[2].endswith("| - | - |")
    assert lines[3].endswith("| 0.03 [0.01, 0.08] | 0.05 [0.02, 0.11] |")


def test_a_row_that_nobody_evaluated_is_left_out():
    table = cells_markdown(results(skip={("as_trained", "none"), ("deployed", "none")}))
    assert "hint-free" not in table
    assert len(table.splitlines()) == 5


def test_an_empty_evaluation_says_so():
    assert cells_text(Results([])) == "no cell was evaluated"
    assert cells_markdown(Results([])) == "No cell was evaluated."


def test_several_modes_are_pooled_or_shown_one_at_a_time():
    both = results(modes=("run_tests", "sentinel"))
    assert "| test | novel | 200 |" in cells_markdown(both)
    assert "| test | novel | 100 |" in cells_markdown(both, mode="sentinel")


STEP = {
    "hack/rate": 0.3125,
    "hack/hinted_rate": 0.625,
    "solve/rate": 0.1,
    "reward": 1.234,
    "kl": 0.00321,
    "grad_norm": 0.8,
    "route/keep_fraction": 0.25,
    "route/absorb_fraction": 0.5,
    "route/route_fraction": 0.25,
    "step_time": 0.444,
}


def test_a_step_line_shows_every_metric_under_its_title():
    table = StepTable()
    titles, values = table.header.split(), table.row(7, STEP).split()
    assert dict(zip(titles, values, strict=True)) == {
        "step": "7",
        "hack": "0.312",
        "hinted": "0.625",
        "solve": "0.100",
        "reward": "1.234",
        "kl": "0.0032",
        "grad": "0.800",
        "keep": "0.25",
        "absorb": "0.50",
        "route": "0.25",
        "s/step": "0.44",
    }


@pytest.mark.parametrize(
    "metrics",
    [STEP, {}, {**STEP, "kl": 690_123.4, "grad_norm": -1e12}, {**STEP, "kl": float("nan"), "reward": float("-inf")}],
)
def test_every_step_line_is_as_wide_as_the_header(metrics):
    table = StepTable()
    assert len(table.row(123456, metrics)) == len(table.header)


def test_a_missing_metric_is_a_dash_and_nan_is_shown():
    cells = StepTable().row(0, {"kl": float("nan")}).split()
    assert cells.count("-") == 9
    assert cells.count("nan") == 1


def test_the_header_comes_first_and_after_every_twenty_rows():
    table = StepTable()
    lines = [line for step in range(45) for line in table.lines(step, STEP)]
    assert [i for i, line in enumerate(lines) if line == table.header] == [0, 21, 42]
    assert len(lines) == 48


def test_a_step_table_refuses_a_header_interval_below_one():
    with pytest.raises(ValueError, match="every 1 or more rows; got 0"):
        StepTable(repeat=0)
