"""Log-probabilities of sampled tokens without a [rows, T, V] tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def completion_logprobs(
    hidden: Tensor,
    targets: Tensor,
    head: Callable[[Tensor], Tensor],
    temperature: float = 1.0,
    chunk_tokens: int = 2048,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution: log_softmax(head(h) / temperature).

    Works through chunks of positions; under autograd each chunk is checkpointed, so that no more than
    [chunk_tokens, V] logits (float32) exist at any time.

    Args:
        hidden: [N, T, d] final hidden states, position t predicts ``targets[:, t]``.
        targets: [N, T] token ids.
        head: [n, d] -> [n, V] logits.
        temperature: divides the logits.
        chunk_tokens: positions a chunk.

    Returns:
        log-probabilities [N, T] (nats, float32, with gradient) and entropies [N, T] (nats, without gradient).
    """

    def chunk(h: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(h).float() / temperature
        normaliser = torch.logsumexp(logits, -1)
        picked = logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            probabilities = torch.exp(logits - normaliser.unsqueeze(-1))
            entropy = normaliser - (probabilities * logits).sum(-1)
        return picked - normaliser, entropy

    flat, flat_targets = hidden.flatten(0, 1), targets.flatten()
    recompute = torch.is_grad_enabled() and flat.requires_grad and flat.shape[0] > chunk_tokens
    parts = []
    for h, target in zip(flat.split(chunk_tokens), flat_targets.split(chunk_tokens), strict=True):
        parts.append(checkpoint(chunk, h, target, use_reentrant=False) if recompute else chunk(h, target))
    logprobs, entropies = (torch.cat(part).view(targets.shape) for part in zip(*parts, strict=True))
    return logprobs, entropies.detach()
