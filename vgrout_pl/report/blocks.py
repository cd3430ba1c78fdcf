"""What the blocks learned, from ``blocks.jsonl``: one record a module and measured step; a table and a plot."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vgrout_pl.adapters.diagnostics import ModuleDiagnostics, diagnostics
from vgrout_pl.report.plots import INK, bare, save

COLUMNS = {
    "deployed_delta": "change, deployed",
    "quarantine_delta": "change, quarantine",
    "delta_share": "quarantine's share of the change",
    "gradient_share": "of the gradient",
    "seeded_share": "seeded channel",
    "input_overlap": "overlap of inputs",
    "output_overlap": "of outputs",
}
LINES = {
    "delta_share": ("change in the quarantine", "#D55E00", "-"),
    "gradient_share": ("gradient in the quarantine", "#CC79A7", "--"),
    "seeded_share": ("change in the seeded channel", "#0072B2", "-"),
    "input_overlap": ("overlap of the blocks' inputs", "#777777", ":"),
}


@dataclass(frozen=True)
class BlockRecords:
    """The measurements of a run.

    Attributes:
        steps: step -> its modules, in model order; steps ascending.
    """

    steps: Mapping[int, Sequence[ModuleDiagnostics]]

    @classmethod
    def load(cls, path: str | Path) -> BlockRecords:
        """Read ``blocks.jsonl``; a last line that was cut off is left out.

        Raises:
            ValueError: a line is no record; with file and line.
        """
        path = Path(path)
        steps: dict[int, list[ModuleDiagnostics]] = {}
        *lines, _torn = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                values: dict[str, Any] = {
                    f.name: math.nan if record[f.name] is None else record[f.name] for f in _FIELDS
                }
                steps.setdefault(int(record["step"]), []).append(ModuleDiagnostics(**values))
            except (ValueError, KeyError, TypeError) as error:
                expected = "expected one module's measurements as a JSON object"
                raise ValueError(f"{path}, line {number}: {expected}; got {line[:60]!r} ({error})") from error
        return cls(dict(sorted(steps.items())))

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of the whole model's ``name``, without the steps where it is undefined."""
        pairs = [(step, summary(modules)[name]) for step, modules in self.steps.items()]
        defined = [(step, value) for step, value in pairs if math.isfinite(value)]
        return [step for step, _ in defined], [value for _, value in defined]

    @property
    def last(self) -> tuple[int, Sequence[ModuleDiagnostics]]:
        """The last measured step and its modules; (0, []) where nothing was measured."""
        return max(self.steps.items(), key=lambda item: item[0], default=(0, []))


_FIELDS = fields(ModuleDiagnostics)


def summary(modules: Sequence[ModuleDiagnostics]) -> dict[str, float]:
    """The pooled values of some modules, by field name; see :func:`~vgrout_pl.adapters.diagnostics`."""
    return {name.removeprefix("quarantine/"): value for name, value in diagnostics(modules).items()}


def blocks_markdown(records: BlockRecords) -> str:
    """Return the last measurement as a table: the whole model, then its modules by kind of projection."""
    step, modules = records.last
    kinds: dict[str, list[ModuleDiagnostics]] = {}
    for module in modules:
        kinds.setdefault(_kind(module), []).append(module)
    lines = [[f"before step {step + 1}", "modules", *COLUMNS.values()], ["---", *["---:"] * (len(COLUMNS) + 1)]]
    for name, members in {"all": modules, **kinds}.items():
        values = summary(members)
        lines.append([name, str(len(members)), *(_number(values[column]) for column in COLUMNS)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot_blocks(records: BlockRecords, path: str | Path, *, title: str = "") -> bool:
    """Draw shares over the steps, and the quarantine's share of each module's change; False where nothing is known."""
    _, modules = records.last
    if not any(math.isfinite(module.delta_share) for module in modules):
        return False
    figure = Figure(figsize=(10.0, 3.8), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    _shares_panel(left, records)
    _modules_panel(figure, right, modules)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
    save(figure, path)
    return True


def _shares_panel(axes: Axes, records: BlockRecords) -> None:
    for name, (label, colour, style) in LINES.items():
        steps, values = records.series(name)
        if steps:
            axes.plot(steps, values, style, color=colour, linewidth=1.6, marker="o", markersize=3.5, label=label)
    axes.set_ylim(0.0, 1.0)
    axes.set_xlabel("optimizer step", color=INK)
    axes.set_title("shares over the whole model", loc="left", fontsize=11, color=INK)
    axes.legend(fontsize=8, frameon=False)
    bare(axes)


def _modules_panel(figure: Figure, axes: Axes, modules: Sequence[ModuleDiagnostics]) -> None:
    layers = list(dict.fromkeys(_layer(module) for module in modules))
    kinds = list(dict.fromkeys(_kind(module) for module in modules))
    grid = [[math.nan] * len(layers) for _ in kinds]
    for module in modules:
        grid[kinds.index(_kind(module))][layers.index(_layer(module))] = module.delta_share
    image = axes.imshow(grid, vmin=0.0, vmax=1.0, cmap="PuOr_r", aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(kinds)), kinds)
    shown = range(0, len(layers), max(1, len(layers) // 12))
    axes.set_xticks(shown, [layers[i] for i in shown])
    axes.set_xlabel("layer", color=INK)
    axes.set_title("quarantine's share of each module's change", loc="left", fontsize=11, color=INK)
    figure.colorbar(image, ax=axes, fraction=0.05)
    bare(axes)


def _kind(module: ModuleDiagnostics) -> str:
    return module.module.rsplit(".", 1)[-1]


def _layer(module: ModuleDiagnostics) -> str:
    found = re.search(r"(?:^|\.)(\d+)\.", module.module)
    return found[1] if found else "-"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"
