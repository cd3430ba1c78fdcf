"""``study.json``, ``study.md`` and ``study.png``: what a study found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vgrout_pl.report.files import write_atomically
from vgrout_pl.report.plots import FAINT, INK, bare, save
from vgrout_pl.study.core import ORACLE, Study, above_chance, facts
from vgrout_pl.study.metrics import AT_CUT, CONFIRMATORY, FLAGGED, METRICS, TITLES
from vgrout_pl.study.sources import ROLES, StudySource

FILES = ("study.json", "study.md", "study.png")
LIVE = ("mean", "dot")
"""Pooling and aggregation of a gate's defaults."""
# Okabe and Ito's palette, as in the other plots
MARKS: Mapping[str, tuple[str, str]] = {
    "authored": ("#D55E00", "o"),
    "self-generated": ("#0072B2", "s"),
    "placebo": ("#CC79A7", "v"),
    "sign-flipped": ("#CC79A7", "^"),
    "oracle": ("#009E73", "D"),
}
READ_AS = (
    "`*` above the family's threshold, `+` above the cell's own 95th percentile of random directions only (in "
    "brackets): with this many cells, some `+` come by chance. `*` means that an isotropic random direction is beaten, "
    "and no more: directions of pairs tend to lie where features vary most, whatever the pairs are about; a `*` counts "
    "only where the placebos and flipped signs have none, and where it beats the baselines of length and norm, which "
    "no mark compares it with. F0.5 at the cut is the confirmatory metric: the family's correction covers cells and "
    "sources, not the five metrics, so that marks at the others are descriptive. `~` at a metric of the cut: the cell "
    "says nothing there, as ties (votes of few modules) leave less than half of the meant share of rows above the cut, "
    "for the source or for the median random direction (in brackets, last column); it gets no `+` and is not counted "
    "as within or above chance. That rests on how many of the rows, as drawn, lie above the cut, not on which of them "
    "are hacks. The family's maximum keeps these cells: where nothing is above the cut, F0.5 is 0 and never the "
    "largest. The oracle is the "
    "ceiling and has no mark: a fit to meaningless labels varies more than random directions do. The cut is a quantile "
    "of the rows studied here, a live gate's one of all rows in groups with reward differences, unpaid and hint-free "
    "ones included: F0.5 and precision at the cut compare directions, they do not say what a gate would reach."
)


def write_results(
    out: Path, study: Study, sources: Sequence[StudySource], about: Mapping[str, Any], left_out: Sequence[str]
) -> str:
    """Write the three files; return the summary as text."""
    roles = {source.name: source.role for source in sources} | {ORACLE: "oracle"}
    pairs = {source.name: len(source.pairs) for source in sources if source.pairs}
    records, family = list(facts(study, roles, pairs)), study.family()
    content = {
        **about,
        "sources": [
            {"name": s.name, "role": s.role, "pairs": pairs.get(s.name), "note": s.note, "left_out": s.source is None}
            | ({} if s.source is None else {"provenance": s.source.provenance()})
            for s in sources
        ],
        "left_out": list(left_out),
        "ceiling_f05": study.ceiling(),
        "family": {"sources": family.sources, "cells": len(study.cells), "thresholds": dict(family.thresholds)},
        "confirmatory": CONFIRMATORY,
        "above_chance": above_chance(records),
        "cells": records,
        "baselines": [
            {"baseline": name, "site": site, "pooling": pooling} | values
            for name, site, pooling, values in study.baselines
        ],
    }
    write_atomically(out / FILES[0], json.dumps(content, indent=1, default=str) + "\n")
    write_atomically(out / FILES[1], markdown(study, records, sources, about, left_out))
    plot(records, family.thresholds["f05"], out / FILES[2], f"{about['model']}\n{about['selection']}")
    return table(_live(study, records))


