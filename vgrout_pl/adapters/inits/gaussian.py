"""Gaussian init, and its unit-norm twin as the control for scale."""

from __future__ import annotations

from vgrout_pl.adapters.inits.base import BlockFactors, Factors, InitRequest, InitStrategy, unit


def _block(request: InitRequest) -> Factors:
    d_out, d_in = request.weight.shape
    a0 = request.normal(request.rank, d_in) / d_in**0.5
    b0 = request.normal(d_out, request.rank) / (2 * request.rank) ** 0.5
    return a0, b0


def _gaussian(request: InitRequest) -> BlockFactors:
    """A0 ~ N(0, 1/d_in), B0 ~ N(0, 1/(2r)), independent between the blocks."""
    return BlockFactors(_block(request), _block(request))


def _gaussian_unit(request: InitRequest) -> BlockFactors:
    """The same draws with rows of A0 and columns of B0 scaled to unit norm, the scale of the spectral inits."""
    return BlockFactors(*((unit(a0), unit(b0, dim=0)) for a0, b0 in _gaussian(request)))


GAUSSIAN = InitStrategy("gaussian", _gaussian, orthogonal=False)
GAUSSIAN_UNIT = InitStrategy("gaussian_unit", _gaussian_unit, orthogonal=False)
