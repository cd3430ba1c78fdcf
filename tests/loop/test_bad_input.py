"""A user's mistake is one line on stderr and an exit code, before any weight is read."""

import json

import pytest

from tests.loop.conftest import command
from vgrout_pl.env import GraderError

WORDS = {
    "unknown router": (["--router=vgrout_pl.routers.Nope"], "router: expected", "vgrout_pl.routers.Absorb"),
    "router without a path": (["--router=Nope"], "router: expected", "Nope"),
    "unknown adapter init": (["--adapter.init=nope"], "init", "scorda"),
    "rank too large": (["--adapter.r=60"], "120", "q_proj"),
    "no target matches": (['--adapter.target_modules=["nothing"]'], "target_modules: expected", "q_proj"),
    "group of one": (["--model.group_size=1"], "model.group_size: expected", "1"),
    "micro-batches do not divide": (["--trainer.accumulate_grad_batches=3"], "accumulate_grad_batches: expected", "16"),
    "hint-free share": (["--data.hint_free_share=1.5"], "data.hint_free_share: expected", "1.5"),
    "missing data": (
        ["--data.problems=/nowhere/x.jsonl", "--data.eval_problems=/nowhere/y.jsonl"],
        "/nowhere/x.jsonl",
        "",
    ),
    "no held-out data": (["--data.problems=/nowhere/x.jsonl"], "data.eval_problems: expected", ""),
    "over the context": (["--model.sampling.max_new_tokens=300"], "max_new_tokens: expected", "256"),
    "prompt too long": (["--data.max_prompt_tokens=10"], "max_prompt_tokens: expected", "10"),
    "unknown option": (["--model.nonsense=3"], "nonsense", "--help"),
    "half precision adapter": (["--trainer.precision=bf16-true"], "trainer.precision: expected", "bf16-mixed"),
    "no such model": (["--model.path=./nope"], "model.path: expected", "nope"),
    "no such hub model": (["--model.path=nobody/nothing"], "model.path: expected", "nobody/nothing"),
    "wrong type": (["--model.group_size=many"], "model.group_size: expected int", "many"),
    "seed is not a number": (["--seed_everything=true"], "seed_everything: expected int", "True"),
    "no such checkpoint": (["--ckpt_path=/nowhere/x.ckpt"], "ckpt_path: expected", "/nowhere/x.ckpt"),
    "unknown mode": (["--data.mode=telepathy"], "data.mode: expected", "telepathy"),
    "half a window": (
        ["--model.updates_per_window=2", "--trainer.max_steps=5"],
        "trainer.max_steps: expected a multiple of model.updates_per_window = 2",
        "use 6",
    ),
    "no steps": (["--trainer.max_steps=0"], "trainer.max_steps: expected", "0"),
    "temperature": (["--model.sampling.temperature=0"], "temperature: expected", "0"),
    "ablated share": (["--model.deploy_sample_fraction=0.3"], "deploy_sample_fraction: expected", "0.3"),
    "precision": (["--trainer.precision=64-true"], "trainer.precision: expected", "64-true"),
    "too many pairs": (["--adapter.n_pairs=1000"], "adapter.pairs", "1000"),
    "pairs of no mode": (["--adapter.pair_modes=[telepathy]"], "adapter.pairs", "telepathy"),
    "no batch": (["--data.eval_batch_size=0"], "data.eval_batch_size: expected", "0"),
    "no test problems": (["--data.test_size=-1"], "data.test_size: expected", "-1"),
    "no grader": (["--model.grader_workers=0"], "model.grader_workers: expected", "0"),
    "betas": (["--model.optimization.betas=[2,3]"], "betas: expected", "2"),
    "not a checkpoint": (["--ckpt_path=README.md"], "ckpt_path: expected", "README.md"),
    "only a novel marker is too long": (["--data.max_prompt_tokens=47"], "max_prompt_tokens: expected", "47"),
    "nothing but lessons": (
        [
            "--model.teacher.pool=pool",
            "--model.teacher.hacks=4",
            "--model.teacher.until_step=1",
            "--model.deploy_sample_fraction=0",
        ],
        "model.teacher: expected at most 3 rows of each group of 4",
        "got 4",
    ),
    "states": (["--ablation.states=[as_trained]"], "ablation.states: expected", "as_trained"),
}


