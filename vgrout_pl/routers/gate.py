"""Gates: features of the rollouts, a direction, and bands of scores along it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from vgrout_pl.adapters import Route, ablated, attach_routed_adapter
from vgrout_pl.directions.direction_source import DirectionSource
from vgrout_pl.directions.extract import Extraction, Labelled, PairFeatures, pair_features
from vgrout_pl.directions.features import Layout, Reader, TokenRows
from vgrout_pl.directions.levers import shows_lever
from vgrout_pl.directions.pairs import ContrastivePair
from vgrout_pl.directions.scores import Aggregation, row_scores
from vgrout_pl.env.modes import LOOPHOLE_MODES
from vgrout_pl.policy import shape_of_base
from vgrout_pl.routers.bands import Bands, Thresholds
from vgrout_pl.routers.base import Router
from vgrout_pl.routers.buffer import FeatureBuffer
from vgrout_pl.scoring import Watch
from vgrout_pl.types import Labels, Rollouts

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule

MUCH_MEMORY = 2**30
"""Bytes of a full buffer from which on a run is told of it."""
NO_THRESHOLDS = Thresholds(math.nan, math.nan)


class Gate(Router):
    """Keep, absorb or route each rollout by its score along a direction; see the subclasses for what is scored.

    Each window: the direction is made anew where that is due; all rows' features are read with the quarantine ablated;
    the rows of groups with reward differences enter the buffer; the whole buffer is scored along the present direction
    and its weighted quantiles cut the window's rows. Features, buffer and thresholds are those of all processes. Rows
    that a teacher gave are rows like any other. Features that are 0 throughout (``output``, before the first step) say
    nothing: they make no direction, and do not enter.

    Args:
        direction: where the direction comes from.
        reader: what is read of a rollout.
        aggregation: how the modules' scores are put together.
        refresh_every: windows between two extractions; 0: one extraction for the run.
        bands: thresholds and buffer.
        pair_batch_size: pairs read together at an extraction.
    """

    def __init__(
        self,
        direction: DirectionSource,
        reader: Reader,
        aggregation: Aggregation,
        refresh_every: int,
        bands: Bands,
        pair_batch_size: int,
    ):
        if refresh_every < 0 or pair_batch_size < 1:
            raise ValueError(
                "router: expected refresh_every of 0 (never) or more and pair_batch_size of at least 1; got "
                f"{refresh_every} and {pair_batch_size}"
            )
        self.source, self.reader, self.aggregation = direction, reader, aggregation
        self.refresh_every, self.bands, self.pair_batch_size = refresh_every, bands, pair_batch_size
        self.labels_used = direction.labels_used
        self.buffer = FeatureBuffer(bands.max_rollouts, bands.dtype)
        self.layout: Layout | None = None
        self.direction: Tensor | None = None
        self.extractions = 0
        self.age = 0
        self.cosine = math.nan
        self.thresholds = NO_THRESHOLDS
        self._features = torch.empty(0)
        self._varied = torch.empty(0, dtype=torch.bool)
        self._place = slice(0, 0)
        self._spread: list[float] = []

    # ---------------------------------------------------------------- reading

    def read(self, module: GRPOModule, rollouts: Rollouts, varied: Tensor) -> Tensor | None:
        """Refresh the direction where it is due, and read the features of the window's rows.

        The pass is made in the state that sampled the ablated rows: their log-probabilities come with it.
        """
        self._refresh(module)
        features, logprobs = self._read_rows(module, rollouts)
        count, rank = len(features), module.global_rank
        self._features = _gathered(module, features)
        self._varied = _gathered(module, varied.to(features.device)) & self._features.any(1)
        self._place = slice(rank * count, (rank + 1) * count)
        return torch.where(rollouts.ablated.unsqueeze(1), logprobs, torch.nan)

    def _read_rows(self, module: GRPOModule, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        from vgrout_pl.window import micro_batches, trimmed

        rows = torch.arange(len(rollouts), device=rollouts.completion_ids.device)
        features: list[Tensor] = []
        logprobs = torch.full_like(rollouts.completion_ids, torch.nan, dtype=torch.float32)
        order = micro_batches(rollouts, rows, module.trainer.accumulate_grad_batches)
        for batch in order:
            part = trimmed(rollouts.rows(batch))
            read, found = self._read_batch(module, part, batch)
            features.append(read)
            logprobs[batch, : found.shape[1]] = found
        back = torch.cat(list(order)).argsort()
        return torch.cat(features)[back], logprobs

    def _read_batch(self, module: GRPOModule, part: Rollouts, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Features [n, F] and log-probabilities [n, t] of ``part``, the window's rows at ``batch`` (int [n])."""
        return self.reader.read(module.policy, part, self._score(module))

    def _score(self, module: GRPOModule) -> Any:
        """Passes over rows with the quarantine ablated, as the step itself would make them."""
        from vgrout_pl.scoring import RowStates
        from vgrout_pl.window import score_rows

        def score(rows: TokenRows, watch: Watch, share_prompts: bool) -> Tensor:
            states = RowStates.same(len(rows.completion_ids), lambda: ablated(module.policy))
            return score_rows(module, cast(Rollouts, rows), states, watch, share_prompts)[0]

        return score

    # ---------------------------------------------------------------- the direction

    def _refresh(self, module: GRPOModule) -> None:
        """Extract the direction where there is none yet, or where it is ``refresh_every`` windows old."""
        self.layout = self.reader.layout(module.policy)
        self.age += 1
        if self.direction is not None and not (self.refresh_every and self.age >= self.refresh_every):
            return
        self.source.prepare(module)

        def read(pairs: Sequence[ContrastivePair]) -> PairFeatures:
            score, size = self._score(module), self.pair_batch_size
            return pair_features(module.policy, module.tokenizer, pairs, self.reader, score, size)

        labelled = None
        if self.sees_labels and len(self.buffer):
            labelled = Labelled(self.buffer.features.to(module.device), self.buffer.marks[:, 1].to(module.device))
        found = self.source.extract(Extraction(self.layout, read, self.extractions, module.device, labelled))
        if found is None or not bool(found.any()):
            return
        before, self.age = self.direction, 0
        self.direction = _agreed(module, found)
        self.extractions += 1
        self.cosine = math.nan
        if before is not None:
            self.cosine = float(torch.cosine_similarity(before.to(found), self.direction, dim=0))

    # ---------------------------------------------------------------- the routes

    def route(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """Let the window enter the buffer, and cut its rows; every row is absorbed during the warm-up."""
        features, varied = self._features, self._varied
        marks = self._marks(rollouts, labels)
        if bool(varied.any()):
            self.buffer.add(features[varied], marks[varied.to(marks.device)])
        absorbed = torch.full((len(rollouts),), int(Route.ABSORB))
        self.scores, self.thresholds, self._spread = None, NO_THRESHOLDS, []
        if self.direction is None or self.layout is None:
            return absorbed
        window, kept, weights = self._scored(features)
        self.scores = window[self._place]
        self._spread = torch.quantile(window.float(), torch.tensor([0.1, 0.5, 0.9], device=window.device)).tolist()
        if self.buffer.seen < max(self.bands.warmup, 1):
            return absorbed
        self.thresholds = self.bands.thresholds(kept, weights, self.buffer.marks[:, 0].to(kept.device))
        return self._cut(rollouts, window).cpu()

    def _cut(self, rollouts: Rollouts, window: Tensor) -> Tensor:
        """Routes of this process' rows, given the scores [N'] of those of all processes."""
        return self.bands.cut(window, self.thresholds)[self._place]

    def _scored(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the window's rows and of the buffer, and the buffer's weights.

        A row that has entered has the score of its image in the buffer, bit for bit, so that it ties with a threshold
        which it gave itself; the others are rounded to the buffer's dtype before they are scored.
        """
        assert self.layout is not None and self.direction is not None
        stored = features.to(self.buffer.dtype)
        rows = torch.cat([self.buffer.features.to(stored.device), stored]) if len(self.buffer) else stored
        weights = self.buffer.weights(self.bands.halflife).to(stored.device)
        own = torch.zeros(len(stored), dtype=weights.dtype, device=stored.device)
        medians = torch.cat([weights, own]) if len(self.buffer) else own + 1
        scores = row_scores(rows, self.direction.to(stored.device), self.layout.widths, self.aggregation, medians)
        kept, window = scores[: len(self.buffer)], scores[len(self.buffer) :]
        entered = self._varied.nonzero().flatten()[-self.buffer.capacity :]
        if len(entered):
            window[entered] = kept[-len(entered) :]
        return window, kept, weights

    def _marks(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """Which rows of all processes show the disclosed loophole in their text, and which are hacks: bool [N', 2]."""
        told = zip(rollouts.completions, rollouts.modes, rollouts.markers, strict=True)
        shown = [mode in LOOPHOLE_MODES and shows_lever(text, mode, marker) for text, mode, marker in told]
        hacked = [False] * len(shown) if labels is None else labels.hacked.tolist()
        own = torch.tensor([shown, hacked]).T
        total = len(self._features)
        if total == len(own):
            return own
        parts: list[Any] = [None] * (total // len(own))
        torch.distributed.all_gather_object(parts, own)
        return torch.cat(parts)

    # ---------------------------------------------------------------- record and state

    @classmethod
    def run_name(cls, settings: Mapping[str, Any]) -> str:
        """Append what is not the default, and the kind of direction where it is given: ``route_a-residual-haar-1``."""
        given = settings.get("direction")
        usual = {"site": "bottleneck", "pooling": "mean", "aggregation": "dot"}
        chosen = (settings.get(key) or default for key, default in usual.items())
        name = "-".join([cls.name, *(str(what) for what in chosen if what not in usual.values())])
        if not given:
            return name
        module, _, kind = str(given["class_path"]).rpartition(".")
        source = getattr(importlib.import_module(module), kind)
        options = given.get("init_args") or {}
        index, seed = options.get("index"), options.get("seed")
        return f"{name}-{source.name}" + ("" if index is None else f"-{index}") + (f"-draw{seed}" if seed else "")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out before any weight is read whether there are pairs, and modules to read.

        Raises:
            ValueError: the direction's source, the reader or the aggregation does not fit the run.
        """
        from vgrout_pl.preflight import roles

        module = cast("GRPOModule", pl_module)
        self.source.check(module)
        if stage != "fit":
            return
        adapter, _ = roles(trainer)
        shapes = attach_routed_adapter(shape_of_base(module.path), adapter.config, initialise=False)
        layout = self.reader.layout(shapes)
        modules = len(layout.names)
        if self.aggregation == "vote" and 0.5**modules > self.bands.tail:
            raise ValueError(
                f"router.aggregation: expected more modules for a vote with tails of {self.bands.tail:g}; got "
                f"{modules}, whose {modules + 1} possible scores tie with the thresholds; take dot or cosine, or more "
                "layers"
            )
        size = self.buffer.bytes_when_full(layout.size)
        if size > MUCH_MEMORY:
            rank_zero_warn(
                f"router.bands: {self.bands.max_rollouts} rollouts of {layout.size} features in {self.bands.storage} "
                f"will take {size / 2**30:.1f} GiB, about twice that while a window is scored; lower "
                "bands.max_rollouts (2048 hold all but 4e-7 of the weight of the default half-life) or store bfloat16"
            )

    def measurements(self) -> dict[str, float]:
        """Thresholds, quantiles of the window's scores beside them, age and steadiness of the direction."""
        low, middle, high = self._spread or (math.nan,) * 3
        return {
            "route/threshold_low": self.thresholds.low,
            "route/threshold_high": self.thresholds.high,
            "route/score_p10": low,
            "route/score_p50": middle,
            "route/score_p90": high,
            "route/direction_age": float(self.age) if self.direction is not None else math.nan,
            "route/direction_cosine": self.cosine if self.age == 0 else math.nan,
        }

    def provenance(self) -> dict[str, object]:
        """What the direction comes from."""
        return {**super().provenance(), "direction": self.source.provenance(), "aggregation": self.aggregation}

    def state_dict(self) -> dict[str, Any]:
        """Buffer, direction and the source's state: a resumed run gives the routes of an uninterrupted one."""
        return {
            "buffer": self.buffer.state_dict(),
            "direction": self.direction,
            "extractions": self.extractions,
            "age": self.age,
            "source": self.source.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Bring back :meth:`state_dict`."""
        self.buffer.load_state_dict(state_dict["buffer"])
        self.direction = state_dict["direction"]
        self.extractions, self.age = state_dict["extractions"], state_dict["age"]
        self.source.load_state_dict(state_dict["source"])


def _gathered(module: GRPOModule, values: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks."""
    if module.trainer.world_size == 1:
        return values
    return cast(Tensor, module.all_gather(values)).flatten(0, 1)


def _agreed(module: GRPOModule, direction: Tensor) -> Tensor:
    """The first process' direction on all of them: what was computed apart may differ in the last bit."""
    if module.trainer.world_size == 1:
        return direction
    there = direction.to(module.device).contiguous()  # as a tensor: a pickled one would arrive on the first's device
    torch.distributed.broadcast(there, src=0)
    return there
