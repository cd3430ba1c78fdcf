"""What passes through a model cost, read off the package's own code on fake tensors: no weights, no data."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
_MOVES_NOTHING = {aten.empty, aten.new_empty, aten.empty_like, aten.empty_strided, aten.new_empty_strided}
_READS_ROWS = {aten.embedding, aten.index, aten.index_select, aten.gather, aten.slice_backward}
"""Operators that read no more of their operands than they write."""


class Operation(NamedTuple):
    """One kind of operator call.

    Attributes:
        flops: floating point operations of its product, 0 for everything else.
        bytes: read and written.
        dtype: of what it computes; None where it is no product.
    """

    flops: int
    bytes: int
    dtype: torch.dtype | None


class Cost:
    """How often each operation runs: costs add up, and are scaled by a number of repetitions."""

    def __init__(self, operations: Counter[Operation] | dict[Operation, float] | None = None) -> None:
        self.operations: dict[Operation, float] = dict(operations or {})

    def __add__(self, other: Cost) -> Cost:
        total = dict(self.operations)
        for operation, times in other.operations.items():
            total[operation] = total.get(operation, 0.0) + times
        return Cost(total)

    def __mul__(self, times: float) -> Cost:
        return Cost({operation: times * count for operation, count in self.operations.items()})

    @property
    def flops(self) -> float:
        """Floating point operations of all products, two a multiply-add."""
        return sum(times * operation.flops for operation, times in self.operations.items())

    @property
    def product_bytes(self) -> float:
        """What the products alone read and write."""
        return sum(times * op.bytes for op, times in self.operations.items() if op.dtype is not None)

    @property
    def bytes(self) -> float:
        """What all operators read and write, each by itself."""
        return sum(times * operation.bytes for operation, times in self.operations.items())

    @property
    def calls(self) -> float:
        """Operators launched."""
        return sum(self.operations.values())


class Tally(TorchDispatchMode):
    """Counts what runs under its labels on fake tensors, and the memory that is allocated there and not yet freed.

    Attributes:
        costs: label -> what ran under it.
        peak: most bytes that lived at a time.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.costs: dict[str, Counter[Operation]] = {}
        self.live = self.peak = 0
        self._fake = fake
        self._label = ""
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    @contextmanager
    def under(self, label: str) -> Iterator[None]:
        """Count under a label; states of the adapter must be entered outside."""
        self._label = label
        self.costs.setdefault(label, Counter())
        with ExitStack() as stack:
            for context in (_fused_attention(), self._fake, self):
                stack.enter_context(context)
            yield

    def cost(self, label: str) -> Cost:
        """What ran under a label; nothing where there is none."""
        return Cost(self.costs.get(label))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is torch.ops.prim.device.default:  # asked for all the time, and no work
            return out
        inputs, outputs = _tensors((*args, *kwargs.values())), _tensors((out,))
        self._known.update(tensor.untyped_storage() for tensor in inputs)
        self._allocate(outputs)
        operation = _operation(func, args, kwargs, inputs, outputs, out)
        if operation is not None:
            self.costs[self._label][operation] += 1
        return out

    def _allocate(self, outputs: list[Tensor]) -> None:
        for tensor in outputs:
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.live)

    def _free(self, size: int) -> None:
        self.live -= size


def _operation(func: Any, args: Any, kwargs: Any, inputs: list[Tensor], outputs: list[Tensor], out: Any) -> Any:
    packet = func._overloadpacket
    if packet in flop_registry:
        moved = sum(map(_size, (*inputs, *outputs)))
        return Operation(flop_registry[packet](*args, **kwargs, out_val=out), moved, outputs[0].dtype)
    if packet in _MOVES_NOTHING or not outputs or _is_view(func, inputs, outputs):
        return None
    written = sum(map(_size, outputs))
    read = written if packet in _READS_ROWS else sum(map(_size, inputs))
    return Operation(0, written + read, None)


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    """Those of some values that are tensors, lists of them opened."""
    flat = [part for value in values for part in (value if isinstance(value, list | tuple) else (value,))]
    return [value for value in flat if isinstance(value, Tensor)]


def _size(tensor: Tensor) -> int:
    """Bytes that a tensor covers, expanded dimensions once."""
    covered = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return math.prod(covered) * tensor.itemsize


def _is_view(func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    if func._schema.is_mutable:
        return False
    shared = {tensor.untyped_storage()._cdata for tensor in inputs}
    return all(tensor.untyped_storage()._cdata in shared for tensor in outputs)


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as a GPU runs it: one kernel that never keeps its weights."""

    def fused(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False)[0]
        return out

    own = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = own