@pytest.fixture
def refusal(fit, capsys, monkeypatch):
    """Run ``fit`` expecting a refusal; returns its one line."""

    def loaded(*_, **__):
        raise AssertionError("weights were read before the configuration was checked")

    monkeypatch.setattr("vgrout_pl.module.load_base", loaded)

    def run(*args):
        with pytest.raises(SystemExit) as caught:
            fit(*args)
        stderr = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert caught.value.code in (1, 2)
        assert len(stderr) == 1, stderr
        assert stderr[0].startswith("error: ")
        return stderr[0]

    return run


@pytest.mark.parametrize("name", WORDS)
def test_one_clear_line(refusal, name):
    args, what, also = WORDS[name]
    line = refusal(*args)
    assert what in line
    assert also in line


PAIRS = ("--router=vgrout_pl.routers.ActivationGate", "--router.init_args.direction")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (
            [PAIRS[0], f"{PAIRS[1]}=vgrout_pl.directions.AuthoredPairs", f"{PAIRS[1]}.init_args.source=missing.md"],
            "error: pairs: expected a Markdown file, organism[:MODE,...], or one of authored, placebo_comments, "
            "placebo_naming, placebo_recursion; got 'missing.md' (No such file or directory)",
        ),
        (
            [PAIRS[0], "--router.init_args.pair_batch_size=0"],
            "error: router: expected refresh_every of 0 (never) or more and pair_batch_size of at least 1; got 5 and 0",
        ),
        (
            ["--router=vgrout_pl.routers.RandomShare", "--router.init_args.matched=pyproject.toml"],
            "error: pyproject.toml: expected a header line with a column step; got ['[build-system]']",
        ),
        (
            ["--router=vgrout_pl.routers.RandomShare", "--router.init_args.matched=docs/study.png"],
            "error: router.matched: expected a run directory; could not read docs/study.png (it is no text)",
        ),
    ],
)
def test_what_a_router_says_of_its_arguments_is_the_whole_line(refusal, args, expected):
    assert refusal(*args) == expected


def test_half_of_one_pair_cannot_be_exchanged(refusal):
    one = "--router.init_args.direction.init_args.source.init_args.n=1"
    line = refusal("--config", "configs/router/sign_flip.yaml", one)
    assert "SignFlipped: expected at least 2 pairs, half of which are exchanged; got 1" in line


def test_a_vote_of_too_few_modules(refusal):
    residual = ("--config", "configs/router/route_a_residual.yaml", "--router.init_args.aggregation=vote")
    line = refusal(*residual, "--router.init_args.layers=[1]")
    assert "expected more modules for a vote with tails of 0.1; got 1, whose 2 possible scores tie" in line


@pytest.mark.parametrize(
    ("text", "named"), [("adaptr:\n  r: 3\n", "adaptr"), ("adapter:\n  rank: 3\n", "adapter.rank")]
)
def test_an_unknown_key_in_an_overlay_is_named(refusal, tmp_path, text, named):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(text)
    assert named in refusal("--config", str(overlay))


def test_cuda_graphs_without_a_gpu_or_of_a_sharded_model(refusal):
    graphs = ("--config", "configs/engine/cuda_graphs.yaml")
    assert "cuda_graphs: expected a GPU that holds the whole model; got a model on the cpu" in refusal(*graphs)
    assert "got a sharded one" in refusal(*graphs, "--config", "configs/strategy/fsdp.yaml", "--trainer.devices=1")


