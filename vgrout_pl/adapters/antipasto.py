"""Antipasto: trained gains and a trained rotation on frozen contrastive directions of the weight."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn

from vgrout_pl.adapters.functional import GatedLowRank
from vgrout_pl.adapters.layer import RoutedLayer, Trainable, whole_tensor
from vgrout_pl.adapters.state import BLOCKS, QUARANTINE, Plan


def cayley(skew: Tensor) -> Tensor:
    """The rotation R = (I + K)^-1 (I - K) of K = X - X^T, for X [r, r]; the identity at X = 0."""
    k = skew - skew.T
    eye = torch.eye(len(k), dtype=k.dtype, device=k.device)
    return torch.linalg.solve(eye + k, eye - k)


class AntipastoLinear(RoutedLayer):
    """y = W x + sum over the blocks in force of U diag(S tanh g) [R] V x, times PEFT's scaling.

    U [d_out, r], S [r] and V [r, d_in] are frozen buffers ``lora_axes_{U,S,V}``; the gains g [r] (``lora_gain``, init
    0) train, and for the quarantine a matrix X [r, r] (``lora_skew``, init 0) whose rotation R turns what it reads.
    Ablation switches the quarantine off, which is g = 0, X = 0. PEFT's ``merge`` is refused: use an export.
    """

    adapter_layer_names: tuple[str, ...] = (*RoutedLayer.adapter_layer_names, "lora_gain", "lora_skew")
    other_param_names: tuple[str, ...] = (
        *RoutedLayer.other_param_names,
        "lora_axes_U",
        "lora_axes_S",
        "lora_axes_V",
    )
    stack_copies = 1

    def _add_block(self, name: str, rank: int, alpha: float, config: Any, **kwargs: Any) -> None:
        if not hasattr(self, "lora_gain"):
            self.lora_gain, self.lora_skew = nn.ParameterDict(), nn.ParameterDict()
            for axes in ("U", "S", "V"):
                setattr(self, f"lora_axes_{axes}", BufferDict({}, persistent=True))
        self.r[name], self.lora_alpha[name], self.scaling[name] = rank, cast(int, alpha), alpha / rank
        d_out, d_in = self.base_weight.shape
        empty = torch.full((1,), torch.nan, device=self.base_weight.device)
        self.lora_gain[name] = nn.Parameter(empty.expand(rank).clone())
        if name == QUARANTINE:
            self.lora_skew[name] = nn.Parameter(empty.expand(rank, rank).clone())
        for axes, shape in (("U", (d_out, rank)), ("S", (rank,)), ("V", (rank, d_in))):
            getattr(self, f"lora_axes_{axes}")[name] = empty.expand(shape).clone()
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _axes(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        v, u, s = (getattr(self, f"lora_axes_{axes}")[name] for axes in ("V", "U", "S"))
        return v, u, s

    @torch.no_grad()
    def set_block(self, name: str, scale: float, *init: Tensor) -> None:
        """Freeze V = scale * init[0], U = scale * init[1], S = init[2]; gains and rotation start at nothing."""
        for axes, value, factor in zip(self._axes(name), init, (scale, scale, 1.0), strict=True):
            axes.copy_(value * factor)
        for _, parameter, start in self.trainables(name):
            parameter.copy_(start)

    def trainables(self, name: str) -> list[Trainable]:
        """The gains and, for the quarantine, the matrix of the rotation; both start at 0."""
        found = [("gain", self.lora_gain[name])]
        if name in self.lora_skew:
            found.append(("skew", self.lora_skew[name]))
        return [Trainable(label, parameter, torch.zeros_like(whole_tensor(parameter))) for label, parameter in found]

    def sources(self, name: str) -> list[Tensor]:
        """Frozen axes, gains and rotation."""
        skew = [self.lora_skew[name]] if name in self.lora_skew else []
        return [*self._axes(name), self.lora_gain[name], *skew]

    def factors(self, names: tuple[str, ...], dtype: torch.dtype, *, whole: bool = False) -> tuple[Tensor, Tensor]:
        """Factors of rank r a block: left = [R] V, right = scaling * U diag(S tanh g)."""
        gather = whole_tensor if whole else (lambda tensor: tensor)
        lefts, rights = [], []
        for name in names:
            v, u, s = self._axes(name)
            lefts.append(cayley(gather(self.lora_skew[name])) @ v if name in self.lora_skew else v)
            rights.append(u * (self.scaling[name] * s * torch.tanh(gather(self.lora_gain[name]))))
        return torch.cat(lefts).to(dtype), torch.cat(rights, dim=1).to(dtype)

    def _trained(self, base: Tensor, x: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor:
        left, right = self.factors(plan.blocks, dtype)
        idle = [name for name in BLOCKS if name not in plan.blocks]
        if idle:  # a gradient of zeros, so that data-parallel training finds every parameter used
            right = right + 0.0 * sum(t.parameter.sum() for name in idle for t in self.trainables(name))
        masks = plan.masks(self.r[BLOCKS[0]], self.stack_copies, x.device, dtype)
        return GatedLowRank.apply(base, x, left, right, *masks)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse."""
        raise ValueError("antipasto: expected an export (export_deployed) before PEFT's merge; got a routed adapter")
