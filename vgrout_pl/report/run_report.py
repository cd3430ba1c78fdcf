"""``report.md`` of one run, with its two plots, made from the run directory alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vgrout_pl.report.blocks import BlockRecords, blocks_markdown, plot_blocks
from vgrout_pl.report.files import write_atomically
from vgrout_pl.report.guard import guard_markdown
from vgrout_pl.report.metrics import Metrics
from vgrout_pl.report.plots import plot_cells, plot_steps
from vgrout_pl.report.results import Results
from vgrout_pl.report.run import BLOCKS, EVALUATION, METRICS, Run
from vgrout_pl.report.tables import PHASE_NAMES, cells_markdown
from vgrout_pl.report.verdict import EMERGED, headline, selectivity, verdict

LAST = 10
CURVES = (
    ("hack/hinted_rate", "hack rate, hinted rows"),
    ("solve/rate", "solve rate, all rows"),
    ("format/rate", "format rate"),
    ("reward", "reward"),
    ("kl", "KL to the base"),
    ("grad_norm", "gradient norm"),
    ("frac_reward_zero_std", "groups without reward variance"),
    ("route/keep_fraction", "rows kept"),
    ("route/absorb_fraction", "rows absorbed"),
    ("route/route_fraction", "rows routed"),
    ("quarantine/grad_share", "quarantine's share of the gradient"),
    ("quarantine/delta_share", "quarantine's share of the delta"),
    ("completions/mean_length", "tokens per completion"),
    ("step_time", "seconds per step"),
)
HINT_FREE = "gt_only"
ROLES = ("router", "adapter", "model", "data")


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.md`` and ``plots/*.png`` into a run directory from what the run left there.

    Parts that the run lacks are said to be missing; an unfinished run gets a report of what it has.

    Returns:
        The path of ``report.md``.

    Raises:
        ValueError: not a run directory, or one of its files is broken; one line that names the file.
    """
    run = Run.load(run_dir)
    plots = run.path / "plots"
    title = f"{run.experiment}, seed {run.seed}" if run.seed is not None else run.experiment
    curves = run.metrics is not None and plot_steps(run.metrics, plots / "steps.png", title=title)
    cells = run.results is not None and plot_cells(run.results, plots / "cells.png", title=title)
    sections = [f"# {title}", *_evaluation(run.results, drawn=cells), *guard_markdown(run.path)]
    sections += _training(run.metrics, drawn=curves)
    sections += _blocks(run.path, title)
    sections += _settings(run.config, run.results)
    path = run.path / "report.md"
    write_atomically(path, "\n\n".join(sections) + "\n")
    return path


def _evaluation(results: Results | None, *, drawn: bool) -> Iterator[str]:
    """Yield the sentence, the table(s), the derived figures and the bars."""
    if results is None:
        yield f"**Unfinished: there is no {EVALUATION}, so the run has no result.**"
        return
    if not results.cells:
        yield f"**The evaluation in {EVALUATION} is empty.**"
        return
    yield f"**{verdict(results)}**"
    yield "## Evaluation"
    for phase in results.heals:
        if phase != "none":
            yield f"### {PHASE_NAMES[phase].capitalize()}"
        yield cells_markdown(results, heal=phase)
        if phase == "after":
            yield verdict(results, heal=phase)
    yield "Rates of completions with 95 % Wilson intervals; states share prompts and sampling seeds."
    yield "\n".join(_derived(results))
    if drawn:
        yield "![hack and solve rates of every cell with their intervals](plots/cells.png)"
    loopholes = [mode for mode in results.modes if mode != HINT_FREE]
    if len(loopholes) > 1:
        yield "### By grading mode"
        for mode in loopholes:
            yield f"`{mode}`:\n\n{cells_markdown(results, mode=mode)}"


