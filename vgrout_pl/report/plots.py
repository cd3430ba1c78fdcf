"""The two plots of a run: hack and solve over the steps, and the evaluation's cells as bars with intervals."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vgrout_pl.report.files import write_atomically
from vgrout_pl.report.metrics import Metrics
from vgrout_pl.report.results import Rate, Results
from vgrout_pl.report.tables import MARKER_NAMES, STATE_NAMES, Row, table_rows

# Okabe and Ito's palette: told apart with every common colour vision, and in grey
COLOURS = {"as_trained": "#D55E00", "deployed": "#0072B2", "quarantine_only": "#CC79A7", "base": "#999999"}
INK, FAINT = "#333333", "#BBBBBB"
SMOOTHING = 5
PANELS = (("hack", ("hack/hinted_rate", "hack/rate")), ("solve", ("solve/rate",)))


def plot_steps(metrics: Metrics, path: str | Path, *, title: str = "") -> bool:
    """Draw hack and solve over the steps to a PNG; return False (and draw nothing) where neither was logged.

    Dots are single training windows, the grey line their centred mean over :data:`SMOOTHING` windows (on hinted rows,
    where those are logged apart); the coloured lines are validation, as trained and deployed.
    """
    names = [f"val/{state}/{panel}" for panel, _ in PANELS for state in STATE_NAMES]
    if not any(map(metrics.occurs, [*names, *(name for _, train in PANELS for name in train)])):
        return False
    figure = Figure(figsize=(10.0, 3.8), dpi=150, layout="constrained")
    for axes, (panel, train) in zip(figure.subplots(1, 2), PANELS, strict=True):
        _steps_panel(axes, metrics, panel, train)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
    save(figure, path)
    return True


def plot_cells(results: Results, path: str | Path, *, title: str = "", heal: str | None = None) -> bool:
    """Draw the evaluation's cells to a PNG as bars with 95 % intervals; return False where there is no cell."""
    rows = table_rows(results, heal=heal)
    if not rows:
        return False
    bars = sum(cell is not None for row in rows for cell in row.cells.values())
    figure = Figure(figsize=(10.0, 0.8 + 0.26 * bars + 0.42 * len(rows)), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _cells_panel(left, rows, "hack")
    _cells_panel(right, rows, "solve")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
    save(figure, path)
    return True


def _steps_panel(axes: Axes, metrics: Metrics, panel: str, train: Sequence[str]) -> None:
    """Draw one metric: training windows in grey, validation by state in colour, names at the lines' ends."""
    labels: list[tuple[float, float, str, str]] = []
    shown: list[float] = []
    end = 1
    name = next((name for name in train if metrics.occurs(name)), train[0])
    steps, values = metrics.series(name)
    if steps:
        axes.plot(steps, values, ".", color=FAINT, markersize=3, zorder=1, clip_on=False)
        smooth = moving_mean(values, SMOOTHING)
        axes.plot(steps, smooth, color="#777777", linewidth=1.2, zorder=2)
        text = "training, hinted" if name == "hack/hinted_rate" else "training"
        labels.append((steps[-1], smooth[-1], text, "#777777"))
        shown, end = [*values], max(end, steps[-1])
    for state, style, marker in (("as_trained", "-", "o"), ("deployed", "--", "s")):
        steps, values = metrics.series(f"val/{state}/{panel}")
        if not steps:
            continue
        (line,) = axes.plot(steps, values, style, color=COLOURS[state], linewidth=1.6, zorder=3, clip_on=False)
        line.set(marker=marker, markersize=4.5)
        labels.append((steps[-1], values[-1], f"val. {STATE_NAMES[state]}", COLOURS[state]))
        shown, end = [*shown, *values], max(end, steps[-1])
    top = max((value for value in shown if math.isfinite(value)), default=0.0)
    axes.set_ylim(0.0, 1.0 if panel == "hack" else min(1.0, max(0.1, math.ceil(top * 11.0) / 10.0)))
    axes.set_xlim(0.0, end * 1.02)
    axes.set_xlabel("optimizer step", color=INK)
    axes.set_title(f"{panel} rate", loc="left", fontsize=11, color=INK)
    bare(axes)
    _label_ends(axes, labels)


def _label_ends(axes: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names to the right of the panel at their lines' last values, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    known = [label for label in labels if math.isfinite(label[1])]
    heights = spread([value for _, value, _, _ in known], gap=0.065 * (high - low), low=low, high=high)
    for (_, _, text, colour), height in zip(known, heights, strict=True):
        axes.annotate(
            text,
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour,
            annotation_clip=False,
        )


def _cells_panel(axes: Axes, rows: Sequence[Row], metric: str) -> None:
    """Draw one metric as horizontal bars, grouped by row, each named at its left and valued at its right."""
    y, ticks, names = 0.0, [], []
    for row in rows:
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            heading = f"{row.problems} problems, {_marker_phrase(row.markers)} (n = {row.n})"
            axes.text(0.015, y, heading, va="center", fontsize=9.5, fontweight="bold", color=INK)
        y += 1.0
        for state, cell in row.cells.items():
            if cell is None:
                continue
            rate: Rate = getattr(cell, metric)
            axes.barh(y, rate.rate, height=0.72, color=COLOURS[state], zorder=2)
            for colour, width in (("white", 3.5), (INK, 1.3)):
                axes.plot([rate.low, rate.high], [y, y], color=colour, linewidth=width, zorder=3)
            axes.text(rate.high + 0.015, y, f"{rate.rate:.2f}", va="center", fontsize=9, color=INK)
            ticks.append(y)
            names.append(STATE_NAMES[state])
            y += 1.0
        y += 0.4
    axes.set_yticks(ticks, names)
    axes.set_ylim(y - 0.6, -0.7)
    axes.set_xlim(0.0, 1.08)
    axes.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0])
    axes.set_title(f"{metric} rate, 95 % interval", loc="left", fontsize=11, color=INK)
    bare(axes)
    axes.tick_params(axis="y", length=0)


def _marker_phrase(markers: str) -> str:
    return "hint-free" if markers == "none" else f"{MARKER_NAMES[markers]} markers"


def bare(axes: Axes) -> None:
    """Leave two thin axes of the frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, color=FAINT)


def save(figure: Figure, path: str | Path) -> None:
    """Write the figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    write_atomically(Path(path), buffer.getvalue())


def moving_mean(values: Sequence[float], width: int) -> list[float]:
    """Return the centred mean over ``width`` neighbours (odd), fewer at the ends; NaN neighbours are left out."""
    half = width // 2
    means = []
    for i in range(len(values)):
        known = [v for v in values[max(0, i - half) : i + half + 1] if math.isfinite(v)]
        means.append(math.fsum(known) / len(known) if known else math.nan)
    return means


def spread(heights: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Return heights in the given order moved as little as a sweep does so that neighbours are ``gap`` apart.

    All stay within [low, high] as long as that range holds them.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    floor = low
    for i in order:
        placed[i] = floor = max(placed[i], floor)
        floor += gap
    ceiling = high
    for i in reversed(order):
        placed[i] = ceiling = min(placed[i], ceiling)
        ceiling -= gap
    return placed
