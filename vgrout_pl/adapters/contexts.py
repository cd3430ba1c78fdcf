"""Temporary states of a routed model; all nest, compose, and restore exactly, also after an exception."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn

from vgrout_pl.adapters.attach import route_state
from vgrout_pl.adapters.state import BLOCKS, DEPLOYED, QUARANTINE, as_routes, as_rows

Rows = Tensor | Sequence[bool] | None


def set_routes(model: nn.Module, routes: Tensor | Sequence[int]) -> None:
    """Route the batch rows until :func:`clear_routes`, e.g. until after a backward that re-runs the forward.

    ``routes`` is an int tensor [rows] of :class:`~vgrout_pl.adapters.state.Route`, or [rows, positions] for passes of
    that many positions, each with a route of its own. ValueError for other values.
    """
    route_state(model).change(routes=as_routes(routes))


def clear_routes(model: nn.Module) -> None:
    """Undo :func:`set_routes`: every row sees and trains both blocks."""
    route_state(model).change(routes=None)


@contextmanager
def routed(model: nn.Module, routes: Tensor | Sequence[int]) -> Iterator[None]:
    """Route the batch rows inside; keep the backward inside too where gradient checkpointing re-runs the forward."""
    state = route_state(model)
    saved = state.snapshot()
    state.change(routes=as_routes(routes))
    try:
        yield
    finally:
        state.restore(saved)


@contextmanager
def _without(model: nn.Module, blocks: tuple[str, ...], rows: Rows) -> Iterator[None]:
    state = route_state(model)
    saved = state.snapshot()
    state.change(without=blocks, rows=as_rows(rows))
    try:
        yield
    finally:
        state.restore(saved)


def ablated(model: nn.Module, rows: Rows = None) -> AbstractContextManager[None]:
    """W + D, the deployed model, for all rows or those where the bool ``rows`` [batch] is True."""
    return _without(model, (QUARANTINE,), rows)


def quarantine_only(model: nn.Module, rows: Rows = None) -> AbstractContextManager[None]:
    """W + Q, a diagnostic, for all rows or those where the bool ``rows`` [batch] is True."""
    return _without(model, (DEPLOYED,), rows)


def reference_policy(model: nn.Module, rows: Rows = None) -> AbstractContextManager[None]:
    """W alone, for all rows (then bit-equal to the bare base) or those where the bool ``rows`` [batch] is True."""
    return _without(model, BLOCKS, rows)
