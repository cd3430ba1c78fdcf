"""route_a: the score is a pooled activation along a direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from vgrout_pl.adapters import Route
from vgrout_pl.adapters.inits import init_strategy
from vgrout_pl.directions.direction_source import DirectionSource
from vgrout_pl.directions.evidence import LabelsUsed
from vgrout_pl.directions.features import ActivationReader, Pooling, Site
from vgrout_pl.directions.pair_sources import AuthoredPairs
from vgrout_pl.directions.scores import Aggregation, check_finite
from vgrout_pl.routers.bands import Bands
from vgrout_pl.routers.gate import Gate
from vgrout_pl.seeding import derived_uniform
from vgrout_pl.types import Labels, Rollouts

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule

PAIRS = (LabelsUsed.AUTHORED_PAIRS, LabelsUsed.SELF_GENERATED_PAIRS)


class ActivationGate(Gate):
    """Cut rollouts by their pooled activations along a direction.

    ``score = sum_m <h_m, v_m>``, h_m the mean over completion tokens of A_D x in module m. One pass without gradient
    over all rows. Where rows are scored after sampling (a bfloat16 base, mixed precision, a server), it is that very
    pass for the rows that were sampled ablated; in float32 the sampling pass gives their log-probabilities already.

    The signed inits (scorda) take the pairs' direction out of the deployed block, so that its bottleneck cannot see
    what those pairs show: read site ``residual`` there, or take another init.

    ``per_token`` gives each completion token a route of its own: it gates what is computed at that token's position. A
    token is scored by its own activation; the thresholds are quantiles over one token, drawn by hash, of each rollout.
    The last prompt position predicts the first token, and nothing is trained at the last token's own position.
    Prompts then see and train both blocks. Without it, ``pooling: max`` lets a single token decide for its rollout.

    Args:
        direction: where the direction comes from; None: authored pairs.
        site: what is read; see :class:`~vgrout_pl.directions.features.ActivationReader`.
        layers: decoder layers of site ``residual``; None: all.
        pooling: over the completion's tokens.
        aggregation: how the modules' scores are put together.
        refresh_every: windows between two extractions; 0: one extraction for the run.
        bands: thresholds and buffer.
        pair_batch_size: pairs read together at an extraction.
        per_token: routes for tokens rather than rollouts.
    """

    name = "route_a"

    def __init__(
        self,
        direction: DirectionSource | None = None,
        site: Site = "bottleneck",
        layers: list[int] | None = None,
        pooling: Pooling = "mean",
        aggregation: Aggregation = "dot",
        refresh_every: int = 5,
        bands: Bands = Bands(),  # noqa: B008 - frozen
        pair_batch_size: int = 8,
        per_token: bool = False,
    ):
        of_rows = bands.route_cap is not None or bands.follow_evidence
        if per_token and (of_rows or (pooling, aggregation) != ("mean", "dot")):
            raise ValueError(
                "router.per_token: expected pooling mean, aggregation dot, no bands.route_cap and no "
                f"bands.follow_evidence, which are of whole rollouts; got {pooling}, {aggregation}, {bands.route_cap} "
                f"and {bands.follow_evidence}"
            )
        self.activations = ActivationReader(site, layers, pooling)
        super().__init__(
            direction or AuthoredPairs(), self.activations, aggregation, refresh_every, bands, pair_batch_size
        )
        self.per_token = per_token
        self._seed = 0
        self._drawn = torch.empty(0, dtype=torch.long)
        self._tokens = torch.empty(0, 0)

    @classmethod
    def run_name(cls, settings: Mapping[str, Any]) -> str:
        """Append ``-tokens`` where tokens are routed."""
        return super().run_name(settings) + ("-tokens" if settings.get("per_token") else "")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the run's seed, beside what every gate finds out."""
        from vgrout_pl.preflight import data_of, roles

        super().setup(trainer, pl_module, stage)
        self._seed = data_of(trainer).seed
        adapter, _ = roles(trainer)
        seeded = init_strategy(adapter.config.init).seeded_block is not None
        if stage == "fit" and seeded and self.activations.site == "bottleneck" and self.labels_used in PAIRS:
            rank_zero_warn(
                f"router: adapter.init {adapter.config.init} takes the direction of its pairs out of the deployed "
                "block, whose bottleneck the gate then reads nearly blind; use --config configs/adapter/gaussian.yaml, "
                "or site residual (configs/router/route_a_residual.yaml)"
            )

    def route(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """Cut rows, or their tokens; a row's score is the mean of its tokens' then."""
        routes = super().route(rollouts, labels)
        if self.per_token and self.scores is not None:
            self.scores = self._tokens.sum(1) / rollouts.completion_mask.sum(1)
        return routes

    def read(self, module: GRPOModule, rollouts: Rollouts, varied: Tensor) -> Tensor | None:
        """Read the rows; of tokens, draw the one of each row that enters the buffer."""
        if self.per_token:
            lengths = rollouts.completion_mask.sum(1)
            first = module.global_rank * len(rollouts)
            rows = range(first, first + len(rollouts))
            drawn = [derived_uniform("route token", self._seed, rollouts.step, row) for row in rows]
            self._drawn = (torch.tensor(drawn, device=lengths.device) * lengths).long().clamp_max(lengths - 1)
            self._tokens = torch.zeros(rollouts.completion_ids.shape, device=lengths.device)
        return super().read(module, rollouts, varied)

    def _read_batch(self, module: GRPOModule, part: Rollouts, batch: Tensor) -> tuple[Tensor, Tensor]:
        if not self.per_token:
            return super()._read_batch(module, part, batch)
        assert self.layout is not None
        direction = torch.zeros(self.layout.size) if self.direction is None else self.direction
        features, scores, logprobs = self.activations.read_tokens(
            module.policy, part, self._score(module), direction, self._drawn[batch], self.buffer.dtype
        )
        self._tokens[batch, : scores.shape[1]] = scores
        return features, logprobs

    def _cut(self, rollouts: Rollouts, window: Tensor) -> Tensor:
        """Tokens by their own scores; a drawn token's is that of its image in the buffer."""
        if not self.per_token:
            return super()._cut(rollouts, window)
        mask, rows = rollouts.completion_mask, torch.arange(len(rollouts), device=window.device)
        check_finite(self._tokens[mask])
        self._tokens[rows, self._drawn] = window[self._place].to(self._tokens)
        routes = torch.full_like(rollouts.completion_ids, int(Route.ABSORB))
        routes[mask] = self.bands.cut(self._tokens[mask], self.thresholds)
        return routes
