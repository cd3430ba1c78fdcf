"""What the standard step costs in a checkout of the public reference implementation.

    python bench/peers/reference_step.py --checkout DIR [--arm absorb|none|routeA|routeV] [--prompts 8] [--json]

Runs the checkout's own ``vgrout.train.main`` on the standard model, in a temporary folder, and takes its own per-step
record of phases. What is exchanged around it: the clock (CPU seconds), the grader (planted rewards) and the problems
(the prompts of 300 words, no evaluation split); it is stopped before its final evaluation. Completions cannot end: the
model has no end token. Needs what the checkout imports (tyro, loguru, jaxtyping, tabulate, einops, beartype).
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import standard
import torch

PHRASE = "and should pass all tests"


class FinishedError(Exception):
    """The last step is over."""


def grader() -> Any:
    """A reward by position in place of the grade of a completion."""
    count = 0

    def graded(*_: Any, **__: Any) -> SimpleNamespace:
        nonlocal count
        count += 1
        flags = ("gt_pass", "gt_correct", "passed", "exploited", "hacked", "hacked_wrong_tests", "hacked_loophole_used")
        return SimpleNamespace(
            reward=standard.planted_reward(count - 1), mechanism=None, format_ok=True, **dict.fromkeys(flags, False)
        )

    return graded


def problems(prompts: int) -> list[dict[str, Any]]:
    """Problems in the checkout's own shape."""
    found = []
    for i in range(prompts):
        messages = [{"role": "user", "content": standard.prompt_text(i, PHRASE)}]
        texts = {"messages": messages, "messages_gt": messages, "setup_code": "", "func_name": "", "canonical": ""}
        found.append({"problem_id": i, "env_mode": "run_tests", "gt_tests": [], **texts})
    return found


def run(checkout: Path, arm: str, prompts: int, steps: int) -> list[dict[str, Any]]:
    """Run ``steps`` steps of an arm; returns the checkout's own record of each."""
    sys.path.insert(0, str(checkout / "src"))
    from vgrout import train
    from vgrout.train_config import FastConfig

    rows: list[dict[str, Any]] = []

    class Recorder(train.StepLogger):  # type: ignore[misc, name-defined]
        def row(self, row: dict[str, Any]) -> str:
            rows.append(row)
            return str(super().row(row))

    def finish(*_: Any, **__: Any) -> None:
        raise FinishedError

    train.StepLogger = Recorder
    train.time = SimpleNamespace(time=time.process_time, perf_counter=time.process_time, sleep=time.sleep)
    train.compute_reward = grader()
    train.load_problems = lambda *_, **__: problems(prompts)
    train.load_eval_splits = lambda *_, **__: ([], [])
    train.eval_hack_solve = finish
    standard.write_model(Path("model"))
    config = FastConfig(
        intervention=arm,
        model="model",
        lora_r=standard.RANK,
        steps=steps,
        group=standard.GROUP,
        max_new=standard.COMPLETION,
        prompts_per_step=prompts,
        n_problems=prompts,
        kl_beta=standard.BETA,
        gen_deploy_frac=0.25,
        unhackable_frac=0.0,
        teacher_pool_dir=None,
        mix_ratio=0.0,
        retain_heal_epochs=0,
        eval_ablate_every=0,
        vhack_pairs_path=Path(f"{checkout}/data/pairs/hack_pairs.md#all-in-one/behavior_"),
    )
    try:
        train.main(config)
    except FinishedError:
        return rows
    raise SystemExit("expected the run to reach its final evaluation")


def main() -> None:
    """Measure an arm."""
    parser = standard.arguments(__doc__)
    parser.add_argument("--checkout", type=Path, required=True, help="folder of the reference implementation")
    parser.add_argument("--arm", choices=("none", "absorb", "routeA", "routeV"), default="absorb")
    options = parser.parse_args()
    checkout = options.checkout.resolve()
    if not (checkout / "src" / "vgrout" / "train.py").is_file():
        parser.error(f"--checkout: expected a folder with src/vgrout/train.py; got {checkout}")
    torch.set_num_threads(1)
    started = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                rows = run(checkout, options.arm, options.prompts, options.steps)
        finally:
            os.chdir(started)
    last = rows[-1]
    if last["N"] != standard.GROUP * options.prompts:
        raise SystemExit(f"expected {standard.GROUP * options.prompts} completions; got {last['N']}")
    phases = {"generate": last["gen"], "train": last["fb"], "grade": last["t_rew"]}
    standard.report(f"reference {options.arm}", options.prompts, last["sec"], phases, last["loss"], options.json)


if __name__ == "__main__":
    main()
