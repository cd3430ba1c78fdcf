"""Optimiser and schedule: AdamW without its own decay, linear warm-up, cosine to zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from vgrout_pl.adapters import install_decay_toward_init


@dataclass(frozen=True)
class Optimization:
    """How the adapter is optimised.

    Args:
        lr: peak learning rate.
        betas: AdamW's moments.
        warmup_steps: optimizer steps of linear warm-up.
        init_decay: decoupled decay toward the initial adapter after each step, p -= lr * init_decay * (p - p0).
    """

    lr: float = 2e-5
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_steps: int = 5
    init_decay: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if not self.lr > 0:
            raise ValueError(f"model.optimization.lr: expected a positive learning rate; got {self.lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"model.optimization.betas: expected two numbers in [0, 1); got {list(self.betas)}")
        if self.warmup_steps < 0 or self.init_decay < 0:
            raise ValueError(
                "model.optimization: expected warmup_steps and init_decay of 0 or more; got "
                f"{self.warmup_steps} and {self.init_decay}"
            )


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Share of the peak learning rate at an optimizer step: (step + 1) / warmup, then cosine from 1 to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(
    policy: nn.Module, options: Optimization, total_steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW over the trainable parameters, with decay toward init after each step, and its schedule."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, betas=options.betas, weight_decay=0.0)
    install_decay_toward_init(optimizer, policy, options.init_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, options.warmup_steps, total_steps)
    )
    return optimizer, schedule
