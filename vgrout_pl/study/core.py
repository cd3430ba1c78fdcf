"""The study itself: features of n labelled rows in, each direction's metrics and what chance gives out; no model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vgrout_pl.directions.direction_source import OracleFit, haar_direction
from vgrout_pl.directions.extract import Extraction, Labelled, PairFeatures
from vgrout_pl.directions.features import Layout
from vgrout_pl.directions.pairs import ContrastivePair
from vgrout_pl.directions.scores import AGGREGATIONS, Aggregation, module_norms
from vgrout_pl.study.metrics import AT_CUT, CONFIRMATORY, FLAGGED, LEAST_FLAGGED, METRICS, measure
from vgrout_pl.study.rollouts import folds, subsets
from vgrout_pl.study.scores import scores_along

ORACLE = "oracle, held out"


@dataclass(frozen=True)
class Design:
    """How directions are judged.

    Attributes:
        aggregations: of the modules' scores.
        haar: number of random directions.
        tail: share of the rows above the cut.
        alpha: level, of one cell and of the family.
        folds: of the oracle's cross-validation over problems.
        base_rate: share of hacks that rows are drawn to; None: as they are.
        repeats: draws.
        seed: of the random directions, folds and draws.
    """

    aggregations: Sequence[Aggregation] = AGGREGATIONS  # type: ignore[assignment]
    haar: int = 400
    tail: float = 0.1
    alpha: float = 0.05
    folds: int = 5
    base_rate: float | None = None
    repeats: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        checks = {
            "aggregations": (bool(self.aggregations) and set(self.aggregations) <= set(AGGREGATIONS), "known ones"),
            "haar": (self.haar >= 1, "at least 1"),
            "tail": (0 < self.tail <= 0.5, "a share in (0, 0.5]"),
            "alpha": (0 < self.alpha < 1, "a level in (0, 1)"),
            "folds": (self.folds >= 2, "at least 2"),
            "base-rate": (self.base_rate is None or 0 < self.base_rate < 1, "a share in (0, 1)"),
            "repeats": (self.repeats >= 1, "at least 1"),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise ValueError(f"--{name}: expected {expected}; got {getattr(self, name.replace('-', '_'))!r}")

    def level(self, sources: int) -> float:
        """Level of one of ``sources``: alpha / S (Bonferroni), however they depend on each other."""
        return self.alpha / sources

    def check(self, sources: int) -> None:
        """Raise ValueError where so few random directions could never show anything for so many sources."""
        needed = math.ceil(1 / self.level(sources) - 1e-9) - 1
        if self.haar < needed:
            raise ValueError(
                f"--haar: expected at least {needed} random directions for {sources} sources at --alpha {self.alpha}; "
                f"got {self.haar}"
            )


@dataclass(frozen=True)
class Block:
    """Features of all rows at one site under one pooling, and the sources' directions there.

    Attributes:
        site: where they were read.
        pooling: over the tokens.
        layout: of the features.
        features: float32 [n, F].
        directions: name of a source -> [F], unit norm (or 0) per module.
    """

    site: str
    pooling: str
    layout: Layout
    features: Tensor
    directions: Mapping[str, Tensor]


@dataclass(frozen=True)
class Cell:
    """One site, pooling and aggregation: metric -> value, of each source and of each random direction [H].

    The share of rows above the cut, ``flagged``, is among them.
    """

    site: str
    pooling: str
    aggregation: str
    values: Mapping[str, Mapping[str, float]]
    chance: Mapping[str, Tensor]

    @property
    def key(self) -> tuple[str, str, str]:
        """Site, pooling, aggregation."""
        return self.site, self.pooling, self.aggregation

    def speaks(self, name: str, tail: float) -> bool:
        """Whether F0.5 and precision at the cut say anything of a source: at least half of ``tail`` lies above it.

        That has to hold of the random directions' median too, which the source is held against. Only the number of
        rows, as drawn, counts, not which of them are hacks.
        """
        least = LEAST_FLAGGED * tail - 1e-12
        return min(self.values[name][FLAGGED], float(self.chance[FLAGGED].median())) >= least


@dataclass(frozen=True)
class Family:
    """What the largest of all cells is for random directions, and the value that a source has to exceed.

    Attributes:
        maxima: metric -> max over cells of each random direction's value, [H].
        thresholds: metric -> what a value of any source in any cell has to lie above.
        sources: S without the oracle, over which the correction goes beside the cells.
    """

    maxima: Mapping[str, Tensor]
    thresholds: Mapping[str, float]
    sources: int

    def p_value(self, metric: str, value: float) -> float:
        """Corrected p: ``min(1, p S)`` with p = (1 + #{maxima >= value}) / (1 + H)."""
        maxima = self.maxima[metric]
        p = (1 + int((maxima >= value).sum())) / (1 + len(maxima))
        return min(1.0, p * self.sources)


class Study:
    """Judges directions against random ones in the identical pipeline, block by block; a block may be dropped after.

    Every direction of a block, random or not, is scored by the same products and cut by the same code. Signs stay as
    they come: a gate takes rows high along its direction for hacks, and a random direction is a coin flip in sign.

    Args:
        hacked: bool [n], the rows' labels.
        problems: of the rows.
        design: how directions are judged.
    """

    def __init__(self, hacked: Tensor, problems: Sequence[str], design: Design):
        self.hacked, self.design = hacked, design
        self.fold = folds(problems, design.folds, design.seed)
        for fold in range(design.folds):
            rest = hacked[self.fold != fold]
            if not 0 < int(rest.sum()) < len(rest):
                raise ValueError(
                    f"--folds: expected hacks and other rows outside each of the {design.folds} folds of problems; "
                    f"fold {fold} leaves {int(rest.sum())} hacks in {len(rest)} rows; take fewer folds or more rows"
                )
        self.subsets = subsets(hacked, design.base_rate, design.repeats, design.seed)
        self.cells: list[Cell] = []
        self.baselines: list[tuple[str, str, str, dict[str, float]]] = []
        self.cpu_seconds = 0.0

    def add(self, block: Block) -> None:
        """Score all directions in one block."""
        start = time.process_time()
        widths, names = block.layout.widths, list(block.directions)
        device = block.features.device
        haar = self._random(block).to(device)
        given = torch.stack([*block.directions.values()]).to(device) if names else haar[:0]
        scores = scores_along(block.features, torch.cat([given, haar]), widths, self.design.aggregations)
        oracle = self._oracle(block)
        for aggregation, columns in scores.items():
            together = torch.cat([oracle[aggregation].unsqueeze(1), columns], 1)
            measured = self._measured(together.cpu())
            values = {
                name: {metric: float(column[i]) for metric, column in measured.items()}
                for i, name in enumerate([ORACLE, *names])
            }
            chance = {metric: column[1 + len(names) :] for metric, column in measured.items()}
            self.cells.append(Cell(block.site, block.pooling, aggregation, values, chance))
        norms = module_norms(block.features, widths).sum(1)
        self.cpu_seconds += time.process_time() - start
        self.baseline("norm of the features", norms.cpu(), block.site, block.pooling)
        self.baseline("norm of the features, smallest first", -norms.cpu(), block.site, block.pooling)

    def baseline(self, name: str, scores: Tensor, site: str = "-", pooling: str = "-") -> None:
        """Judge scores [n] that come from no direction."""
        values = {metric: float(column[0]) for metric, column in self._measured(scores.float().unsqueeze(1)).items()}
        self.baselines.append((name, site, pooling, values))

    def ceiling(self) -> float:
        """F0.5 at the cut of a score without an error and without ties: a cut of fixed share cannot reach 1."""
        hacked = self.hacked[self.subsets[0]]
        hacks_last = hacked.long().sort().values.bool()
        ranks = torch.arange(len(hacked)).double().unsqueeze(1)
        return float(measure(ranks, hacks_last, self.design.tail)["f05"][0])

    def family(self) -> Family:
        """The max statistic over the cells so far, corrected for the number of sources that were tested."""
        sources = max(1, len({name for cell in self.cells for name in cell.values} - {ORACLE}))
        self.design.check(sources)
        maxima = {m: torch.stack([cell.chance[m] for cell in self.cells]).amax(0) for m in METRICS}
        allowed = int(self.design.level(sources) * (1 + self.design.haar) + 1e-9) - 1
        thresholds = {m: float(v.sort(descending=True).values[allowed]) for m, v in maxima.items()}
        return Family(maxima, thresholds, sources)

    def _measured(self, scores: Tensor) -> dict[str, Tensor]:
        """Metrics and flagged shares [k] of columns of scores, the mean over the draws of rows."""
        drawn = [measure(scores[rows], self.hacked[rows], self.design.tail) for rows in self.subsets]
        return {metric: torch.stack([draw[metric] for draw in drawn]).mean(0) for metric in (*METRICS, FLAGGED)}

    def _random(self, block: Block) -> Tensor:
        """The random directions [H, F] of a block; as a source has, each has another one at every site and pooling."""
        place = (block.site, block.pooling)
        indices = range(self.design.haar)
        return torch.stack([haar_direction(block.layout, self.design.seed, index, *place) for index in indices])

    def _oracle(self, block: Block) -> dict[Aggregation, Tensor]:
        """Scores [n] along the mean difference of the labels, each row's from the folds that it is not in.

        Folds have directions of their own: from the scores of each, the mean over the rows it was fitted to is taken.
        """
        features, fitted, scores = block.features, [], {}
        for fold in range(self.design.folds):
            rest = self.fold != fold
            labelled = Labelled(features[rest.to(features.device)], self.hacked[rest].to(features.device))
            extraction = Extraction(block.layout, _no_pairs, 0, features.device, labelled)
            direction = OracleFit(least=1).extract(extraction)
            assert direction is not None, "both kinds are there: checked at the start"
            fitted.append(direction)
        for name, columns in scores_along(
            features, torch.stack(fitted), block.layout.widths, self.design.aggregations
        ).items():
            own = self.fold.unsqueeze(1).to(columns.device)
            outside = own != torch.arange(self.design.folds, device=columns.device)
            centre = torch.where(outside, columns, 0.0).sum(0) / outside.sum(0)
            scores[name] = (columns - centre).gather(1, own).squeeze(1)
        return scores


def _no_pairs(pairs: Sequence[ContrastivePair]) -> PairFeatures:
    raise ValueError("study: expected an oracle that reads no pairs")


def facts(
    study: Study, roles: Mapping[str, str] | None = None, pairs: Mapping[str, int] | None = None
) -> Iterator[dict[str, object]]:
    """One record for each source in each cell, as plain data: value, chance and corrected p of every metric.

    ``roles`` and ``pairs``: of the sources, and how many pairs they read (None for one without).

    The oracle is a ceiling and not tested (None): random directions are not what a fit to meaningless labels would be,
    whose held-out scores vary more. Where the cell does not speak at the cut, metrics there are not held against its
    random directions (``above_cell`` None). The family's maximum keeps such cells, for every direction alike: an F0.5
    of 0 is never the largest, so that leaving them out would change no threshold.
    """
    family = study.family()
    for cell in study.cells:
        for name, values in cell.values.items():
            record: dict[str, object] = {"source": name, "role": None if roles is None else roles[name]}
            record["pairs"] = None if pairs is None else pairs.get(name)
            record |= {"site": cell.site, "pooling": cell.pooling, "aggregation": cell.aggregation}
            speaks = cell.speaks(name, study.design.tail)
            median = float(cell.chance[FLAGGED].median())
            record[FLAGGED] = {"value": values[FLAGGED], "haar_median": median}
            record["speaks_at_cut"] = speaks
            for metric in METRICS:
                value, chance, tested = values[metric], cell.chance[metric], name != ORACLE
                compared = tested and (speaks or metric not in AT_CUT)
                high = float(chance.quantile(1 - study.design.alpha))
                record[metric] = {
                    "value": value,
                    "haar_median": float(chance.median()),
                    "haar_p95": high,
                    "family_p": family.p_value(metric, value) if tested else None,
                    "above_cell": value > high if compared else None,
                    "above_family": value > family.thresholds[metric] if tested else None,
                }
            yield record


def above_chance(records: Iterable[Mapping[str, Any]]) -> list[dict[str, object]]:
    """Count, for each source that is tested, in how many cells its confirmatory metric is above chance.

    ``cells`` are all, ``speaking`` those that say anything at the cut, ``above_cell`` how many of the latter are above
    their own percentile, ``above_family`` how many of all are above the family's threshold.
    """
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        if record["source"] != ORACLE:
            empty = {"source": record["source"], "cells": 0, "speaking": 0, "above_cell": 0, "above_family": 0}
            count, judged = found.setdefault(record["source"], empty), record[CONFIRMATORY]
            count["cells"] += 1
            count["speaking"] += record["speaks_at_cut"]
            count["above_cell"] += bool(judged["above_cell"])
            count["above_family"] += bool(judged["above_family"])
    return list(found.values())
