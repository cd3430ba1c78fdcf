"""Every experiment's own command line parses, and passes every check that needs no weights."""

import json
import shlex
from pathlib import Path

import pytest
from transformers import AutoTokenizer, Qwen3Config

from vgrout_pl import organism
from vgrout_pl.cli import RunCLI, main
from vgrout_pl.organism import problems
from vgrout_pl.resume import changed_settings

EXPERIMENTS = sorted(Path("configs/experiment").glob("*.yaml"))
ON_4B = [path for path in EXPERIMENTS if "qwen3_4b" in path.read_text()]
CHECKED = {"headline_scorda", "route_v", "ariahw_baseline"}
CHANGED = {
    "ceiling": {"router.class_path", "model.deploy_sample_fraction", "data.hint_free_share"},
    "gaussian": {"adapter.init"},
    "none": {"router.class_path", "heal.steps"},
    "none_matched": {"router.class_path", "model.deploy_sample_fraction"},
    "oracle": {"router.class_path", "model.deploy_sample_fraction", "model.objective.delta"},
    "random_share": {"router.class_path", "model.deploy_sample_fraction", "model.objective.delta"},
    "scorda_rev": {"adapter.init"},
    "shrinkage": {"router.class_path", "heal.steps"},
}
"""What each control of the headline changes of it, beside its name and its router's own arguments."""
CASES = [pytest.param(path, marks=() if path.stem in CHECKED else pytest.mark.full) for path in ON_4B]
WIDTHS = {
    "hidden_size": 2560,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}


class Reached(Exception):
    """Stops a run where the weights would be read."""


def command(path):
    """The arguments of the command in a file's first comment, which may go on after a backslash."""
    text = path.read_text().replace("\\\n#", "")
    first = text.splitlines()[0]
    assert first.startswith("# python cli.py fit "), first
    return shlex.split(first.removeprefix("# python cli.py "))


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory):
    """A directory with a configuration of Qwen3-4B's widths and a tokenizer, but no weights."""
    folder = tmp_path_factory.mktemp("qwen3_4b")
    Qwen3Config(**WIDTHS, num_hidden_layers=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(organism.CHECKPOINT).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Problems in the benchmark's format."""
    folder = tmp_path_factory.mktemp("leetcode")
    written = {}
    for name, split, count in (("problems", "train", 40), ("eval_problems", "test", 40)):
        path = folder / f"{name}.jsonl"
        with path.open("w") as file:
            for problem in problems(split, mode="gt_only")[:count]:
                record = {
                    "id": f"{split}-{problem.id}",
                    "prompt": [dict(message) for message in problem.messages],
                    "gt_answer": list(problem.tests),
                    "setup_code": problem.setup_code,
                    "func_name": "solve",
                    "canonical_solution": problem.canonical_solution,
                    "difficulty": "easy",
                }
                file.write(json.dumps(record) + "\n")
        written[name] = path
    return written


@pytest.fixture
def parsed(monkeypatch):
    """The settings that a command line of ``fit`` gives."""
    seen = {}

    def look(self):
        seen.update(self.config[self.subcommand].as_dict())
        raise Reached

    def parse(args):
        seen.clear()
        with pytest.raises(Reached):
            main(args)
        return dict(seen)

    monkeypatch.setattr(RunCLI, "instantiate_classes", look)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    return parse


def test_the_controls_of_the_headline_change_what_they_say_and_nothing_else(parsed):
    headline = parsed(command(Path("configs/experiment/headline_scorda.yaml")))
    for control, expected in CHANGED.items():
        settings = parsed(command(Path(f"configs/experiment/headline_{control}.yaml")))
        changed = {key for key in changed_settings(headline, settings) if not key.startswith("router.init_args.")}
        assert changed - {"config", "name"} == expected, control
        assert settings["name"] == f"headline_{control}"


def test_the_gates_and_their_placebos_differ_in_the_direction_alone(parsed):
    for name in ("route_a", "route_v"):
        gate, placebo = (parsed(command(Path(f"configs/experiment/{name}{end}.yaml"))) for end in ("", "_haar"))
        changed = {key for key in changed_settings(gate, placebo) if not key.startswith("router.init_args.direction.")}
        assert changed == {"config", "name"}
        assert placebo["router"]["init_args"]["direction"]["class_path"].endswith("HaarRandom")


def test_every_strategy_parses_and_changes_nothing_but_the_trainer(parsed):
    demo = parsed(["fit", "--config=configs/demo.yaml"])
    strategies = sorted(Path("configs/strategy").glob("*.yaml"))
    assert len(strategies) >= 4
    for path in strategies:
        settings = parsed(["fit", "--config=configs/demo.yaml", f"--config={path}"])
        assert all(key == "config" or key.startswith("trainer.") for key in changed_settings(demo, settings)), path


def test_every_experiment_on_the_real_model_says_what_it_takes_and_has_a_name_of_its_own():
    texts = {path.stem: path.read_text() for path in ON_4B}
    assert [name for name, text in texts.items() if f"\nname: {name}\n" not in text] == []
    assert [name for name, text in texts.items() if "GB" not in text or "H200" not in text] == []


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_its_command_passes_every_check_before_the_weights(path, one_layer, files, tmp_path, monkeypatch):
    reached = []

    def stop(*settings):
        reached.append(settings)
        raise Reached

    monkeypatch.setattr("vgrout_pl.module.load_base", stop)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    overrides = {
        "model.path": one_layer,
        **{f"data.{name}": file for name, file in files.items()},
        "trainer.default_root_dir": tmp_path,
        "trainer.accelerator": "cpu",
    }
    with pytest.raises(Reached):
        main([*command(path), *(f"--{key}={value}" for key, value in overrides.items())])
    assert reached == [(str(one_layer), "bfloat16", None)]


def test_the_headline_is_the_published_setting(parsed):
    seen = parsed(command(Path("configs/experiment/headline_scorda.yaml")))
    model, objective = seen["model"], seen["model"]["objective"]
    assert (seen["seed_everything"], seen["trainer"]["max_steps"]) == (44, 100)
    assert (model["optimization"]["lr"], objective["beta"]) == (1e-5, 1e-2)
    assert (objective["loss_type"], objective["reward_scale"]) == ("grpo", "group")
    assert (seen["data"]["hint_free_share"], model["deploy_sample_fraction"]) == (0.25, 0.0)
    assert (seen["adapter"]["init"], seen["adapter"]["r"], seen["heal"]["steps"]) == ("scorda", 32, 1)
    assert (seen["data"]["prompts_per_step"], model["group_size"], model["sampling"]["max_new_tokens"]) == (8, 8, 512)
    assert (model["sampling"]["temperature"], model["sampling"]["top_p"], model["sampling"]["top_k"]) == (0.6, 0.95, 20)
