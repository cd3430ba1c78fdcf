"""What a machine can do: named GPUs by their data sheets, or this machine by a short measurement."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from vgrout_pl.adapters.packed_linear import PackedLinear
from vgrout_pl.plan.trace import Cost, Tally


@dataclass(frozen=True)
class Machine:
    """Rates of one device.

    Attributes:
        name: shown.
        bfloat16: peak FLOP/s of dense products in bfloat16.
        float32: peak FLOP/s of dense products in float32.
        bandwidth: bytes/s of its memory at best.
        memory: bytes; None: not told.
        product_share: share of the peak that products are taken to reach.
        bandwidth_share: share of the bandwidth that products which wait for memory are taken to reach.
        other_bandwidth: bytes/s that all other operators are taken to reach.
        call_seconds: what launching one operator takes.
        overlaps: launches run ahead of the device's work, so that the longer of the two counts, not their sum.
    """

    name: str
    bfloat16: float
    float32: float
    bandwidth: float
    memory: float | None
    product_share: float
    bandwidth_share: float
    other_bandwidth: float
    call_seconds: float
    overlaps: bool

    def floor(self, cost: Cost) -> float:
        """Seconds that nothing can beat: the products' FLOPs at the peak, or their bytes at full bandwidth."""
        counted = cost.operations.items()
        compute = sum(times * op.flops / self._peak(op.dtype) for op, times in counted if op.dtype is not None)
        return max(compute, cost.product_bytes / self.bandwidth)

    def estimate(self, cost: Cost) -> float:
        """Seconds at the shares above: each operator waits for its FLOPs or for its bytes, and has to be launched."""
        busy = 0.0
        for op, times in cost.operations.items():
            if op.dtype is None:
                busy += times * op.bytes / self.other_bandwidth
            else:
                compute = op.flops / (self._peak(op.dtype) * self.product_share)
                busy += times * max(compute, op.bytes / (self.bandwidth * self.bandwidth_share))
        launching = cost.calls * self.call_seconds
        return max(busy, launching) if self.overlaps else busy + launching

    def _peak(self, dtype: torch.dtype | None) -> float:
        if dtype == torch.float64:
            return self.float32 / 2
        return self.bfloat16 if dtype in (torch.bfloat16, torch.float16) else self.float32

    def assumptions(self) -> str:
        """One line."""
        if not self.overlaps:
            return (
                f"measured here: products {self.float32 / 1e9:.0f} GFLOP/s, weights {self.bandwidth / 1e9:.1f} GB/s, "
                f"other operators {self.other_bandwidth / 1e9:.1f} GB/s, {self.call_seconds * 1e6:.1f} us an operator"
            )
        return (
            f"assumed, not measured: products reach {self.product_share:.0%} of {self.bfloat16 / 1e12:.0f} TFLOP/s "
            f"(bfloat16) or {self.bandwidth_share:.0%} of {self.bandwidth / 1e12:.2f} TB/s, other operators "
            f"{self.other_bandwidth / 1e12:.2f} TB/s; {self.call_seconds * 1e6:.0f} us to launch an operator"
        )


def _gpu(name: str, bfloat16: float, float32: float, bandwidth: float, memory: float) -> Machine:
    return Machine(
        name,
        bfloat16 * 1e12,
        float32 * 1e12,
        bandwidth * 1e12,
        memory * 1e9,
        product_share=0.5,
        bandwidth_share=0.7,
        other_bandwidth=0.7e12 * bandwidth,
        call_seconds=10e-6,
        overlaps=True,
    )


GPUS = {
    "h200": _gpu("NVIDIA H200 SXM", 989, 67, 4.8, 141),
    "h100": _gpu("NVIDIA H100 SXM", 989, 67, 3.35, 80),
    "a100_80": _gpu("NVIDIA A100 80 GB SXM", 312, 19.5, 2.039, 80),
    "l40s": _gpu("NVIDIA L40S", 362, 91.6, 0.864, 48),
    "rtx4090": _gpu("NVIDIA GeForce RTX 4090", 165.2, 82.6, 1.008, 24),
}
"""Data sheets: TFLOP/s of dense products (bfloat16 with float32 sums; float32 without tensor cores), TB/s, GB."""


def measured(rows: int = 8) -> Machine:
    """This machine's CPU, as torch's present number of threads uses it; takes a few seconds of a quiet machine.

    Args:
        rows: that decoding multiplies by each weight at a time.
    """
    x, wide, narrow = torch.randn(1024, 512), torch.randn(1536, 512), torch.randn(128, 512)

    def products() -> None:
        torch.nn.functional.linear(x, wide)
        torch.nn.functional.linear(x, narrow)

    rate = 2.0 * 1024 * 512 * (1536 + 128) / _seconds(products, 40)
    layer = ((512, 512), (256, 512), (256, 512), (1536, 512), (1536, 512), (128, 512), (128, 512))  # adapters included
    weights = [torch.randn(shape) for shape in layer * 10]
    skinny = torch.randn(rows, 512)
    moved = sum(w.nbytes for w in weights)
    packs = PackedLinear.can_hold(weights[0])
    multiply = [PackedLinear(w) if packs else partial(torch.nn.functional.linear, weight=w) for w in weights]

    def decode() -> None:
        for product in multiply:  # as sampling does
            product(skinny)

    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)

    def others() -> None:
        kept.append(torch.nn.functional.silu(a) * b)  # as autograd keeps some: fresh memory
        a.log_softmax(-1)
        if len(kept) == 40:
            kept.clear()

    kept: list[torch.Tensor] = []

    return Machine(
        name=f"this machine's CPU, {torch.get_num_threads()} threads",
        bfloat16=rate,
        float32=rate,
        bandwidth=moved / _seconds(decode, 5),
        memory=None,
        product_share=1.0,
        bandwidth_share=1.0,
        other_bandwidth=7 * a.nbytes / _seconds(others, 40),
        call_seconds=_call_seconds(),
        overlaps=False,
    )


def _seconds(job: Callable[[], object], times: int) -> float:
    """CPU seconds of one run, the least of three rounds after a first that does not count."""
    rounds = []
    for _ in range(4):
        started = time.process_time()
        for _ in range(times):
            job()
        rounds.append((time.process_time() - started) / times)
    return min(rounds[1:])


@torch.no_grad()
def _call_seconds() -> float:
    """Seconds an operator takes that has next to nothing to do, its share of the model's Python code included."""

    def tiny() -> PreTrainedModel:
        config = Qwen3Config(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            vocab_size=16,
        )
        return Qwen3ForCausalLM(config).eval()

    fake = FakeTensorMode()
    tally = Tally(fake)
    with fake:
        shapes, ids = tiny(), torch.zeros(1, 4, dtype=torch.long)
    with tally.under("pass"):
        shapes(input_ids=ids, use_cache=False)
    model, real = tiny(), torch.zeros(1, 4, dtype=torch.long)
    return _seconds(lambda: model(input_ids=real, use_cache=False), 20) / tally.cost("pass").calls
