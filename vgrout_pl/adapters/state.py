"""The one piece of state that every routed layer of a model reads: who sees and who trains which block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

DEPLOYED = "deployed"
QUARANTINE = "quarantine"
BLOCKS = (DEPLOYED, QUARANTINE)


class Route(IntEnum):
    """What one rollout (one batch row) may see and train.

    ======  ==========  ==================
    route   forward     gradient
    ======  ==========  ==================
    NONE    W + D + Q   D and Q (no mask)
    KEEP    W + D       D
    ABSORB  W + D + Q   D and Q
    ROUTE   W + D + Q   Q (D is detached)
    ======  ==========  ==================
    """

    NONE = 0
    KEEP = 1
    ABSORB = 2
    ROUTE = 3


_SEES_QUARANTINE = torch.tensor([True, False, True, True])
_TRAINS_DEPLOYED = torch.tensor([True, True, True, False])


Masks = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """A resolved state: which blocks run at all, and per-row gates where rows differ.

    Attributes:
        blocks: names of the blocks that at least one row sees, in the order of :data:`BLOCKS`.
        forward_gates: float [rows, 1, len(blocks)], or [rows, positions, len(blocks)] where a row's positions differ, 1
            where the row sees the block; None: every row sees every block.
        gradient_gates: of the same shape, 1 where the row trains the block; None: as ``forward_gates``.
        rows: the batch size the gates were made for; None where there are no gates.
        merged: some blocks are inside the base weights for now; ``blocks`` are the others.
    """

    blocks: tuple[str, ...] = BLOCKS
    forward_gates: Tensor | None = None
    gradient_gates: Tensor | None = None
    rows: int | None = None
    merged: bool = False
    _masks: dict[tuple[object, ...], Masks] = field(default_factory=dict, compare=False)
    _parts: dict[tuple[str, ...], Plan] = field(default_factory=dict, compare=False)

    def masks(
        self, rank: int, copies: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor | None, Tensor | None]:
        """Forward and gradient mask on stacked bottlenecks, [rows, 1 or T, copies * len(blocks) * rank] or None."""
        if self.rows is None:
            return None, None
        key = (rank, copies, device, dtype)
        if key not in self._masks:
            self._masks[key] = (
                _spread(self.forward_gates, rank, copies, device, dtype),
                _spread(self.gradient_gates, rank, copies, device, dtype),
            )
        return self._masks[key]

    @property
    def positions(self) -> int | None:
        """How many positions the gates were made for; None where a row's positions are all gated alike."""
        sizes = [gates.shape[1] for gates in (self.forward_gates, self.gradient_gates) if gates is not None]
        return max(sizes) if sizes and max(sizes) > 1 else None

    def restricted(self, names: tuple[str, ...]) -> Plan:
        """This plan without the blocks that are not in ``names``; the same object for the same names."""
        if names not in self._parts:
            kept = [i for i, block in enumerate(self.blocks) if block in names]
            gates = [None if g is None else g[..., kept] for g in (self.forward_gates, self.gradient_gates)]
            blocks = tuple(self.blocks[i] for i in kept)
            self._parts[names] = Plan(blocks, gates[0], gates[1], self.rows, self.merged)
        return self._parts[names]


