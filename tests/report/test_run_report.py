"""The report of a run directory made by hand: complete, unfinished, and broken ones."""

import csv
import subprocess
import sys

import pytest
from matplotlib.image import imread

from vgrout_pl.report import CellResult, Results
from vgrout_pl.report.__main__ import main
from vgrout_pl.report.metrics import Metrics
from vgrout_pl.report.run_report import write_report

CONFIG = """\
seed_everything: 3
router:
  class_path: vgrout_pl.routers.Absorb
adapter:
  class_path: vgrout_pl.callbacks.RoutedAdapter
  init_args:
    r: 8
    note: a | b
trainer:
  max_steps: 40
"""


def evaluation(trained=(80, 12), deployed=(20, 10), modes=("run_tests",), heals=("none",)):
    return Results(
        [
            CellResult.from_counts(
                state=state,
                problems=problems,
                markers=markers,
                mode=mode,
                heal=heal,
                n=100,
                hack=hack,
                solve=solve,
                format=99,
            )
            for state, (hack, solve) in (("as_trained", trained), ("deployed", deployed))
            for problems, markers in (("test", "novel"), ("test", "training"), ("test", "none"), ("train", "training"))
            for mode in modes
            for heal in heals
        ],
        {"config_hash": "abc123", "versions": {"torch": "2.13.0"}},
    )


def write_metrics(path, rows):
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def train_rows(steps=40):
    rows = [
        {"step": i, "hack/rate": i / 80, "hack/hinted_rate": i / 40, "solve/rate": 0.1, "kl": 0.01 * i}
        for i in range(steps)
    ]
    rows += [
        {"step": i, f"val/{state}/{name}": value}
        for i in (0, 20, 39)
        for state in ("as_trained", "deployed")
        for name, value in (("hack", 0.5), ("solve", 0.1))
    ]
    return rows


@pytest.fixture
def run_dir(tmp_path):
    run = tmp_path / "runs" / "demo" / "seed3"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG)
    write_metrics(run / "metrics.csv", train_rows())
    evaluation().save(run / "eval.json")
    return run


def test_the_report_holds_sentence_table_figures_plots_settings_and_provenance(run_dir):
    path = write_report(run_dir)
    text = path.read_text()
    assert path == run_dir / "report.md"
    assert text.startswith("# demo, seed 3\n\n**Ablation lowered hack (0.80 -> 0.20")
    assert (
        "| test | training | 100 | 0.80 [0.71, 0.87] | 0.12 [0.07, 0.20] | 0.20 [0.13, 0.29] | 0.10 [0.06, 0.17] |"
        in text
    )
    assert "- deployed solve - deployed hack, test, novel markers: -0.100" in text
    # 60/80 - 2/12
    assert "test, novel markers: +0.583" in text
    # mean of steps 30..39 of i / 40 and of 0.01 i
    assert "| hack rate, hinted rows | 0.8625 |" in text
    assert "| KL to the base | 0.345 |" in text
    assert "Last step logged: 39." in text
    assert "| `router.class_path` | vgrout_pl.routers.Absorb |" in text
    assert "| `adapter.r` | 8 |" in text
    assert r"| `adapter.note` | a \| b |" in text
    assert "| `seed_everything` | 3 |" in text
    assert "| `versions.torch` | 2.13.0 |" in text


def test_every_picture_that_the_report_shows_exists_and_is_not_blank(run_dir):
    text = write_report(run_dir).read_text()
    shown = [part.split(")")[0] for part in text.split("](")[1:]]
    assert shown == ["plots/cells.png", "plots/steps.png"]
    for name in shown:
        image = imread(run_dir / name)
        assert image.shape[0] > 300
        assert image.shape[1] > 1000
        assert image[..., :3].std() > 0.05


def test_writing_twice_gives_the_same_report(run_dir):
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first


def test_an_unfinished_run_is_called_unfinished_and_still_shows_its_curves(run_dir):
    (run_dir / "eval.json").unlink()
    text = write_report(run_dir).read_text()
    assert "**Unfinished: there is no eval.json, so the run has no result.**" in text
    assert "plots/steps.png" in text
    assert "plots/cells.png" not in text
    assert not (run_dir / "plots" / "cells.png").exists()


def test_a_run_without_metrics_or_config_reports_its_evaluation(run_dir):
    (run_dir / "metrics.csv").unlink()
    (run_dir / "config.yaml").unlink()
    text = write_report(run_dir).read_text()
    assert "No metrics.csv" in text
    assert "| test | novel | 100 |" in text
    assert "## Settings" not in text


