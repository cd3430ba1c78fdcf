"""Command line of the adapters: export what a run trained."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vgrout_pl.adapters.export import WHAT, export_adapter, export_merged, push_to_hub
from vgrout_pl.adapters.run import RunAdapter, load_run

DTYPES = ("float32", "bfloat16", "float16")


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on stderr and exit status 2."""
    options = build_parser().parse_args(args)
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    try:
        options.run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Define the commands."""
    parser = argparse.ArgumentParser(prog="python -m vgrout_pl.adapters", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    export = commands.add_parser("export", help="write a standard PEFT LoRA directory, or a merged model")
    export.add_argument("--ckpt", type=Path, required=True, help="run directory, or one of its .ckpt files")
    export.add_argument("--what", choices=list(WHAT), default="deployed", help="default: deployed")
    export.add_argument("--out", type=Path, required=True, help="new or empty directory")
    export.add_argument("--base", help="base model, where it is not where the run had it")
    export.add_argument("--merge", action="store_true", help="write the whole model, merged, instead of a LoRA")
    export.add_argument("--dtype", choices=DTYPES, help="of the merged model (default: the run's); float32 is exact")
    export.add_argument("--push-to-hub", metavar="REPOSITORY", help="upload the result (private) to the hub")
    export.set_defaults(run=run_export)
    return parser


def run_export(options: argparse.Namespace) -> None:
    """Export what the options ask for."""
    if options.out.exists() and any(options.out.iterdir()):
        raise ValueError(f"--out: expected a new or empty directory; got {options.out}, which is not empty")
    if options.dtype and not options.merge:
        raise ValueError("--dtype: expected together with --merge; got an export as LoRA, which is float32")
    run = load_run(options.ckpt, options.base)
    card: dict[str, Any] = {"provenance": run.provenance, "evaluation": run.evaluation}
    if options.merge:
        _merge(run, options, card)
    else:
        export_adapter(run.model, options.out, options.what, **card)
    print(f"wrote {options.what} to {options.out}")
    if options.push_to_hub:
        print(f"uploaded to {push_to_hub(options.out, options.push_to_hub)}")


def _merge(run: RunAdapter, options: argparse.Namespace, card: dict[str, Any]) -> None:
    from vgrout_pl.policy import load_base, load_tokenizer

    base = load_base(run.base, run.dtype, None)  # type: ignore[arg-type]
    dtype = getattr(torch, options.dtype) if options.dtype else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        export_merged(base, run.model, options.out, options.what, dtype=dtype, **card)
    for warning in caught:
        if issubclass(warning.category, UserWarning) and "lost" in str(warning.message):
            print(f"warning: {warning.message}", file=sys.stderr)
    load_tokenizer(run.base).save_pretrained(str(options.out))


if __name__ == "__main__":
    sys.exit(main())
