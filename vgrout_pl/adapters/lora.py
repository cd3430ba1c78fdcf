"""Routed LoRA: blocks of trainable A, B and their frozen init A0, B0."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn

from vgrout_pl.adapters.functional import RoutedUpdate, stack_blocks
from vgrout_pl.adapters.layer import RoutedLayer, Trainable, whole_tensor
from vgrout_pl.adapters.state import BLOCKS, Plan

Block = tuple[Tensor, Tensor, Tensor, Tensor]


class RoutedLinear(RoutedLayer):
    """y = W x + sum over the blocks b in force of (B_b A_b - B0_b A0_b) x, times PEFT's scaling.

    A and B are PEFT's ``lora_A``/``lora_B`` of the adapters ``deployed`` and ``quarantine``; A0 and B0 are buffers
    ``lora_init_A``/``lora_init_B``, in the state dict under PEFT's naming.
    """

    lora_init_A: BufferDict  # noqa: N815
    lora_init_B: BufferDict  # noqa: N815
    other_param_names: tuple[str, ...]
    stack_copies = 2

    def _add_block(self, name: str, rank: int, alpha: float, config: Any, **kwargs: Any) -> None:
        super(RoutedLayer, self).update_layer(name, rank, lora_alpha=cast(int, alpha), config=config, **kwargs)
        for buffers in ("lora_init_A", "lora_init_B"):
            if not hasattr(self, buffers):
                setattr(self, buffers, BufferDict({}, persistent=True))
                self.other_param_names = (*self.other_param_names, buffers)
        a, b = cast(nn.Linear, self.lora_A[name]), cast(nn.Linear, self.lora_B[name])
        a.to(torch.float32).weight.data.fill_(torch.nan)
        b.to(torch.float32).weight.data.fill_(torch.nan)
        self.lora_init_A[name] = a.weight.detach().clone()
        self.lora_init_B[name] = b.weight.detach().clone()

    @torch.no_grad()
    def set_block(self, name: str, scale: float, *init: Tensor) -> None:
        """Start block ``name`` at A = A0 = scale * init[0] [r, d_in], B = B0 = scale * init[1] [d_out, r]."""
        a, b, init_a, init_b = self.block(name)
        for parameter, buffer, value in ((a, init_a, init[0]), (b, init_b, init[1])):
            if parameter.shape != value.shape:
                raise ValueError(
                    f"{self.module_name}: block {name} expected an init of shape {list(parameter.shape)}; "
                    f"got {list(value.shape)}"
                )
            parameter.copy_(value * scale)
            buffer.copy_(value * scale)

    def block(self, name: str) -> Block:
        """(A [r, d_in], B [d_out, r], A0, B0) of one block, the live tensors themselves."""
        a, b = cast(nn.Linear, self.lora_A[name]), cast(nn.Linear, self.lora_B[name])
        return a.weight, b.weight, self.lora_init_A[name], self.lora_init_B[name]

    def trainables(self, name: str) -> list[Trainable]:
        """A and B of one block, with A0 and B0."""
        a, b, a0, b0 = self.block(name)
        return [Trainable("A", a, a0), Trainable("B", b, b0)]

    def sources(self, name: str) -> list[Tensor]:
        """A, B, A0 and B0."""
        return list(self.block(name))

    def factors(self, names: tuple[str, ...], dtype: torch.dtype, *, whole: bool = False) -> tuple[Tensor, Tensor]:
        """Factors of rank 2 r a block; see :func:`~vgrout_pl.adapters.functional.stack_blocks`."""
        members = [self.block(name) for name in names]
        if whole:
            members = [cast(Block, tuple(map(whole_tensor, member))) for member in members]
        return stack_blocks(members, self.scaling[BLOCKS[0]], dtype)

    def _trained(self, base: Tensor, x: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor:
        used = tuple(BLOCKS.index(name) for name in plan.blocks)
        tensors = [tensor for name in BLOCKS for tensor in self.block(name)]
        masks = plan.masks(self.r[BLOCKS[0]], self.stack_copies, x.device, dtype)
        return RoutedUpdate.apply(base, x, *masks, self.scaling[BLOCKS[0]], dtype, used, *tensors)
