"""Leading singular directions of the weight, dealt out alternately."""

from __future__ import annotations

from vgrout_pl.adapters.inits.base import BlockFactors, InitRequest, InitStrategy, deal
from vgrout_pl.adapters.inits.linalg import top_singular


def _pissa(request: InitRequest) -> BlockFactors:
    """W = U S V^T: rows of A0 are rows of V^T, columns of B0 columns of U (no S); 0, 2, 4, .. are deployed.

    Source: Meng et al. 2024 (PiSSA). Departures: two blocks, unit norms, and the weight keeps its principal part.
    """
    u, _, vh = top_singular(request.weight, 2 * request.rank)
    return deal(vh, u, request.rank, alternate=True)


PISSA = InitStrategy("pissa", _pissa)
