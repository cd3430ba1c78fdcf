"""Leading singular directions with a fixed sign: direct for small matrices, iterative for large ones."""

from __future__ import annotations

import torch
from torch import Tensor

EXACT_UP_TO = 1024
"""Smaller side up to which the full decomposition is taken."""
TOLERANCE = 1e-4
"""Largest |M v - s u| / s of a wanted triple that the iteration stops at."""
_MAX_BLOCKS = 24


def top_singular(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` leading singular triples of ``matrix`` [m, n]: U [m, count], S [count], V^T [count, n].

    Of the two signs of a pair, the one whose left vector has a positive largest entry. Beyond ``EXACT_UP_TO`` a block
    Krylov iteration from a fixed start runs until every triple has a residual below ``TOLERANCE``; where it would
    need a space half as large as the matrix, all of M M^T is diagonalised in float64.
    """
    smaller = min(matrix.shape)
    found = None
    if smaller > EXACT_UP_TO and count <= smaller // 8:
        found = _krylov(matrix, count) if matrix.shape[0] <= matrix.shape[1] else _swapped(_krylov(matrix.T, count))
    if found is None and smaller > EXACT_UP_TO:
        found = _gram(matrix, count) if matrix.shape[0] <= matrix.shape[1] else _swapped(_gram(matrix.T, count))
    if found is None:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        found = u[:, :count], s[:count], vh[:count]
    u, s, vh = found
    signs = torch.sign(u.gather(0, u.abs().argmax(dim=0, keepdim=True))).squeeze(0)
    return u * signs, s, vh * signs.unsqueeze(1)


Triples = tuple[Tensor, Tensor, Tensor]


def _swapped(found: Triples | None) -> Triples | None:
    return None if found is None else (found[2].T, found[1], found[0].T)


def _krylov(matrix: Tensor, count: int) -> Triples | None:
    """Leading triples from the space of Y, (M M^T) Y, (M M^T)^2 Y, .. for a random Y [m, count + 16]; m <= n.

    With an orthonormal basis Q of it, the triples of Q^T M are those of M but for the residual |M v - s u| / s.
    Source: Musco & Musco 2015 (block Krylov); Golub & Underwood 1977. None where the space would not stay small.
    """
    rows, width = matrix.shape[0], count + 16
    start = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(0)).to(matrix)
    block, _ = torch.linalg.qr(matrix @ start)
    bases, images = [block], [matrix.T @ block]
    while len(bases) < _MAX_BLOCKS and (len(bases) + 1) * width <= rows // 2:
        block = matrix @ images[-1]
        for _ in range(2):
            for basis in bases:
                block = block - basis @ (basis.T @ block)
        block, _ = torch.linalg.qr(block)
        bases.append(block)
        images.append(matrix.T @ block)
        if len(bases) % 3 == 0:
            u, s, vh = _project(bases, images, count)
            if bool(((matrix @ vh.T - u * s).norm(dim=0) <= TOLERANCE * s).all()):
                return u, s, vh
    return None


def _gram(matrix: Tensor, count: int) -> Triples:
    """Leading triples from the eigenvectors of M M^T in float64, m <= n: a fifth of the full decomposition's time."""
    wide = matrix.double()
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    s, u = values[-count:].flip(0).clamp_min(0).sqrt(), vectors[:, -count:].flip(1)
    vh = (u.T @ wide) / s.unsqueeze(1)
    return u.to(matrix), s.to(matrix), vh.to(matrix)


def _project(bases: list[Tensor], images: list[Tensor], count: int) -> Triples:
    """Singular triples of Q^T M, lifted back: from the eigenvectors of its Gram matrix in float64."""
    image = torch.cat(images, dim=1)
    values, vectors = torch.linalg.eigh((image.T @ image).double())
    s = values[-count:].flip(0).clamp_min(0).sqrt().to(image)
    chosen = vectors[:, -count:].flip(1).to(image)
    return torch.cat(bases, dim=1) @ chosen, s, (image @ chosen).T / s.unsqueeze(1)
