"""The contrastive basis itself, for gains and a rotation to be trained on."""

from __future__ import annotations

from vgrout_pl.adapters.inits.base import BlockFactors, InitRequest, InitStrategy
from vgrout_pl.adapters.inits.corda import contrastive_basis


def _antipasto(request: InitRequest) -> BlockFactors:
    """SVD of W C^(1/2) = U S V^T as in corda; V as it comes back from C^(1/2), not normalised; dealt alternately."""
    u, s, rows = contrastive_basis(request, 2 * request.rank)
    blocks = [(rows[first::2], u[:, first::2], s[first::2]) for first in (0, 1)]
    return BlockFactors(*blocks)


ANTIPASTO = InitStrategy("antipasto", _antipasto, calibrated=True, parametrisation="antipasto")
