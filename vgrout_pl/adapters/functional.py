"""The routed low-rank update as one autograd function: two products forward, no masks wider than the rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def stack_blocks(
    blocks: list[tuple[Tensor, Tensor, Tensor, Tensor]], scaling: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Factors of the summed update of several blocks, without cancellation.

    B A - B0 A0 = (B - B0) A + B0 (A - A0), so for blocks 1..n with live factors A, B and frozen A0, B0

        left  = [A_1; ..; A_n; A_1 - A0_1; ..; A_n - A0_n]                    [2 n r, d_in]
        right = scaling * [B_1 - B0_1, .., B_n - B0_n, B0_1, .., B0_n]        [d_out, 2 n r]

    and right @ left is the update. It is exactly zero at the init, and its relative error stays that of ``dtype``
    even where A - A0 is far smaller than A.
    """
    live = [a for a, _, _, _ in blocks]
    moved_a = [a - a0 for a, _, a0, _ in blocks]
    moved_b = [b - b0 for _, b, _, b0 in blocks]
    frozen_b = [b0 for _, _, _, b0 in blocks]
    left = torch.cat(live + moved_a, dim=0)
    right = torch.cat(moved_b + frozen_b, dim=1)
    if scaling != 1.0:
        right = right * scaling
    return left.to(dtype), right.to(dtype)


def add_update(base: Tensor, x: Tensor, left_t: Tensor, right_t: Tensor, mask: Tensor | None) -> Tensor:
    """``base + (x @ left_t * mask) @ right_t`` for base [rows, T, d_out], x [rows, T, d_in], mask [rows, 1, k]."""
    return torch.addmm(_flat(base), _bottleneck(x, left_t, mask), right_t).view(base.shape)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _bottleneck(x: Tensor, left_t: Tensor, mask: Tensor | None) -> Tensor:
    out = _flat(x) @ left_t
    return out if mask is None else _masked(out, mask)


def _masked(flat: Tensor, mask: Tensor) -> Tensor:
    rows = mask.shape[0]
    return (flat.view(rows, -1, flat.shape[-1]) * mask[..., : flat.shape[-1]]).view_as(flat)


class RoutedUpdate(torch.autograd.Function):
    """:func:`add_update` of :func:`stack_blocks`, with per-row gates on values and on gradients.

    A row whose gradient gate of a block is 0 contributes nothing to that block's A and B, nor to x through it:
    the gates multiply the rank-wide gradient of the bottleneck, from which all three come. Kept for the backward are
    x, the bottleneck and the blocks' own tensors; the stacked factors are made again.

    Arguments of ``forward``: base output [rows, T, d_out], x [rows, T, d_in], forward and gradient masks
    [rows, 1, 2 n r] or None, the scaling, the dtype to compute in, the positions of the n blocks in force, and
    A, B, A0, B0 of *both* blocks: one that is not in force gets a gradient of zeros, so that data-parallel training
    finds every parameter used.
    """

    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor,
        x: Tensor,
        forward_mask: Tensor | None,
        gradient_mask: Tensor | None,
        scaling: float,
        dtype: torch.dtype,
        used: tuple[int, ...],
        *tensors: Tensor,
    ) -> Tensor:
        """Return base plus the update."""
        left, right = stack_blocks(_chosen(tensors, used), scaling, dtype)
        wide = x.to(dtype)
        bottleneck = _bottleneck(wide, left.t(), forward_mask)
        live = bottleneck[:, : bottleneck.shape[1] // 2]
        ctx.save_for_backward(wide, live, gradient_mask, *tensors)
        ctx.scaling, ctx.dtype, ctx.used, ctx.x_dtype = scaling, dtype, used, x.dtype
        return torch.addmm(_flat(base).to(dtype), bottleneck, right.t()).view(base.shape).to(base.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for base, x, and A and B of both blocks; see the class."""
        x, live, mask, *tensors = ctx.saved_tensors
        left, right = stack_blocks(_chosen(tensors, ctx.used), ctx.scaling, ctx.dtype)
        flat = _flat(grad).to(ctx.dtype)
        through = flat @ right
        if mask is not None:
            through, live = _masked(through, mask), _masked(live, mask)
        needs = ctx.needs_input_grad[7:]
        grad_x = (through @ left).view(x.shape).to(ctx.x_dtype) if ctx.needs_input_grad[1] else None
        grads = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needs, strict=True)]
        if any(needs):
            half = through.shape[1] // 2
            grad_a = (through[:, :half] + through[:, half:]).t() @ _flat(x)
            grad_b = flat.t() @ live
            if ctx.scaling != 1.0:
                grad_b = grad_b * ctx.scaling
            rank = half // len(ctx.used)
            for place, block in enumerate(ctx.used):
                columns = slice(place * rank, (place + 1) * rank)
                for index, value in ((4 * block, grad_a[columns]), (4 * block + 1, grad_b[:, columns])):
                    if needs[index]:
                        grads[index] = value.to(tensors[index].dtype)
        return grad, grad_x, None, None, None, None, None, *grads


def _chosen(tensors: Sequence[Tensor], used: tuple[int, ...]) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    return [(tensors[4 * i], tensors[4 * i + 1], tensors[4 * i + 2], tensors[4 * i + 3]) for i in used]


class GatedLowRank(torch.autograd.Function):
    """:func:`add_update` with per-row gates, for factors that autograd follows further.

    Arguments of ``forward``: base [rows, T, d_out], x [rows, T, d_in], left [k, d_in], right [d_out, k], forward and
    gradient masks [rows, 1, k] or None. A gated row gives no gradient to its columns of either factor, nor to x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor,
        x: Tensor,
        left: Tensor,
        right: Tensor,
        forward_mask: Tensor | None,
        gradient_mask: Tensor | None,
    ) -> Tensor:
        """Return base plus the update; keeps x and the bottleneck for the backward."""
        ctx.x_dtype = x.dtype
        x = x.to(left.dtype)
        bottleneck = _bottleneck(x, left.t(), forward_mask)
        ctx.save_for_backward(x, bottleneck, left, right, gradient_mask)
        return torch.addmm(_flat(base).to(left.dtype), bottleneck, right.t()).view(base.shape).to(base.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for base, x, left and right."""
        x, bottleneck, left, right, mask = ctx.saved_tensors
        flat = _flat(grad).to(left.dtype)
        through = flat @ right
        if mask is not None:
            through, bottleneck = _masked(through, mask), _masked(bottleneck, mask)
        needs = ctx.needs_input_grad
        grad_x = (through @ left).view(x.shape).to(ctx.x_dtype) if needs[1] else None
        grad_left = through.t() @ _flat(x) if needs[2] else None
        grad_right = flat.t() @ bottleneck if needs[3] else None
        return grad, grad_x, grad_left, grad_right, None, None
