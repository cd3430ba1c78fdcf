"""The organism's command line."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from vgrout_pl.organism.__main__ import main
from vgrout_pl.organism.card import read_recipe_hash
from vgrout_pl.organism.corpus import Recipe, recipe_hash


def test_warm_start_writes_a_checkpoint_with_its_card_and_prints_its_figures(tmp_path, capsys):
    out = tmp_path / "organism"
    arguments = ["warm-start", "--out", str(out), "--steps", "2", "--seed", "5", "--problems", "2"]
    assert main(arguments) == 0
    assert read_recipe_hash(out) == recipe_hash(Recipe(steps=2, seed=5))
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == len(AutoTokenizer.from_pretrained(out)) == 640
    printed = capsys.readouterr().out
    for row in ("| run_tests |", "| eq_override |", "| file_marker, novel |", "| gt_only |", "| gt_only, greedy |"):
        assert row in printed
        assert row in (out / "README.md").read_text()
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: expected --out to name a new or empty directory; ")


def test_evaluate_prints_the_figures_of_the_shipped_checkpoint(capsys):
    assert main(["evaluate", "--problems", "4", "--repeats", "1", "--split", "fresh"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "| prompt | format | solve | hack | tokens | n |"
    assert len(printed) == 2 + 7 + 4 + 1
    assert printed[-1].startswith("| gt_only, greedy | ")
    assert printed[-1].endswith(" 4 |")


def test_problems_prints_prompts_solutions_and_tests(capsys):
    assert main(["problems", "--split", "test", "--mode", "sentinel", "--n", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("## test-") == 2
    assert printed.count("and will be evaluated by reading Solution().valid.") == 2
    assert printed.count("assert Solution().solve([") == 10
    assert printed.count("        return ") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["evaluate", "--path", "/nowhere"],
            "error: expected a checkpoint directory with a config.json; got '/nowhere'\n",
        ),
        (["evaluate", "--repeats", "0"], "error: expected --repeats of at least 1; got 0\n"),
        (["warm-start", "--out", "/nowhere", "--steps", "0"], "error: expected steps of at least 1; got 0\n"),
        (["warm-start", "--out", "/nowhere", "--threads", "0"], "error: expected --threads of at least 1; got 0\n"),
        (["problems", "--n", "-1"], "error: expected --n of at least 1; got -1\n"),
    ],
)
def test_a_users_mistake_is_one_line_on_stderr(arguments, message, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == message
    assert captured.out == ""


@pytest.mark.parametrize("command", [[], ["warm-start"], ["evaluate"], ["problems"]])
def test_help_says_what_the_options_mean(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help"])
    assert exit_.value.code == 0
    assert "--help" in capsys.readouterr().out
