"""Features of completions: what a model computes on them, pooled over their tokens. M modules, F features in all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from peft import PeftModel
from torch import Tensor, nn

from vgrout_pl.adapters.attach import routed_layers
from vgrout_pl.adapters.layer import RoutedLayer
from vgrout_pl.adapters.state import DEPLOYED
from vgrout_pl.policy import base_of
from vgrout_pl.scoring import Watch

Site = Literal["bottleneck", "residual", "output"]
Pooling = Literal["mean", "last_quarter", "max"]
Into = Callable[[Tensor], Tensor]


class TokenRows(Protocol):
    """Prompts and completions as tokens; :class:`~vgrout_pl.types.Rollouts` is one.

    Attributes:
        prompt_ids: [N, S], left-padded.
        prompt_mask: bool [N, S].
        prompt_of: int [N], equal for rows of the same prompt.
        completion_ids: [N, T], right-padded.
        completion_mask: bool [N, T].
    """

    @property
    def prompt_ids(self) -> Tensor: ...  # noqa: D102
    @property
    def prompt_mask(self) -> Tensor: ...  # noqa: D102
    @property
    def prompt_of(self) -> Tensor: ...  # noqa: D102
    @property
    def completion_ids(self) -> Tensor: ...  # noqa: D102
    @property
    def completion_mask(self) -> Tensor: ...  # noqa: D102


Score = Callable[[TokenRows, Watch, bool], Tensor]
"""Passes over rows in the state that features are read in, under a watch, sharing prompts or not: log-probs [N, T]."""


@dataclass(frozen=True)
class Layout:
    """Which features a row has, module after module.

    Attributes:
        names: M names.
        widths: M widths, F in all.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]

    @property
    def size(self) -> int:
        """F."""
        return sum(self.widths)


class Reader(ABC):
    """Reads one vector of features for every completion."""

    @abstractmethod
    def layout(self, policy: PeftModel) -> Layout:
        """Names and widths of the modules that are read.

        Raises:
            ValueError: the policy has no such modules.
        """

    @abstractmethod
    def read(self, policy: PeftModel, rows: TokenRows, score: Score) -> tuple[Tensor, Tensor]:
        """Read the rows in one batched pass.

        Args:
            policy: the model that ``score`` runs.
            rows: N completions of at least one token each.
            score: runs them; what state the policy is in is its business.

        Returns:
            features, float32 [N, F], and log-probabilities [N, T], both without gradient.
        """


