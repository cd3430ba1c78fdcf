"""What packed weights and shared prompts save in sampling on a CPU, as ratios within one run.

    python bench/decode.py [--repeats 3] [--part all|products|attention|generate]

Products of a few rows with a weight as it lies and in oneDNN's layout, weights taken in turn from 120 MB; attention of
one new token for each of 8 rows to 300 prompt tokens that they share and 64 of their own; and 8 completions of 128
tokens from one prompt of 300, 2 rows ablated, by the 29M model of ``bench/adapter.py``, with neither, each and both.
One thread, CPU seconds, the least of interleaved repeats.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from adapter import bench_model, least_seconds, routed_model
from transformers import AutoTokenizer

from vgrout_pl import organism
from vgrout_pl.adapters.packed_linear import PackedLinear
from vgrout_pl.generation import generate
from vgrout_pl.kv_cache import PromptCache
from vgrout_pl.sampling import Sampling, SamplingRequest
from vgrout_pl.shared_attention import SharedPrompts, softmax_attention

ROWS, HEADS, GROUP, WIDTH, PROMPT, OWN, ROOM = 8, 4, 2, 64, 300, 64, 128


@torch.no_grad()
def products(repeats: int) -> None:
    print(f"{'product':34s}    as it lies       packed   ratio")
    for dtype in (torch.float32, torch.bfloat16):
        for d_out, d_in in ((1536, 512), (512, 1536), (256, 512), (8192, 512), (384, 96)):
            weights = [torch.randn(d_out, d_in, dtype=dtype) for _ in range(max(2, 120_000_000 // (4 * d_out * d_in)))]
            packed = [PackedLinear(weight) for weight in weights]
            for rows in (1, 8, 64):
                x = torch.randn(rows, d_in, dtype=dtype)
                jobs: dict[str, Callable[[], None]] = {
                    "plain": lambda x=x, weights=weights: [torch.nn.functional.linear(x, w) for w in weights],
                    "packed": lambda x=x, packed=packed: [product(x) for product in packed],
                }
                seconds = {name: s / len(weights) * 1e6 for name, s in least_seconds(jobs, repeats).items()}
                title = f"{str(dtype)[6:]}, {rows} rows x {d_out} x {d_in}"
                plain, fast = seconds["plain"], seconds["packed"]
                print(f"{title:34s} {plain:10.0f} us {fast:10.0f} us {plain / fast:6.2f}x", flush=True)


@torch.no_grad()
def attention(repeats: int) -> None:
    query = torch.randn(ROWS, HEADS, GROUP, WIDTH)
    cache = PromptCache()
    cache.update(torch.randn(1, HEADS, PROMPT, WIDTH), torch.randn(1, HEADS, PROMPT, WIDTH), 0)
    shared = SharedPrompts(cache, torch.ones(1, PROMPT), torch.zeros(ROWS, dtype=torch.long))
    own = [torch.randn(ROWS, HEADS, OWN, WIDTH) for _ in range(2)]
    whole = [
        torch.cat([part.expand(ROWS, -1, -1, -1), mine], 2) for part, mine in zip(shared.layers[0], own, strict=True)
    ]

    def apart() -> None:
        out, log = softmax_attention(query, own[0], own[1], 0.125, None)
        prompt, prompt_log = shared.attend(0, query, 0.125)
        torch.lerp(out, prompt, torch.sigmoid(prompt_log - log).unsqueeze(-1))

    jobs: dict[str, Callable[[], None]] = {"shared prompt, float32": lambda: [apart() for _ in range(100)]}
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = query.to(dtype), whole[0].to(dtype), whole[1].to(dtype)
        jobs[f"each row's own copy, {str(dtype)[6:]}"] = lambda q=q, k=k, v=v: [
            torch.nn.functional.scaled_dot_product_attention(q, k, v) for _ in range(100)
        ]
    seconds = least_seconds(jobs, repeats)
    for name, value in seconds.items():
        print(f"attention, {name:32s} {1e4 * value:8.0f} us {value / seconds['shared prompt, float32']:6.2f}x")


@contextmanager
def only(packs: bool, shares: bool) -> Iterator[None]:
    """Switch either off."""
    with (
        mock.patch("vgrout_pl.adapters.packing.LEAST_WEIGHT", 0 if packs else 2**62),
        mock.patch("vgrout_pl.shared_attention.LEAST_SAVED", 0 if shares else 2**62),
    ):
        yield


def sampling(repeats: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(organism.CHECKPOINT)
    ids = torch.randint(5, 8000, (1, PROMPT), generator=torch.Generator().manual_seed(3))
    settings = Sampling(max_new_tokens=ROOM, min_new_tokens=ROOM)
    request = SamplingRequest(
        ids,
        torch.ones_like(ids),
        torch.zeros(ROWS, dtype=torch.long),
        settings,
        ("decode",),
        torch.arange(ROWS) % 4 == 0,
        logprob_temperature=1.0,
    )
    for dtype in (torch.float32, torch.bfloat16):
        model = routed_model(bench_model(dtype).requires_grad_(False)).eval()

        def job(packs: bool, shares: bool, model: torch.nn.Module = model) -> None:
            with only(packs, shares):
                generate(model, tokenizer, request)

        kinds = {"neither": (False, False), "packed": (True, False), "shared": (False, True), "both": (True, True)}
        seconds = least_seconds({name: lambda kind=kind: job(*kind) for name, kind in kinds.items()}, repeats)
        figures = " · ".join(f"{n} {s:.2f}s {s / seconds['neither']:.2f}x" for n, s in seconds.items())
        print(f"8 x 128 tokens, {str(dtype)[6:]}: {figures}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    parts = {"products": products, "attention": attention, "generate": sampling}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", choices=("all", *parts), default="all")
    options = parser.parse_args()
    for name, part in parts.items():
        if options.part in ("all", name):
            part(options.repeats)


if __name__ == "__main__":
    main()
