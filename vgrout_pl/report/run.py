"""A run directory, read back: ``<root>/<experiment>/seed<k>/`` with config, metrics and evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vgrout_pl.report.metrics import Metrics
from vgrout_pl.report.results import Results

CONFIG, METRICS, EVALUATION, BLOCKS = "config.yaml", "metrics.csv", "eval.json", "blocks.jsonl"


@dataclass(frozen=True)
class Run:
    """What a run directory holds; a part that is absent is None, a part that is broken is an error at loading.

    Attributes:
        path: the directory.
        config: the run's complete configuration.
        metrics: the logged numbers.
        results: the final evaluation; None: the run has not finished.
    """

    path: Path
    config: Mapping[str, Any] | None
    metrics: Metrics | None
    results: Results | None

    @property
    def experiment(self) -> str:
        """Name of the experiment: the folder above ``seed<k>``, else the directory's own name."""
        directory = self.path.resolve()
        return directory.parent.name if self.seed is not None else directory.name

    @property
    def seed(self) -> int | None:
        """The k of ``seed<k>``, None where the directory is not called so."""
        match = re.fullmatch(r"seed(\d+)", self.path.resolve().name)
        return int(match[1]) if match else None

    @property
    def name(self) -> str:
        """``experiment/seed<k>``."""
        return self.experiment if self.seed is None else f"{self.experiment}/seed{self.seed}"

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read what is there.

        Raises:
            ValueError: not a run directory, or one of its files is broken (with the file named).
        """
        path = Path(path)
        if not is_run_directory(path):
            raise ValueError(f"{path}: expected a run directory, which holds {CONFIG}, {METRICS} or {EVALUATION}")
        return cls(
            path=path,
            config=_load_config(path / CONFIG) if (path / CONFIG).is_file() else None,
            metrics=Metrics.load(path / METRICS) if (path / METRICS).is_file() else None,
            results=Results.load(path / EVALUATION) if (path / EVALUATION).is_file() else None,
        )


def is_run_directory(path: Path) -> bool:
    """Return whether ``path`` holds one of the files that make a run directory."""
    return any((path / name).is_file() for name in (CONFIG, METRICS, EVALUATION))


def find_runs(root: str | Path) -> list[Path]:
    """Return the run directories below ``root`` (an experiment's folder or the one above), sorted by name and seed.

    Raises:
        ValueError: there is no directory ``<experiment>/seed<k>`` or ``seed<k>`` below it.
    """
    root = Path(root)
    found = [path for pattern in ("seed*", "*/seed*") for path in root.glob(pattern) if path.is_dir()]
    if not found:
        raise ValueError(f"{root}: expected run directories called <experiment>/seed<k> below it; found none")
    return sorted(found, key=lambda path: (path.parent.name, len(path.name), path.name))


def _load_config(path: Path) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML; {' '.join(str(error).split())}") from error
    if not isinstance(config, Mapping):
        raise ValueError(f"{path}: expected a mapping of settings; got {type(config).__name__}")
    return config
