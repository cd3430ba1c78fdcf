"""What a person reads: one line for a mistake, no noise for the rest."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from typing import TextIO

import transformers
from lightning.pytorch.utilities import rank_zero_only

from vgrout_pl.routers import Router


def fail(message: str, code: int = 1) -> int:
    """Print one line to stderr, which names the process where it is not the first, and return the exit code."""
    rank = getattr(rank_zero_only, "rank", 0)
    sys.stderr.write(f"error: {f'process {rank}: ' if rank else ''}{message}\n")
    return code


def condensed(message: str) -> str:
    """Say a parser's message in one line: what was expected, what came, what to do."""
    if 'key "router"' in message:
        given = re.search(r"Given value: (\S+)", message) or re.search(r"class_path '([^']+)'", message)
        known = ", ".join(f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}" for kind in Router.__subclasses__())
        return (
            f"router: expected {known} or the import path of another Router; got "
            f"{given.group(1) if given else 'something else'}; use --config configs/router/<name>.yaml"
        )
    if 'key "model.engine"' in message and "dot import path" in message:
        given = re.search(r"Given value: (\S+)", message)
        return (
            "model.engine: expected null, vgrout_pl.engines.ServerEngine or the import path of another RolloutEngine; "
            f"got {given.group(1) if given else 'something else'}; use --config configs/engine/server.yaml"
        )
    line = re.sub(r"\s+", " ", "; ".join(part.strip(" -") for part in message.splitlines() if part.strip(" -")))
    line = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", line)
    line = re.sub(r'Parser key "([^"]+)":;? ?', r"\1: ", line)
    line = re.sub(r"Expected an? (.+?)\. Got value: (.*)", r"expected \1; got \2", line)
    line = re.sub(r"Subcommand '(\w+)' does not accept option '([^']+)'", r"expected an option of \1; got \2", line)
    return f"{line}; python cli.py fit --help lists the options"


class _StdoutHandler(logging.StreamHandler):
    """Writes to whatever stdout is at that time: stderr is for what went wrong."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """Stay with stdout."""


def quiet() -> None:
    """Silence messages that tell a user of this command line nothing to act on."""
    for message in (
        r".*module\(s\) in eval mode at the start of training.*",
        r"You have overridden `\w+` in `LightningModule` but have passed in a `LightningDataModule`.*",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated.*",
        r"`is_gradient_checkpointing` is deprecated.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*does not have many workers.*",
        r"`broadcast_buffers` is deprecated.*",
        r"torch.distributed.nn.functional.all_gather is deprecated.*",
        r"It is recommended to use `self.log\('val/.*sync_dist=True.*",  # they are rates over all processes already
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers = [
            _StdoutHandler() if type(handler) is logging.StreamHandler else handler for handler in logger.handlers
        ]
    chatter = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    chatter.addFilter(lambda record: "Tip:" not in record.getMessage())
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
