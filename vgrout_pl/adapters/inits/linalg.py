"""Leading singular directions with a fixed sign."""

from __future__ import annotations

import torch
from torch import Tensor


def top_singular(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` leading singular triples of ``matrix`` [m, n]: U [m, count], S [count], V^T [count, n].

    Of the two signs of a pair, the one whose left vector has a positive largest entry.
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    u, s, vh = u[:, :count], s[:count], vh[:count]
    signs = torch.sign(u.gather(0, u.abs().argmax(dim=0, keepdim=True))).squeeze(0)
    return u * signs, s, vh * signs.unsqueeze(1)
