"""Random orthonormal directions, disjoint between the blocks: the spectral inits without any spectrum."""

from __future__ import annotations

import torch

from vgrout_pl.adapters.inits.base import BlockFactors, InitRequest, InitStrategy, deal


def _random_split(request: InitRequest) -> BlockFactors:
    """Q factors of two Gaussian matrices: A0^T from [d_in, 2r], B0 from [d_out, 2r]; the first r are deployed."""
    d_out, d_in = request.weight.shape
    rows, _ = torch.linalg.qr(request.normal(d_in, 2 * request.rank))
    columns, _ = torch.linalg.qr(request.normal(d_out, 2 * request.rank))
    return deal(rows.T, columns, request.rank, alternate=False)


RANDOM_SPLIT = InitStrategy("random_split", _random_split)
