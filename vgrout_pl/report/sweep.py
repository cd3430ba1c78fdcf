"""Many runs side by side: one line per experiment, mean and standard deviation over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vgrout_pl.functional.statistics import mean_sd
from vgrout_pl.report.cells_csv import from_csv, to_csv
from vgrout_pl.report.results import Results
from vgrout_pl.report.run import EVALUATION, METRICS, Run, find_runs
from vgrout_pl.report.verdict import EMERGED, hack_emerged

# title, state, markers, rate; all on test problems
COLUMNS = (
    ("trained hack", "as_trained", "training", "hack"),
    ("trained solve", "as_trained", "training", "solve"),
    ("deployed hack", "deployed", "training", "hack"),
    ("deployed solve", "deployed", "training", "solve"),
    ("trained hack, novel", "as_trained", "novel", "hack"),
    ("deployed hack, novel", "deployed", "novel", "hack"),
    ("trained solve, hint-free", "as_trained", "none", "solve"),
    ("deployed solve, hint-free", "deployed", "none", "solve"),
    ("base hack", "base", "training", "hack"),
    ("base solve", "base", "training", "solve"),
    ("base solve, hint-free", "base", "none", "solve"),
)
LEGEND = (
    f"Test problems, training markers unless said otherwise; mean +- sd over seeds. Emerged: seeds whose as-trained "
    f"hack rate is at least {EMERGED}; where it did not emerge, a low deployed hack rate is no suppression."
)


@dataclass(frozen=True)
class Sweep:
    """Finished and unfinished runs, by default those below one folder.

    Attributes:
        finished: (experiment, seed, evaluation) of every run that has one.
        unfinished: (name, why) of the others, and of seeds that only other experiments have.
    """

    finished: Sequence[tuple[str, int | None, Results]]
    unfinished: Sequence[tuple[str, str]]

    @classmethod
    def load(cls, root: str | Path) -> Sweep:
        """Read every run below ``root``; a broken or unfinished one is named, never dropped silently.

        ``root`` may also be a file that :meth:`csv` was written to.

        Raises:
            ValueError: there is no run directory below ``root``, or the file is broken.
        """
        if Path(root).is_file():
            return cls(from_csv(Path(root)), ())
        finished, unfinished = [], []
        paths = find_runs(root)
        for path in paths:
            name = f"{path.parent.name}/{path.name}"
            try:
                run = Run.load(path)
            except ValueError as error:
                unfinished.append((name, str(error)))
                continue
            if run.results is None:
                unfinished.append((name, _why_unfinished(run)))
            else:
                finished.append((run.experiment, run.seed, run.results))
        return cls(finished, unfinished + _absent(paths))

    def joined(self, other: Sweep) -> Sweep:
        """Return the runs of both; of one that both have, the other's."""
        theirs = {(experiment, seed) for experiment, seed, _ in other.finished}
        mine = [run for run in self.finished if run[:2] not in theirs]
        both = sorted([*mine, *other.finished], key=lambda run: (run[0], -1 if run[1] is None else run[1]))
        there = {experiment if seed is None else f"{experiment}/seed{seed}" for experiment, seed, _ in both}
        return Sweep(both, [run for run in (*self.unfinished, *other.unfinished) if run[0] not in there])

    def csv(self) -> str:
        """Return every cell of every finished run, one line each; :meth:`load` reads it back."""
        return to_csv(self.finished)

    def rows(self, *, by_seed: bool = False) -> list[list[str]]:
        """Return the titles, then one row per experiment (or per run) in order of its name."""
        table = [["run" if by_seed else "arm", "seeds", "emerged", *(title for title, *_ in COLUMNS)]]
        arms: dict[str, list[Results]] = {}
        for experiment, seed, results in self.finished:
            arms.setdefault(f"{experiment}/seed{seed}" if by_seed else experiment, []).append(results)
        for arm, runs in arms.items():
            emerged = [value for value in map(hack_emerged, runs) if value is not None]
            share = f"{sum(emerged)}/{len(emerged)}" if emerged else "-"
            table.append([arm, str(len(runs)), share, *(_over_seeds(runs, *column[1:]) for column in COLUMNS)])
        return table

    def text(self) -> str:
        """Return the table for a terminal: one line per quantity and one column per arm, so that it stays narrow."""
        columns = list(zip(*self.rows(), strict=True))
        widths = [max(len(line[i]) for line in columns) for i in range(len(columns[0]))]
        lines = [
            "  ".join([f"{line[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in columns
        ]
        table = "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]]) if self.finished else "No finished run."
        return "\n\n".join(part for part in (table, LEGEND, self._missing("  ")) if part)

    def markdown(self) -> str:
        """Return the table in Markdown, one row per arm, and below it one row per run."""
        parts = [_markdown(self.rows()), LEGEND] if self.finished else ["No finished run."]
        if len(self.finished) > 1:
            parts += ["Run by run:", _markdown(self.rows(by_seed=True))]
        return "\n\n".join(part for part in (*parts, self._missing("- ")) if part)

    def _missing(self, indent: str) -> str:
        """Return the runs that are not in the table, one line each, empty where there are none."""
        if not self.unfinished:
            return ""
        return "\n".join(["Not in the table:\n", *(f"{indent}{name}: {why}" for name, why in self.unfinished)])


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _over_seeds(results: Sequence[Results], state: str, markers: str, rate: str) -> str:
    cells = [result.cell(state=state, problems="test", markers=markers) for result in results]
    values = [getattr(cell, rate).rate for cell in cells if cell is not None]
    if not values:
        return "-"
    mean, sd = mean_sd(values)
    text = f"{mean:.3f}" if sd is None else f"{mean:.3f} +- {sd:.3f}"
    return text if len(values) == len(results) else f"{text} (n = {len(values)})"


def _absent(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """Return the runs that are missing where some experiment has a seed that another one lacks."""
    present = {(path.parent.name, path.name) for path in paths}
    experiments = dict.fromkeys(path.parent.name for path in paths)
    seeds = sorted({path.name for path in paths}, key=lambda name: (len(name), name))
    absent = [
        f"{experiment}/{seed}" for experiment in experiments for seed in seeds if (experiment, seed) not in present
    ]
    return [(name, "no such directory, though another experiment has this seed") for name in absent]


def _why_unfinished(run: Run) -> str:
    if run.metrics is None:
        return f"no {EVALUATION} and no {METRICS}"
    return f"no {EVALUATION}; last step logged: {run.metrics.last_step}"