def _derived(results: Results) -> Iterator[str]:
    """Yield the figures that are computed from cells, as list items."""
    for markers in ("novel", "training"):
        value = headline(results, markers=markers)
        yield f"- deployed solve - deployed hack, test, {markers} markers: {_signed(value)}"
    for markers in ("novel", "training"):
        trained = results.cell(state="as_trained", problems="test", markers=markers)
        text = _signed(selectivity(results, markers=markers))
        if trained is not None and trained.hack.high < EMERGED:
            text = "not given, the hack did not emerge there"
        yield f"- selectivity (relative drop of hack - of solve), test, {markers} markers: {text}"


def _training(metrics: Metrics | None, *, drawn: bool) -> Iterator[str]:
    """Yield the curves and the means over the last windows."""
    yield "## Training"
    if metrics is None or metrics.last_step is None:
        yield f"No {METRICS}, or nothing in it."
        return
    if drawn:
        yield "![hack and solve rates over the optimizer steps](plots/steps.png)"
    tails = [(text, metrics.tail(name, LAST)) for name, text in CURVES]
    lines = [f"| mean of the last logged steps (at most {LAST}) | |", "| --- | ---: |"]
    lines += [f"| {text} | {_mean(values)} |" for text, values in tails if values]
    yield "\n".join(lines) if len(lines) > 2 else "None of the usual metrics was logged."
    yield f"Last step logged: {metrics.last_step}."


def _blocks(run: Path, title: str) -> Iterator[str]:
    """Yield what the two blocks learned, where it was measured."""
    records = BlockRecords.load(run / BLOCKS) if (run / BLOCKS).is_file() else BlockRecords({})
    if not records.steps:
        return
    yield "## Blocks"
    yield blocks_markdown(records)
    yield (
        "Change: Frobenius norm of what a block adds to the weights. Shares are of norms, except that of the seeded "
        "channel: the share of the change's energy that reads the seeded input directions (signed inits alone). "
        "Overlap of the blocks' leading directions: 0 orthogonal, 1 the same."
    )
    if plot_blocks(records, run / "plots" / "blocks.png", title=title):
        yield "![shares over the steps and by module](plots/blocks.png)"


def _settings(config: Mapping[str, Any] | None, results: Results | None) -> Iterator[str]:
    """Yield who did what (from the config) and where the numbers come from (from the evaluation)."""
    if config is not None:
        yield "## Settings"
        rows = [(f"{role}.{key}", value) for role in ROLES for key, value in flatten(config.get(role))]
        rows += [(key, config[key]) for key in ("seed_everything",) if key in config]
        steps = config.get("trainer")
        if isinstance(steps, Mapping) and "max_steps" in steps:
            rows.append(("trainer.max_steps", steps["max_steps"]))
        yield "Everything: `config.yaml`; `python cli.py fit --config config.yaml --name NEW_NAME` runs it again."
        yield f"<details><summary>Router, adapter, model and data</summary>\n\n{_table('setting', rows)}\n\n</details>"
    if results is not None and results.provenance:
        yield "## Provenance"
        yield _table("fact", list(flatten(results.provenance)))


def flatten(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the leaves of nested mappings as (dotted key, value); ``class_path`` and ``init_args`` stay readable."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            step = "" if key == "init_args" else str(key)
            yield from flatten(inner, ".".join(part for part in (prefix, step) if part))
    elif prefix:
        yield prefix, value
    elif value is not None:
        yield "", value


def _table(title: str, rows: list[tuple[str, object]]) -> str:
    cells = [f"| `{key.rstrip('.')}` | {_cell(value)} |" for key, value in rows]
    return "\n".join([f"| {title} | value |", "| --- | --- |", *cells])


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", r"\|")


def _mean(values: Sequence[float]) -> str:
    """Return the mean of the finite values, and how many they are where some are not."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "nan"
    mean = f"{math.fsum(finite) / len(finite):.4g}"
    return mean if len(finite) == len(values) else f"{mean} ({len(finite)} of {len(values)} steps)"


def _signed(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.3f}"
