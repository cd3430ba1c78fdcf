"""What an init is given and what it returns."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Factors = tuple[Tensor, ...]


class BlockFactors(NamedTuple):
    """What both blocks start from: (A0 [r, d_in], B0 [d_out, r]), or (V [r, d_in], U [d_out, r], S [r])."""

    deployed: Factors
    quarantine: Factors


@dataclass(frozen=True)
class InitRequest:
    """One module's init problem.

    Attributes:
        name: the module's name.
        weight: frozen weight, fp32 [d_out, d_in].
        rank: r, the rank of one block.
        generator: CPU generator of this module's own random stream.
        deltas: completion-mean input activations, hack minus clean, fp32 [pairs, d_in]; None if not calibrated.
        groups: int64 [pairs], the pair's group (mechanism); None: one group.
        signed_directions: k, seeded directions of the signed inits.
        covariance_eps: ridge as a share of the covariance's mean eigenvalue.
    """

    name: str
    weight: Tensor
    rank: int
    generator: torch.Generator
    deltas: Tensor | None = None
    groups: Tensor | None = None
    signed_directions: int = 1
    covariance_eps: float = 1e-3

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers of this module's stream, on the weight's device (same on every device)."""
        return torch.randn(*shape, generator=self.generator).to(self.weight.device)


@dataclass(frozen=True)
class InitStrategy:
    """A named init.

    Attributes:
        name: its key in the registry.
        build: the init itself, pure but for the request's generator.
        calibrated: whether it needs ``deltas``.
        orthogonal: whether it needs 2 r orthogonal directions on both sides of the weight.
        seeded_block: the block whose first rows are the signed directions; None: nothing is seeded.
        parametrisation: what trains: ``lora`` (A, B) or ``antipasto`` (gains and a rotation on frozen directions).
    """

    name: str
    build: Callable[[InitRequest], BlockFactors]
    calibrated: bool = False
    orthogonal: bool = True
    seeded_block: Literal["deployed", "quarantine"] | None = None
    parametrisation: Literal["lora", "antipasto"] = "lora"


def module_generator(seed: int, name: str) -> torch.Generator:
    """The random stream of one module, a function of the run's init seed and the module's name alone."""
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + zlib.crc32(name.encode())) % 2**63)


def unit(rows: Tensor, dim: int = -1) -> Tensor:
    """``rows`` divided by their Euclidean norm along ``dim``."""
    return rows / rows.norm(dim=dim, keepdim=True)


def deal(rows: Tensor, columns: Tensor, rank: int, *, alternate: bool) -> BlockFactors:
    """Deal 2 r directions (rows [2r, d_in], columns [d_out, 2r]) to the blocks: 0, 2, 4, .. or the first r deployed."""
    first, second = (slice(0, None, 2), slice(1, None, 2)) if alternate else (slice(rank), slice(rank, None))
    return BlockFactors((rows[first], columns[:, first]), (rows[second], columns[:, second]))
