"""A run that gets a signal at a chosen moment: ``python -m tests.loop.killing SIGKILL POINT fit --config ...``.

POINT is ``name@step`` or ``name@step#n``: the n-th time that the moment comes while ``step`` optimizer steps are done.
The signal goes to the whole process group, as a terminal's does. The moments are put in from here; the package knows
nothing of them.
"""

import functools
import os
import signal
import sys
from pathlib import Path

import torch


class Point:
    def __init__(self, number, text):
        self.number = number
        self.name, _, rest = text.partition("@")
        step, _, count = rest.partition("#")
        self.step, self.left = int(step), int(count or 1)
        self.now = 0

    def reached(self, name):
        """Count one more passing of a moment; whether it is the one."""
        if name != self.name or self.now != self.step:
            return False
        self.left -= 1
        return self.left == 0

    def passing(self, name):
        if self.reached(name):
            self.strike()

    def strike(self):
        os.killpg(0, self.number)


def replace_everywhere(function, wrapper):
    """Put a wrapper in the place of a function in every module of the package that imported it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("vgrout_pl"):
            for key, value in list(vars(module).items()):
                if value is function:
                    setattr(module, key, wrapper)


def around(point, owner, method, before=None, after=None):
    """Kill before or after a method of a class."""
    original = getattr(owner, method)

    @functools.wraps(original)
    def wrapper(*args, **kwargs):
        if before:
            point.passing(before)
        result = original(*args, **kwargs)
        if after:
            point.passing(after)
        return result

    setattr(owner, method, wrapper)


def follow_the_step(point):
    """Keep ``point.now``: the optimizer steps that are done."""
    import vgrout_pl.callbacks.checkpoint as checkpoint
    from vgrout_pl.module import GRPOModule

    original = checkpoint.WindowCheckpoint.on_window_boundary

    def boundary(self, trainer, module):
        point.now = trainer.global_step
        original(self, trainer, module)

    checkpoint.WindowCheckpoint.on_window_boundary = boundary
    for hook in (
        "training_step",
        "on_before_optimizer_step",
        "validation_step",
        "test_step",
        "on_fit_start",
        "on_train_start",
    ):
        follow(point, GRPOModule, hook)
    follow(point, checkpoint.WindowCheckpoint, "on_train_end", trainer=0)


def follow(point, owner, hook, trainer=None):
    original = getattr(owner, hook)

    @functools.wraps(original)
    def wrapper(self, *args, **kwargs):
        known = self.trainer if trainer is None else args[trainer]
        point.now = known.global_step or getattr(self, "trained_steps", 0)
        return original(self, *args, **kwargs)

    setattr(owner, hook, wrapper)


def in_the_step(point):
    """generation, grading, scoring, forward, backward, optimizer."""
    from transformers import Qwen3Model

    from vgrout_pl.env import Grader
    from vgrout_pl.generation import generate
    from vgrout_pl.module import GRPOModule
    from vgrout_pl.scoring import score_completions

    inside = []

    @functools.wraps(generate)
    def generating(*args, **kwargs):
        inside.append(True)
        try:
            return generate(*args, **kwargs)
        finally:
            inside.pop()

    replace_everywhere(generate, generating)
    forward = Qwen3Model.forward

    @functools.wraps(forward)
    def pass_through(*args, **kwargs):
        if inside:
            point.passing("generation")
        return forward(*args, **kwargs)

    Qwen3Model.forward = pass_through

    @functools.wraps(score_completions)
    def scoring(*args, **kwargs):
        point.passing("forward" if torch.is_grad_enabled() else "scoring")
        return score_completions(*args, **kwargs)

    replace_everywhere(score_completions, scoring)
    around(point, Grader, "grade_batch", before="grading", after="graded")
    around(point, GRPOModule, "backward", before="backward", after="backward done")
    around(point, torch.optim.AdamW, "step", before="optimizer", after="optimizer done")


def in_files(point):
    """Half-written lines, half-written checkpoints, and the renaming of finished files."""
    from vgrout_pl import checkpoint_io
    from vgrout_pl.run_directory import append

    @functools.wraps(append)
    def torn(path, data):
        if point.reached(f"line of {path.name}"):
            with path.open("ab") as file:
                file.write(data[: len(data) // 2])
            point.strike()
        append(path, data)

    replace_everywhere(append, torn)
    around(point, checkpoint_io._Sink, "write", before="checkpoint bytes")
    replace = Path.replace

    def renaming(self, target):
        point.passing(f"place of {Path(target).name}")
        return replace(self, target)

    Path.replace = renaming
    checkpoint_io._sync_directory = _before(point, "checkpoint done", checkpoint_io._sync_directory)


def _before(point, name, function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        point.passing(name)
        return function(*args, **kwargs)

    return wrapper


def around_training(point):
    """validation, final evaluation, export, report."""
    from vgrout_pl.adapters import export_deployed
    from vgrout_pl.callbacks import DeployAblation, PeriodicValidation
    from vgrout_pl.module import GRPOModule
    from vgrout_pl.report.run_report import write_report

    around(point, GRPOModule, "validation_step", before="validation")
    around(point, PeriodicValidation, "on_validation_epoch_end", before="validation over", after="validation counted")
    around(point, GRPOModule, "test_step", before="evaluation")
    around(point, DeployAblation, "on_test_epoch_end", before="evaluation over")

    @functools.wraps(export_deployed)
    def exporting(*args, **kwargs):
        point.passing("export")
        export_deployed(*args, **kwargs)
        point.passing("exported")

    replace_everywhere(export_deployed, exporting)
    replace_everywhere(write_report, _before(point, "report", write_report))


def main():
    point = Point(signal.Signals[NAME], POINT)
    sys.argv = ["cli.py"]  # Lightning reads it beside the arguments that it is given
    from vgrout_pl import cli

    in_the_step(point)
    in_files(point)
    around_training(point)
    follow_the_step(point)  # around all others: the step is known when a moment comes
    cli.main(ARGUMENTS)


if __name__ == "__main__":
    NAME, POINT, *ARGUMENTS = sys.argv[1:]
    main()