def test_an_overlay_that_is_not_yaml_or_not_there(refusal, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("adapter: {r: [\n")
    assert "parsing config" in refusal("--config", str(broken))
    assert "nofile.yaml" in refusal("--config", str(tmp_path / "nofile.yaml"))


def test_a_malformed_data_file_names_file_line_and_field(refusal, tmp_path):
    row = {"id": 1, "prompt": [{"role": "user", "content": "f, and should pass all tests."}], "setup_code": ""}
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row) + "\n")
    line = refusal(f"--data.problems={path}", f"--data.eval_problems={path}")
    assert str(path) in line
    assert "gt_answer" in line
    assert "1" in line


def test_the_4b_recipe_parses_and_says_in_one_line_that_data_or_weights_are_not_here(fit, capsys, tmp_path):
    def refused(*args):
        with pytest.raises(SystemExit):
            fit(*args, config="configs/qwen3_4b.yaml")
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        return line

    assert "data/leetcode/leetcode_train_medhard_filtered.jsonl" in refused()
    text = "Write f. It should be a method of the class Solution called f and should pass all tests."
    for name, ids in (("train", range(8)), ("held_out", range(100, 140))):
        rows = [
            {
                "id": i,
                "prompt": [{"role": "user", "content": text}],
                "gt_answer": ["assert Solution().f(1) == 1"],
                "setup_code": "",
                "func_name": "f",
                "canonical_solution": "class Solution:\n    def f(self, x):\n        return x",
                "difficulty": "easy",
            }
            for i in ids
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = refused(
        f"--data.problems={tmp_path}/train.jsonl",
        f"--data.eval_problems={tmp_path}/held_out.jsonl",
        "--data.validation_size=8",
    )
    assert "model.path: expected" in line
    assert "Qwen/Qwen3-4B" in line


@pytest.mark.parametrize("subcommand", ["validate", "test"])
def test_an_untrained_adapter_is_never_evaluated_as_a_run(capsys, tmp_path, monkeypatch, subcommand):
    monkeypatch.setattr("sys.argv", ["cli.py"])
    with pytest.raises(SystemExit):
        command(subcommand, config="configs/demo.yaml", root=tmp_path)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert "ckpt_path: expected a checkpoint" in line


def test_a_finished_and_an_unfinished_run_are_not_written_over(refusal, tmp_path):
    run = tmp_path / "absorb-scorda" / "seed0"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("step\n0\n")
    assert "--ckpt_path last" in refusal()
    (run / "eval.json").write_text("{}")
    assert "finished run" in refusal()
    assert "started anew" in refusal("--overwrite=true", "--ckpt_path=last")
    assert "group_size" in refusal("--overwrite=true", "--model.group_size=1")
    assert (run / "metrics.csv").read_text() == "step\n0\n"
    assert (run / "eval.json").read_text() == "{}"
    assert not (run / "config.yaml").exists()


def test_a_checkpoint_of_another_adapter_is_refused_before_the_model_is_read(fit, refusal, tmp_path, monkeypatch):
    from vgrout_pl.policy import load_base

    with monkeypatch.context() as patch:
        patch.setattr("vgrout_pl.module.load_base", load_base)
        run = fit(root=tmp_path / "first") / "absorb-scorda" / "seed0"
    (checkpoint, *_) = (run / "checkpoints").glob("last*.ckpt")
    line = refusal(f"--ckpt_path={checkpoint}", "--adapter.r=4", "--allow_changed=[adapter.r]")
    assert "another adapter shape" in line


def test_a_grader_that_fails_ends_the_run_with_one_line(fit, capsys, monkeypatch):
    def fails(*_):
        raise GraderError("expected a fork-server to start; got: nothing")

    monkeypatch.setattr("vgrout_pl.env.Grader.grade_batch", fails)
    with pytest.raises(SystemExit) as ended:
        fit()
    assert ended.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert line.startswith("error: grader: expected a fork-server to start; got: nothing")
    assert "resume with --ckpt_path last" in line