def markdown(
    study: Study,
    records: Sequence[Mapping[str, Any]],
    sources: Sequence[StudySource],
    about: Mapping[str, Any],
    left_out: Sequence[str],
) -> str:
    """Return the whole report: rows, sources, the gate's default cell, baselines, every cell."""
    family = study.family()
    n, hacks = len(study.hacked), int(study.hacked.sum())
    drawn = study.subsets[0]
    rate = f"{int(study.hacked[drawn].sum())} of {len(drawn)} rows" if study.design.base_rate is not None else None
    thresholds = ", ".join(f"{TITLES[metric]} {value:.3f}" for metric, value in family.thresholds.items())
    lines = [
        "# Classifier study",
        "",
        f"- model: {about['model']}; features read with the quarantine ablated",
        f"- rows: {n} ({about['among']}), {hacks} hacks; {about['selection']}",
        *([f"- drawn to a base rate: {rate} are hacks, mean over {len(study.subsets)} draws"] if rate else []),
        f"- chance: {study.design.haar} Haar-random directions, others at every site and pooling, signs as they "
        f"come; family of {len(study.cells)} cells x {family.sources} sources at {study.design.alpha:g}: {thresholds}",
        f"- cut: above the {1 - study.design.tail:g} quantile of these rows' scores; the highest F0.5 that can be had "
        f"there is {study.ceiling():.3f}{_saturated(study)}",
        f"- CPU seconds: {about['cpu_seconds']}",
        "",
        READ_AS,
        "",
        "## Sources",
        "",
        *(f"- {s.name} ({s.role}{_number(s)}): {'left out: ' if s.source is None else ''}{s.note}" for s in sources),
        f"- {ORACLE}: mean difference of the labels, fitted on the other {study.design.folds - 1} of "
        f"{study.design.folds} folds of problems",
        *(f"- left out: {line}" for line in left_out),
        "",
        f"## The gate's defaults: {LIVE[0]} over the completion, {LIVE[1]}",
        "",
        table(_live(study, records)),
        "",
        f"## Cells above chance: {TITLES[CONFIRMATORY]}",
        "",
        _table(
            ["source", "cells that say something", "above their own percentile", "above the family's threshold"],
            [
                [str(c["source"]), f"{c['speaking']} of {c['cells']}", str(c["above_cell"]), str(c["above_family"])]
                for c in above_chance(records)
            ],
            1,
        ),
        "",
        "## Baselines: scores that come from no direction",
        "",
        _table(
            ["baseline", "site", "pooling", *(TITLES[metric] for metric in (*METRICS, FLAGGED))],
            [
                [name, site, pooling, *(f"{values[metric]:.3f}" for metric in (*METRICS, FLAGGED))]
                for name, site, pooling, values in study.baselines
            ],
            3,
        ),
        "",
        "## All cells",
        "",
        table(records),
    ]
    return "\n".join(lines) + "\n"


def _saturated(study: Study) -> str:
    """A warning where random directions reach what no source could exceed."""
    if study.family().thresholds["f05"] < study.ceiling():
        return ""
    return ", which random directions reach: no source can be told from chance by it; draw to a lower --base-rate"


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records as a Markdown table: each metric, with the 95th percentile of random directions in brackets.

    The share of rows above the cut has the median of random directions in brackets.
    """
    texts = ["source", "site", "pooling", "aggregation"]
    head = [*texts, "n", *(TITLES[metric] for metric in METRICS), TITLES[FLAGGED]]
    body = [
        [
            *(str(record[name]) for name in texts),
            "-" if record["pairs"] is None else str(record["pairs"]),
            *(_value(record[metric], metric in AT_CUT and not record["speaks_at_cut"]) for metric in METRICS),
            f"{record[FLAGGED]['value']:.3f} ({record[FLAGGED]['haar_median']:.3f})",
        ]
        for record in records
    ]
    return _table(head, body, len(texts))


def _value(found: Mapping[str, Any], silent: bool) -> str:
    mark = "*" if found["above_family"] else "~" if silent else "+" if found["above_cell"] else ""
    return f"{found['value']:.3f}{mark} ({found['haar_p95']:.3f})"


def _number(source: StudySource) -> str:
    return f", n = {len(source.pairs)}" if source.pairs else ""


def _live(study: Study, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Records of the gate's default pooling and aggregation, or of the first that were studied."""
    aggregation = LIVE[1] if LIVE[1] in study.design.aggregations else study.design.aggregations[0]
    poolings = [cell.pooling for cell in study.cells if cell.pooling != "-"]
    pooling = LIVE[0] if LIVE[0] in poolings else next(iter(poolings), "-")
    return [r for r in records if r["aggregation"] == aggregation and r["pooling"] in (pooling, "-")]