def pooling_weights(mask: Tensor, pooling: Pooling) -> Tensor:
    """Weights float32 [n, s], a row's sum 1, over the tokens of bool ``mask`` [n, s]; ``max`` weighs like ``mean``.

    ``last_quarter`` takes the last ceil(length / 4) tokens. ValueError where a row has no token.
    """
    if not bool(mask.any(1).all()):
        raise ValueError("features: expected completions of at least one token; got an empty one")
    if pooling == "last_quarter":
        after = mask.flip(1).cumsum(1).flip(1)
        mask = mask & (after <= (mask.sum(1, keepdim=True) + 3) // 4)
    return mask.float() / mask.sum(1, keepdim=True)


def pooled(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool ``hidden`` [n, s, d] over the tokens of bool ``mask`` [n, s]: float32 [n, d].

    ``max`` takes each coordinate's value of largest magnitude, sign kept.
    """
    if pooling != "max":
        return torch.einsum("ns,nsd->nd", pooling_weights(mask, pooling), hidden.float())
    pooling_weights(mask, pooling)
    kept = torch.where(mask.unsqueeze(-1), hidden.float(), 0.0)
    return kept.gather(1, kept.abs().argmax(1, keepdim=True)).squeeze(1)


class ActivationReader(Reader):
    """Activations of one forward pass, no gradient needed.

    - bottleneck: h = A_D x of every adapted module, [r] each (antipasto: V x);
    - residual: the hidden states that leave the chosen decoder layers, [d] each;
    - output: what the deployed block adds, delta_D(x), of every adapted module, [d_out] each; 0 until it has trained.

    A row's features do not depend on the rows beside it. Pooled are the completion's tokens, end of turn included.

    Args:
        site: what is read.
        layers: decoder layers, for ``residual``, negative ones from the end; None: all.
        pooling: over the tokens.
    """

    def __init__(self, site: Site = "bottleneck", layers: Sequence[int] | None = None, pooling: Pooling = "mean"):
        for name, value, known in (("site", site, get_args(Site)), ("pooling", pooling, get_args(Pooling))):
            if value not in known:
                raise ValueError(f"{name}: expected {' | '.join(known)}; got {value!r}")
        if layers is not None and (site != "residual" or not layers):
            raise ValueError(f"layers: expected some layers with site residual, null otherwise; got {layers} at {site}")
        self.site, self.layers, self.pooling = site, layers, pooling

    def layout(self, policy: PeftModel) -> Layout:
        """One module per adapted Linear, or per chosen layer."""
        if self.site == "residual":
            chosen = self._decoder_layers(policy)
            width = int(base_of(policy).config.get_text_config().hidden_size)
            return Layout(tuple(f"layers.{index}" for index, _ in chosen), (width,) * len(chosen))
        found = list(routed_layers(policy))
        widths = [
            int(layer.r[DEPLOYED] if self.site == "bottleneck" else layer.base_weight.shape[0]) for _, layer in found
        ]
        return Layout(tuple(name for name, _ in found), tuple(widths))

    def read(self, policy: PeftModel, rows: TokenRows, score: Score) -> tuple[Tensor, Tensor]:
        """One pass without gradient; rows of one prompt share the pass over it."""
        total = len(rows.completion_ids)
        found: dict[int, Tensor] = {}
        hooked = self._hooked(policy)

        def watch(index: Tensor, mask: Tensor) -> AbstractContextManager[None]:
            def take(place: int, hidden: Tensor, into: Into | None) -> None:
                # the maps are linear: pooling first costs a factor of r less
                if into is None or self.pooling != "max":
                    values = pooled(hidden, mask, self.pooling)
                    values = values if into is None else into(values)
                else:
                    values = pooled(into(hidden), mask, self.pooling)
                _keep(found, place, total, index, values)

            return _hooks(hooked, mask, take)

        with torch.no_grad():
            logprobs = score(rows, watch, True)
        return torch.cat([found[place] for place in range(len(hooked))], 1), logprobs

    def read_tokens(
        self,
        policy: PeftModel,
        rows: TokenRows,
        score: Score,
        direction: Tensor,
        drawn: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Score each token along a direction, and read one token's features a row, in one batched pass.

        The score of a token is ``sum_m <h_m, v_m>`` of its own h; their mean over a completion is the row's, pooled by
        ``mean``.

        Args:
            policy: the model that ``score`` runs.
            rows: N completions of at least one token each.
            score: runs them.
            direction: v [F].
            drawn: int [N], the token of each row whose features are returned.
            dtype: h is rounded to it before it is scored, as the features that it is compared with were.

        Returns:
            features float32 [N, F], scores float32 [N, T] (0 where there is no token), log-probabilities [N, T].
        """
        total = len(rows.completion_ids)
        found: dict[int, Tensor] = {}
        hooked = self._hooked(policy)
        parts = direction.float().split(list(self.layout(policy).widths))
        scores = torch.zeros(rows.completion_ids.shape, device=rows.completion_ids.device)

        def watch(index: Tensor, mask: Tensor) -> AbstractContextManager[None]:
            first = int(mask.any(0).nonzero()[0])

            def take(place: int, hidden: Tensor, into: Into | None) -> None:
                tokens = hidden[:, first:].float() if into is None else into(hidden[:, first:])
                own = tokens.to(dtype).float() @ parts[place].to(tokens.device)
                scores[index, : own.shape[1]] += own.where(mask[:, first:], 0.0)
                _keep(found, place, total, index, tokens[torch.arange(len(tokens)), drawn[index]])

            return _hooks(hooked, mask, take)

        with torch.no_grad():
            logprobs = score(rows, watch, True)
        return torch.cat([found[place] for place in range(len(hooked))], 1), scores, logprobs

    def _hooked(self, policy: PeftModel) -> Sequence[tuple[nn.Module, Into | None]]:
        """Modules, and the map from a module's input (None: its output is read as it is) to the feature."""
        if self.site == "residual":
            return [(layer, None) for _, layer in self._decoder_layers(policy)]
        into = bottleneck if self.site == "bottleneck" else _output
        return [(layer, _bound(into, layer)) for _, layer in routed_layers(policy)]

    def _decoder_layers(self, policy: PeftModel) -> list[tuple[int, nn.Module]]:
        stack = getattr(base_of(policy).get_decoder(), "layers", None)
        if stack is None:
            raise ValueError(
                f"site residual: expected a decoder with .layers; {type(base_of(policy)).__name__} has none; "
                "use site bottleneck"
            )
        count = len(stack)
        wrong = [layer for layer in self.layers or () if not -count <= layer < count]
        if wrong:
            raise ValueError(f"layers: expected layers out of the model's {count}; got {wrong}")
        picked = range(count) if self.layers is None else sorted({layer % count for layer in self.layers})
        return [(index, stack[index]) for index in picked]


def bottleneck(layer: RoutedLayer, x: Tensor) -> Tensor:
    """A_D x, float32 [.., r] (antipasto: V x); x [.., d_in] in any dtype."""
    left, _ = layer.factors((DEPLOYED,), torch.float32)
    return x.float() @ left[: layer.r[DEPLOYED]].detach().T


def _output(layer: RoutedLayer, x: Tensor) -> Tensor:
    left, right = layer.factors((DEPLOYED,), torch.float32)
    return x.float() @ left.detach().T @ right.detach().T


def _bound(into: Callable[[RoutedLayer, Tensor], Tensor], layer: RoutedLayer) -> Callable[[Tensor], Tensor]:
    return lambda x: into(layer, x)


def _keep(found: dict[int, Tensor], place: int, total: int, index: Tensor, values: Tensor) -> None:
    if place not in found:
        found[place] = torch.full((total, values.shape[1]), torch.nan, device=values.device)
    found[place][index.to(values.device)] = values


@contextmanager
def _hooks(
    hooked: Sequence[tuple[nn.Module, Into | None]], mask: Tensor, take: Callable[[int, Tensor, Into | None], None]
) -> Iterator[None]:
    """Hand ``take`` each module's place, what it is read from [n, s, d], and the map from that to the feature."""

    def on(place: int, into: Into | None) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            x = args[0] if into is not None else output[0] if isinstance(output, tuple) else output
            if into is not None and x.shape[:2] != mask.shape:
                raise ValueError(
                    f"{getattr(module, 'module_name', '')}: expected inputs [rows, tokens, d_in] with "
                    f"{list(mask.shape)}; got {list(x.shape)}; read site residual of this architecture"
                )
            with torch.autocast(x.device.type, enabled=False):
                take(place, x, into)

        return hook

    handles = [module.register_forward_hook(on(place, into)) for place, (module, into) in enumerate(hooked)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
