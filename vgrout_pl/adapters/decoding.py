"""What a routed layer does for one new position per row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vgrout_pl.adapters.packed_linear import PackedLinear
from vgrout_pl.adapters.state import Plan


class LowRank(Protocol):
    """An update of rank k, laid out for few rows."""

    dtype: torch.dtype

    def down(self, x: Tensor) -> Tensor:
        """Bottleneck [n, k] of x [n, d_in]."""

    def up(self, rows: Tensor, bottleneck: Tensor) -> Tensor:
        """``rows`` [n, d_out] plus what the bottleneck [n, k] gives."""


class Factors:
    """Factors left [k, d_in] and right [d_out, k], transposed."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.dtype = left.dtype
        self._left_t, self._right_t = left.t().contiguous(), right.t().contiguous()

    def down(self, x: Tensor) -> Tensor:
        """See :class:`LowRank`."""
        return x.mm(self._left_t)

    def up(self, rows: Tensor, bottleneck: Tensor) -> Tensor:
        """See :class:`LowRank`."""
        return torch.addmm(rows, bottleneck, self._right_t)


class PackedFactors:
    """Factors left [k, d_in] and right [d_out, k], in oneDNN's layout."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.dtype = left.dtype
        self._left, self._right = PackedLinear(left), PackedLinear(right)

    def down(self, x: Tensor) -> Tensor:
        """See :class:`LowRank`."""
        return self._left(x)

    def up(self, rows: Tensor, bottleneck: Tensor) -> Tensor:
        """See :class:`LowRank`."""
        return self._right.added_to(rows, bottleneck)


@dataclass(slots=True)
class DecodeStep:
    """A layer's work for one new position per row, prepared by the multi-position forward before it.

    Valid for the same plan and as long as no tensor it was made from has changed (``versions``).
    """

    plan: Plan
    base: Callable[[Tensor], Tensor]
    factors: LowRank
    mask: Tensor | None
    sources: list[Tensor]
    versions: list[int]
    x_dtype: torch.dtype
    device_type: str
    widens: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Base output plus update for x [rows, 1, d_in]."""
        flat = x.reshape(-1, x.shape[2])
        bottleneck = self.factors.down(flat.to(self.factors.dtype) if self.widens else flat)
        if self.mask is not None:
            bottleneck.mul_(self.mask)
        base = self.base(x)
        rows = base.view(base.shape[0], -1)
        if self.widens:
            return self.factors.up(rows.to(bottleneck.dtype), bottleneck).to(base.dtype).view(base.shape)
        return self.factors.up(rows, bottleneck).view(base.shape)