def _table(head: Sequence[str], body: Sequence[Sequence[str]], texts: int) -> str:
    rule = ["---"] * texts + ["---:"] * (len(head) - texts)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body))


def plot(records: Sequence[Mapping[str, Any]], needed: float, path: Path, title: str) -> None:
    """Draw F0.5 at the cut: a panel an aggregation, a column a site and pooling, sources on the random band.

    Marks of cells that say nothing at the cut are hollow.

    Args:
        records: those of :func:`~vgrout_pl.study.core.facts`.
        needed: the family's threshold.
        path: of the PNG.
        title: above the panels.
    """
    aggregations = list(dict.fromkeys(record["aggregation"] for record in records))
    columns = list(dict.fromkeys((record["site"], record["pooling"]) for record in records))
    size = (max(5.0, 1.5 + 0.8 * len(columns)), 1.2 + 2.1 * len(aggregations))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = figure.subplots(len(aggregations), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, aggregation in zip(panels, aggregations, strict=True):
        for record in records:
            if record["aggregation"] == aggregation:
                _mark(axes, columns.index((record["site"], record["pooling"])), record)
        axes.axhline(needed, color=INK, linewidth=0.9, linestyle="--", zorder=1)
        axes.set_title(aggregation, loc="left", fontsize=10, color=INK)
        axes.set_ylabel("F0.5 at the cut", fontsize=9, color=INK)
        bare(axes)
    highest = max(needed, *(max(record["f05"]["value"], record["f05"]["haar_p95"]) for record in records))
    panels[0].set_ylim(0.0, 1.05 * highest)
    names = [site if pooling == "-" else f"{site}\n{pooling.replace('_', ' ')}" for site, pooling in columns]
    panels[-1].set_xticks(range(len(columns)), names, fontsize=8)
    panels[-1].set_xlim(-0.6, len(columns) - 0.4)
    present = {record["role"] for record in records}
    shown = [role for role in ROLES if role in MARKS and role in present]
    handles = [panels[0].plot([], [], MARKS[r][1], color=MARKS[r][0], markersize=5)[0] for r in shown]
    handles += [Patch(color=FAINT, alpha=0.7), panels[0].plot([], [], "--", color=INK, linewidth=0.9)[0]]
    labels = [*shown, "random, median to p95", "family threshold"]
    if not all(record["speaks_at_cut"] for record in records):
        handles.append(panels[0].plot([], [], "o", color=INK, markersize=5, fillstyle="none")[0])
        labels.append("says nothing at the cut")
    figure.legend(handles, labels, loc="outside lower center", ncols=4 if size[0] > 7 else 3, fontsize=8, frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=8, color=INK)
    save(figure, path)


def _mark(axes: Axes, place: int, record: Mapping[str, Any]) -> None:
    """One source's mark in one cell; with the oracle, which is in every cell, the random band."""
    found, role = record["f05"], record["role"]
    if role == "oracle":
        low, high = found["haar_median"], found["haar_p95"]
        axes.bar(place, max(high - low, 0.003), bottom=low, width=0.8, color=FAINT, alpha=0.7, zorder=0)
    colour, mark = MARKS[role]
    offset = 0.12 * (list(MARKS).index(role) - 2)
    fill: Literal["full", "none"] = "full" if record["speaks_at_cut"] else "none"
    at = place + offset
    axes.plot(at, found["value"], mark, color=colour, markersize=5, zorder=3, alpha=0.9, fillstyle=fill)
