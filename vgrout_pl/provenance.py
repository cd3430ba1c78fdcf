"""Where a number comes from: everything that must be equal for a run to be repeated."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer

from vgrout_pl import __version__
from vgrout_pl.preflight import data_of, roles

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule

PACKAGES = ("torch", "lightning", "transformers", "peft", "torchmetrics", "jsonargparse", "datasets")


@cache
def source_hash() -> str:
    """Hash of this package's Python files: which code ran, also where no repository is at hand."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def provenance(trainer: Trainer, module: GRPOModule) -> dict[str, object]:
    """Facts of a run as plain data: config hash, seed, model, adapter, router, versions."""
    adapter, router = roles(trainer)
    data = data_of(trainer)
    config = Path(trainer.default_root_dir) / "config.yaml"
    return {
        "config_hash": hashlib.sha256(config.read_bytes()).hexdigest()[:16] if config.is_file() else None,
        "source_hash": source_hash(),
        "seed": data.seed,
        "steps": trainer.global_step or module.trained_steps,
        "model": module.path,
        "dtype": module.dtype_name,
        "adapter": adapter.provenance(),
        "router": type(router).__name__,
        "labels_used": str(router.labels_used),
        "routing": router.provenance(),
        "modes": list(data.modes),
        "world_size": trainer.world_size,
        "grader_isolation": module.grader.isolation["tier"],
        "versions": {"vgrout_pl": __version__, "python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
    }
