"""Log-probabilities of sampled tokens without a [rows, T, V] tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Head = Callable[[Tensor], Tensor]


def completion_logprobs(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    temperature: float = 1.0,
    chunk_tokens: int = 512,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution: log_softmax(head(h) / temperature).

    Works through chunks of positions, so that no more than [chunk_tokens, V] logits (float32) exist at any time. Each
    position's results depend on its own hidden state alone, so their derivatives by it, [N, T, d], are taken while the
    chunk's logits are there; the backward pass only scales them and computes no logits again. The head must be
    frozen.

    Args:
        hidden: [N, T, d] final hidden states, position t predicts ``targets[:, t]``.
        targets: [N, T] token ids.
        head: [n, d] -> [n, V] logits.
        temperature: divides the logits.
        chunk_tokens: positions a chunk.
        entropy_gradient: whether the entropies carry a gradient.

    Returns:
        log-probabilities [N, T] (nats, float32, with gradient) and entropies [N, T] (nats).
    """
    results = _HeadStatistics.apply(
        hidden.flatten(0, 1), targets.flatten(), head, temperature, chunk_tokens, entropy_gradient
    )
    logprobs, entropies = (result.view(targets.shape) for result in results)
    return logprobs, entropies if entropy_gradient else entropies.detach()


class _HeadStatistics(torch.autograd.Function):
    """Log-probabilities and entropies of positions, with their derivatives by the hidden states made on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        head: Head,
        temperature: float,
        chunk_tokens: int,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities and entropies, each float32 [n]."""
        wanted = ctx.needs_input_grad[0]
        logprobs, entropies, slopes, entropy_slopes = [], [], [], []
        for h, target in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True):
            with torch.set_grad_enabled(wanted):
                h = h.detach().requires_grad_(wanted)
                logits = head(h).float()
                log_probabilities = (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)
                logprob = log_probabilities.gather(-1, target.unsqueeze(-1)).squeeze(-1)
                with torch.set_grad_enabled(wanted and entropy_gradient):
                    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
            if wanted:
                slopes += torch.autograd.grad(logprob, h, torch.ones_like(logprob), retain_graph=entropy_gradient)
                if entropy_gradient:
                    entropy_slopes += torch.autograd.grad(entropy, h, torch.ones_like(entropy))
            logprobs.append(logprob.detach())
            entropies.append(entropy.detach())
        ctx.save_for_backward(*(torch.cat(part) for part in (slopes, entropy_slopes) if part))
        return torch.cat(logprobs), torch.cat(entropies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprobs: Tensor, of_entropies: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the derivatives kept by the forward pass."""
        slopes, *entropy_slopes = ctx.saved_tensors
        grad = slopes * of_logprobs.unsqueeze(-1).to(slopes.dtype)
        for slope in entropy_slopes:
            grad = grad + slope * of_entropies.unsqueeze(-1).to(slope.dtype)
        return grad, None, None, None, None, None