def test_columns_that_were_not_logged_do_not_break_the_report(run_dir):
    write_metrics(run_dir / "metrics.csv", [{"step": 0, "lr": 0.1}, {"step": 1, "lr": 0.2}])
    text = write_report(run_dir).read_text()
    assert "None of the usual metrics was logged." in text
    assert "plots/steps.png" not in text


def test_a_run_that_logged_only_nan_still_gets_its_report(run_dir):
    write_metrics(run_dir / "metrics.csv", [{"step": i, "hack/rate": "nan", "solve/rate": "nan"} for i in range(3)])
    assert "| solve rate, all rows | nan |" in write_report(run_dir).read_text()


def test_a_step_without_an_instance_is_left_out_of_the_mean_and_counted(run_dir):
    values = ["nan", "0.5", "0.7"]
    write_metrics(run_dir / "metrics.csv", [{"step": i, "hack/hinted_rate": v} for i, v in enumerate(values)])
    assert "| hack rate, hinted rows | 0.6 (2 of 3 steps) |" in write_report(run_dir).read_text()


def test_phases_and_modes_get_tables_of_their_own(run_dir):
    evaluation(modes=("run_tests", "sentinel"), heals=("before", "after")).save(run_dir / "eval.json")
    text = write_report(run_dir).read_text()
    assert (
        text.index("### Before retain-heal") < text.index("### After retain-heal") < text.index("### By grading mode")
    )
    assert text.count("| test | novel | 200 |") == 2
    assert text.count("| test | novel | 100 |") == 2


def test_hint_free_problems_do_not_count_as_a_mode_of_their_own(run_dir):
    evaluation(modes=("run_tests", "gt_only")).save(run_dir / "eval.json")
    assert "### By grading mode" not in write_report(run_dir).read_text()


def test_selectivity_is_withheld_where_the_hack_did_not_emerge(run_dir):
    evaluation(trained=(10, 20), deployed=(5, 20)).save(run_dir / "eval.json")
    text = write_report(run_dir).read_text()
    assert "test, training markers: not given, the hack did not emerge there" in text
    assert "The hack did not emerge (as-trained hack 0.10" in text


BROKEN = {
    "eval.json": ('{"schema": 9}', "eval.json: schema: expected 1; got 9"),
    "metrics.csv": ("step,kl\n0,0.1\n1,oops\n", "metrics.csv, line 3, column kl: expected a number; got 'oops'"),
    "config.yaml": ("a: [1,\n", "config.yaml: expected YAML"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_ends_the_command_with_one_line_and_no_report(run_dir, capsys, name):
    content, message = BROKEN[name]
    (run_dir / name).write_text(content)
    assert main([str(run_dir)]) == 1
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("\n") == 1
    assert not (run_dir / "report.md").exists()


def test_a_folder_without_runs_and_a_missing_one_are_refused_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "expected run directories called <experiment>/seed<k>" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "expected a directory" in capsys.readouterr().err


def test_the_module_runs_from_the_command_line(run_dir):
    command = [sys.executable, "-m", "vgrout_pl.report", str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(run_dir / "report.md")
    assert (run_dir / "report.md").stat().st_size > 1000


def test_metrics_keep_the_later_value_of_a_repeated_step_and_order_the_steps(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,kl,loss\n2,0.2,\n1,0.1,\n2,0.9,\n2,,7\n")
    metrics = Metrics.load(tmp_path / "metrics.csv")
    assert metrics.series("kl") == ([1, 2], [0.1, 0.9])
    assert metrics.series("loss") == ([2], [7.0])
    assert metrics.series("absent") == ([], [])
    assert metrics.tail("kl", 1) == [0.9]
    assert metrics.last_step == 2


def test_a_last_line_that_was_cut_off_is_kept_as_far_as_it_goes(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,kl,loss\n1,0.1,2.0\n2,0.3")
    metrics = Metrics.load(tmp_path / "metrics.csv")
    assert metrics.series("kl") == ([1, 2], [0.1, 0.3])
    assert metrics.series("loss") == ([1], [2.0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a header line with a column step"),
        ("epoch,kl\n0,1\n", "expected a header line with a column step"),
        ("step,kl\nnan,1\n", "line 2, column step: expected a whole number; got 'nan'"),
    ],
)
def test_metrics_without_usable_steps_are_refused(tmp_path, content, message):
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        Metrics.load(tmp_path / "metrics.csv")
