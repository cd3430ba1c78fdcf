"""Gradients of completions as features: how each one pulls at the deployed bottleneck."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from vgrout_pl.adapters.attach import routed_layers
from vgrout_pl.adapters.layer import RoutedLayer
from vgrout_pl.adapters.lora import RoutedLinear
from vgrout_pl.adapters.state import DEPLOYED
from vgrout_pl.directions.features import Layout, Reader, Score, TokenRows, bottleneck
from vgrout_pl.policy import base_of


class GradientReader(Reader):
    """Gradient of a completion's mean NLL by an identity probe c on the deployed bottleneck, [r] a module.

    With the live part of the deployed block written as B (c * A x), c = 1, the gradient of row i is

        g_i = sum_t h_it * (B^T dL_i / dy_it),    h = A x,  y the module's output,  L_i = mean NLL of completion i

    over all positions t, those of the prompt included: the probe scales them too. The rows' losses are added and
    differentiated once; rows must not share a pass over their prompt, since the sum over a shared position could not
    be told apart. ``.grad`` of the parameters is neither read nor written. Each module's part is taken as the backward
    pass goes by, so that no output gradient is kept. NLL is raw: no advantage, hence no reward, enters.
    """

    def layout(self, policy: PeftModel) -> Layout:
        """One module per adapted Linear; ValueError for antipasto, whose gradient is 0 at the start."""
        found = list(routed_layers(policy))
        for name, layer in found:
            if not isinstance(layer, RoutedLinear):
                raise ValueError(
                    f"gradient features: expected LoRA blocks; {name} is {type(layer).__name__}, whose bottleneck "
                    "has no gradient at its init; use another adapter.init, or the activation gate"
                )
        return Layout(tuple(name for name, _ in found), tuple(layer.r[DEPLOYED] for _, layer in found))

    def read(self, policy: PeftModel, rows: TokenRows, score: Score) -> tuple[Tensor, Tensor]:
        """One forward and one backward pass over the rows."""
        total, layers = len(rows.completion_ids), [layer for _, layer in routed_layers(policy)]
        device = rows.completion_ids.device
        found = [torch.zeros(total, layer.r[DEPLOYED], device=device) for layer in layers]
        leaves: list[Tensor] = []

        @contextmanager
        def watch(index: Tensor, mask: Tensor) -> Iterator[None]:
            handles = [base_of(policy).get_input_embeddings().register_forward_hook(_as_leaf(leaves))]
            for layer, into in zip(layers, found, strict=True):
                handles.append(layer.register_forward_hook(_tapping(index.to(device), into)))
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

        with torch.enable_grad():
            logprobs = score(rows, watch, False)
            lengths = rows.completion_mask.sum(1)
            if not bool((lengths > 0).all()):
                raise ValueError("features: expected completions of at least one token; got an empty one")
            loss = -(torch.where(rows.completion_mask, logprobs, 0.0).sum(1) / lengths).sum()
            torch.autograd.grad(loss, leaves)
        return torch.cat(found, 1), logprobs.detach()


def _as_leaf(leaves: list[Tensor]) -> Callable[..., Tensor]:
    """Let the gradient run to the embeddings, hence through every layer, and to no parameter."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        leaves.append(leaf)
        return leaf

    return hook


def _tapping(index: Tensor, into: Tensor) -> Callable[..., None]:
    """Add h * (B^T dy), summed over positions, to the rows ``index`` of ``into`` [N, r] when the gradient comes by."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        layer = cast(RoutedLayer, module)
        with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
            h = bottleneck(layer, args[0])
            up = cast(RoutedLinear, layer).block(DEPLOYED)[1].float() * layer.scaling[DEPLOYED]

        def take(gradient: Tensor) -> None:
            with torch.autocast(gradient.device.type, enabled=False):
                into[index] += torch.einsum("nsr,nsr->nr", h, gradient.float() @ up)

        output.register_hook(take)

    return hook
