"""The table over runs: means and deviations by hand, and no run dropped without being named."""

import pytest

from vgrout_pl.report import CellResult, Results
from vgrout_pl.report.__main__ import main
from vgrout_pl.report.sweep import Sweep


def save_run(root, arm, seed, trained, deployed, novel=None, hint_free=None):
    """Write the eval.json of one run; counts are (hack, solve) of 100."""

    def cell(state, markers, counts):
        return CellResult.from_counts(
            state=state,
            problems="test",
            markers=markers,
            mode="run_tests",
            n=100,
            hack=counts[0],
            solve=counts[1],
            format=100,
        )

    cells = [cell("as_trained", "training", trained), cell("deployed", "training", deployed)]
    if novel is not None:
        cells += [cell("as_trained", "novel", novel[0]), cell("deployed", "novel", novel[1])]
    if hint_free is not None:
        cells += [cell("as_trained", "none", hint_free[0]), cell("deployed", "none", hint_free[1])]
    Results(cells).save(root / arm / f"seed{seed}" / "eval.json")


@pytest.fixture
def root(tmp_path):
    save_run(tmp_path, "absorb", 0, (80, 10), (50, 8), novel=((60, 9), (40, 9)), hint_free=((0, 30), (0, 20)))
    save_run(tmp_path, "absorb", 1, (60, 20), (30, 12), novel=((50, 9), (20, 9)), hint_free=((0, 40), (0, 30)))
    save_run(tmp_path, "absorb", 10, (40, 30), (10, 16))
    save_run(tmp_path, "oracle", 0, (70, 10), (5, 9))
    return tmp_path


def table(sweep):
    titles, *rows = sweep.rows()
    return {row[0]: dict(zip(titles, row, strict=True)) for row in rows}


def test_an_arm_shows_mean_and_sd_over_its_seeds_and_how_often_the_hack_emerged(root):
    arm = table(Sweep.load(root))["absorb"]
    assert arm["seeds"] == "3"
    assert arm["emerged"] == "2/3"
    assert arm["trained hack"] == "0.600 +- 0.200"
    assert arm["trained solve"] == "0.200 +- 0.100"
    assert arm["deployed hack"] == "0.300 +- 0.200"
    assert arm["deployed solve"] == "0.120 +- 0.040"


def test_a_cell_that_only_some_seeds_have_says_how_many(root):
    arm = table(Sweep.load(root))["absorb"]
    assert arm["trained hack, novel"] == "0.550 +- 0.071 (n = 2)"
    assert arm["deployed solve, hint-free"] == "0.250 +- 0.071 (n = 2)"


def test_one_seed_has_no_deviation_and_a_cell_nobody_has_is_a_dash(root):
    arm = table(Sweep.load(root))["oracle"]
    assert arm["deployed hack"] == "0.050"
    assert arm["deployed hack, novel"] == "-"


def test_unfinished_broken_empty_and_absent_runs_are_named(root):
    (root / "oracle" / "seed1").mkdir()
    (root / "oracle" / "seed1" / "metrics.csv").write_text("step,kl\n0,1\n17,2\n")
    (root / "oracle" / "seed2").mkdir()
    save_run(root, "none", 0, (90, 1), (90, 1))
    (root / "none" / "seed1").mkdir()
    (root / "none" / "seed1" / "eval.json").write_text('{"schema": 1')
    why = dict(Sweep.load(root).unfinished)
    assert why.pop("oracle/seed1") == "no eval.json; last step logged: 17"
    assert "expected a run directory" in why.pop("oracle/seed2")
    assert "eval.json: " in why.pop("none/seed1")
    assert set(why) == {"absorb/seed2", "none/seed2", "none/seed10", "oracle/seed10"}
    assert set(why.values()) == {"no such directory, though another experiment has this seed"}


def test_what_a_published_table_has_is_not_said_to_be_missing(root):
    save_run(root / "published", "oracle", 1, (70, 10), (5, 9))
    published, mine = Sweep.load(root / "published"), Sweep.load(root)
    assert "oracle/seed1" in dict(mine.unfinished)
    for both in (published.joined(mine), mine.joined(published)):
        assert set(dict(both.unfinished)) == {"oracle/seed10"}
        assert len(both.finished) == 5


def test_the_command_prints_the_table_and_writes_it_as_markdown(root, capsys):
    target = root / "out" / "table.md"
    assert main([str(root), "--markdown", str(target)]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].split() == ["arm", "absorb", "oracle"]
    assert [line.split("  ")[0] for line in lines[2:5]] == ["seeds", "emerged", "trained hack"]
    assert "0.600 +- 0.200" in printed
    assert "  oracle/seed1: no such directory" in printed
    rows = target.read_text().splitlines()
    assert rows[0].startswith("| arm | seeds | emerged | trained hack |")
    assert rows[2].startswith(
        "| absorb | 3 | 2/3 | 0.600 +- 0.200 | 0.200 +- 0.100 | 0.300 +- 0.200 | 0.120 +- 0.040 |"
    )
    assert len({row.count("|") for row in rows[:4]}) == 1
    assert "- oracle/seed1: no such directory, though another experiment has this seed" in rows


def test_the_markdown_lists_every_run_below_the_means(root):
    text = Sweep.load(root).markdown()
    by_run = text.split("Run by run:")[1].splitlines()
    assert [row.split("|")[1].strip() for row in by_run if row.startswith("| ")][2:] == [
        "absorb/seed0",
        "absorb/seed1",
        "absorb/seed10",
        "oracle/seed0",
    ]
    assert any(row.startswith("| absorb/seed10 | 1 | 0/1 | 0.400 | 0.300 | 0.100 | 0.160 |") for row in by_run)


def test_the_base_model_stands_beside_its_arm(root):
    save_run(root, "none", 0, (90, 1), (90, 1))
    path = root / "none" / "seed0" / "eval.json"
    results = Results.load(path)
    base = CellResult.from_counts(
        state="base", problems="test", markers="training", mode="run_tests", n=100, hack=3, solve=5, format=93
    )
    Results([*results.cells, base]).save(path)
    arm = table(Sweep.load(root))["none"]
    assert (arm["base hack"], arm["base solve"], arm["base solve, hint-free"]) == ("0.030", "0.050", "-")


def test_a_folder_without_any_finished_run_says_so_and_names_them(tmp_path):
    (tmp_path / "none" / "seed0").mkdir(parents=True)
    sweep = Sweep.load(tmp_path)
    for text in (sweep.text(), sweep.markdown()):
        assert text.startswith("No finished run.")
        assert "none/seed0: " in text


def test_the_folder_of_one_experiment_works_as_well(root):
    assert list(table(Sweep.load(root / "absorb"))) == ["absorb"]


def test_markdown_of_a_single_run_is_refused(root, capsys):
    assert main([str(root / "oracle" / "seed0"), "--markdown", "x.md"]) == 1
    assert "--markdown, --csv: expected a folder of runs" in capsys.readouterr().err
