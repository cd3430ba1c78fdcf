"""Directions of the weight that matter most where the two sides of contrastive pairs differ."""

from __future__ import annotations

import torch
from torch import Tensor

from vgrout_pl.adapters.inits.base import BlockFactors, InitRequest, InitStrategy, deal, unit
from vgrout_pl.adapters.inits.linalg import top_singular


class CovarianceRoot:
    """C^(1/2) for C = Delta^T Delta / P + a I, a = eps tr(Delta^T Delta / P) / d_in, without a [d_in, d_in] matrix.

    With the thin SVD Delta / sqrt(P) = L diag(s) R^T:  C^(1/2) = sqrt(a) I + R diag(sqrt(s^2 + a) - sqrt(a)) R^T.
    """

    def __init__(self, deltas: Tensor, eps: float) -> None:
        pairs, d_in = deltas.shape
        _, s, vh = torch.linalg.svd(deltas / pairs**0.5, full_matrices=False)
        ridge = eps * (s**2).sum() / d_in
        self.root_ridge = ridge.sqrt()
        self.axes = vh.T
        self.gains = (s**2 + ridge).sqrt() - self.root_ridge

    def right_multiply(self, matrix: Tensor) -> Tensor:
        """Product matrix [n, d_in] @ C^(1/2)."""
        return self.root_ridge * matrix + ((matrix @ self.axes) * self.gains) @ self.axes.T


def contrastive_basis(request: InitRequest, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [d_out, count], S [count] and V^T C^(1/2) [count, d_in] of the SVD U S V^T of W C^(1/2)."""
    if request.deltas is None or not bool(request.deltas.any()):
        raise ValueError(
            f"{request.name}: expected contrastive differences; got none that is not zero; check the pairs"
        )
    root = CovarianceRoot(request.deltas, request.covariance_eps)
    u, s, vh = top_singular(root.right_multiply(request.weight), count)
    return u, s, root.right_multiply(vh)


def _corda(request: InitRequest) -> BlockFactors:
    """SVD of W C^(1/2) = U S V^T: columns of B0 from U, rows of A0 from V^T C^(1/2), unit norm, dealt alternately.

    Source: Yang et al. 2024 (CorDA). Departures: a contrastive covariance with a ridge, its root instead of C, two
    blocks, unit norms, and the weight stays whole.
    """
    u, _, rows = contrastive_basis(request, 2 * request.rank)
    return deal(unit(rows), u, request.rank, alternate=True)


CORDA = InitStrategy("corda", _corda, calibrated=True)