def _spread(gates: Tensor | None, rank: int, copies: int, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    if gates is None:
        return None
    return gates.to(device, dtype).repeat_interleave(rank, dim=2).repeat(1, 1, copies)


def as_routes(routes: Tensor | Sequence[int]) -> Tensor:
    """Routes as an int64 CPU tensor [rows] or [rows, positions]; ValueError for another shape or an unknown route."""
    tensor = torch.as_tensor(routes).detach().cpu()
    if tensor.dim() not in (1, 2) or tensor.dtype.is_floating_point or tensor.dtype == torch.bool:
        raise ValueError(
            f"routes: expected an int tensor [rows] or [rows, positions]; got {tensor.dtype} {list(tensor.shape)}"
        )
    if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < len(Route):
        raise ValueError(f"routes: expected values of Route (0..{len(Route) - 1}); got {sorted(set(tensor.tolist()))}")
    return tensor.long()


def as_rows(rows: Tensor | Sequence[bool] | None) -> Tensor | bool:
    """A row selection: True for all rows, else a bool CPU tensor [rows]; ValueError for anything else."""
    if rows is None:
        return True
    tensor = torch.as_tensor(rows).detach().cpu()
    if tensor.dim() != 1 or tensor.dtype != torch.bool:
        raise ValueError(f"rows: expected a bool tensor [rows]; got {tensor.dtype} {list(tensor.shape)}")
    return tensor


def _either(a: Tensor | bool, b: Tensor | bool) -> Tensor | bool:
    if a is True or b is True:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if len(a) != len(b):
            raise ValueError(f"rows: expected one batch size in nested states; got {len(a)} and {len(b)} rows")
        return a | b
    return a if isinstance(a, Tensor) else b


@dataclass(slots=True)
class RouteState:
    """Routes and switched-off blocks of a model; shared by its routed layers, changed only through the contexts.

    Attributes:
        routes: int64 [rows], or [rows, positions] of one forward pass, or None (every row NONE).
        without: per block, the rows that must not see it: False (none), True (all) or bool [rows].
        merged: blocks that are merged into the base weights.
        plan: what the layers follow; re-made by :meth:`change`.
    """

    routes: Tensor | None = None
    without: dict[str, Tensor | bool] = field(default_factory=lambda: dict.fromkeys(BLOCKS, False))
    merged: tuple[str, ...] = ()
    plan: Plan = field(default_factory=Plan)

    def snapshot(self) -> tuple[Tensor | None, dict[str, Tensor | bool], tuple[str, ...], Plan]:
        """Everything :meth:`restore` needs to bring this very state back."""
        return self.routes, self.without, self.merged, self.plan

    def restore(self, saved: tuple[Tensor | None, dict[str, Tensor | bool], tuple[str, ...], Plan]) -> None:
        """Bring back a state taken with :meth:`snapshot`."""
        self.routes, self.without, self.merged, self.plan = saved

    def change(self, *, routes: object = ..., without: Sequence[str] = (), rows: object = True) -> None:
        """Set the routes and/or switch blocks off for some rows, then resolve the plan; unchanged on an error."""
        if self.merged and (routes is not ... or set(without) & set(self.merged)):
            raise ValueError(
                f"{' and '.join(self.merged)}: expected no change of state inside merged(model) of what is merged; "
                "leave it first"
            )
        new_routes = self.routes if routes is ... else routes
        new_without = {b: _either(v, rows) if b in without else v for b, v in self.without.items()}  # type: ignore[arg-type]
        plan = _resolve(new_routes, new_without, self.merged)  # type: ignore[arg-type]
        self.routes, self.without, self.plan = new_routes, new_without, plan  # type: ignore[assignment]

    def merge(self, names: tuple[str, ...]) -> None:
        """Take note that blocks which all rows see are inside the base weights now."""
        self.merged = names
        self.plan = _resolve(self.routes, self.without, names)


def _resolve(routes: Tensor | None, without: dict[str, Tensor | bool], merged: tuple[str, ...] = ()) -> Plan:
    sizes = {len(v) for v in (routes, *without.values()) if isinstance(v, Tensor)}
    if len(sizes) > 1:
        raise ValueError(f"routes and rows: expected one batch size; got {sorted(sizes)} rows")
    rows = sizes.pop() if sizes else None
    if rows is None:
        return Plan(tuple(b for b in BLOCKS if without[b] is False and b not in merged), merged=bool(merged))
    routes = torch.zeros(rows, dtype=torch.long) if routes is None else routes
    routes = routes.view(rows, -1)
    hidden = torch.stack([torch.as_tensor(without[b]).expand(rows) for b in BLOCKS], dim=1)
    sees = (~hidden).unsqueeze(1).repeat(1, routes.shape[1], 1)
    sees[..., 1] &= _SEES_QUARANTINE[routes]
    trains = sees.clone()
    trains[..., 0] &= _TRAINS_DEPLOYED[routes]
    used = sees.flatten(0, 1).any(dim=0) & torch.tensor([b not in merged for b in BLOCKS])
    blocks = tuple(b for b, on in zip(BLOCKS, used.tolist(), strict=True) if on)
    sees, trains = sees[..., used], trains[..., used]
    if bool(trains.all()):
        return Plan(blocks=blocks, merged=bool(merged))
    forward = None if bool(sees.all()) else sees.float()
    return Plan(blocks, forward, trains.float(), rows, bool(merged))
