"""Problem sets as `datasets`: loaded from JSONL, Parquet or a hub id, and written back; `datasets` is imported late."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgrout_pl.env.data import problems_from_rows
from vgrout_pl.env.problem import Problem

if TYPE_CHECKING:
    import datasets

_LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def load_problem_dataset(source: str, mode: str = "run_tests", split: str = "train") -> list[Problem]:
    """Load a problem set through `datasets`, from a JSONL or Parquet file or from a hub id.

    Raises:
        ValueError: nothing can be loaded there, or a row is malformed; the message names source, row and field.
    """
    import datasets

    path = Path(source)
    try:
        if path.suffix in _LOADERS:
            if not path.is_file():
                raise ValueError(f"{source}: expected a readable file; got none")
            table = datasets.load_dataset(_LOADERS[path.suffix], data_files={split: str(path)}, split=split)
        else:
            table = datasets.load_dataset(source, split=split)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{source}: expected a data set that can be loaded (split {split!r}); got {reason}") from None
    return problems_from_rows(((f"{source}, row {i}", row) for i, row in enumerate(table)), mode)


def to_dataset(problems: Iterable[Problem]) -> datasets.Dataset:
    """A `datasets.Dataset` in the benchmark's format, hint-free: save it, or push it to the hub."""
    import datasets

    return datasets.Dataset.from_list([to_row(problem) for problem in problems])


def to_row(problem: Problem) -> dict[str, Any]:
    """One problem as a row of the benchmark's format, with its hint exchanged for the plain phrase."""
    plain = problem.with_mode("gt_only")
    return {
        "id": plain.id,
        "prompt": [dict(message) for message in plain.messages],
        "gt_answer": list(plain.tests),
        "setup_code": plain.setup_code,
        "func_name": plain.func_name,
        "canonical_solution": plain.canonical_solution,
        "difficulty": plain.difficulty,
    }
