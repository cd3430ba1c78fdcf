"""Command line of the organism: rebuild its checkpoint, evaluate one, look at its problems."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vgrout_pl.env.modes import MODES
from vgrout_pl.organism import CHECKPOINT, SPLIT_SIZES, problems
from vgrout_pl.organism.corpus import Recipe


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on stderr and exit status 2."""
    options = build_parser().parse_args(args)
    try:
        options.run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Define the commands."""
    show_defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m vgrout_pl.organism", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    warm = commands.add_parser(
        "warm-start",
        help="train the organism from random weights and write a checkpoint (some 5 CPU minutes)",
        formatter_class=show_defaults,
    )
    warm.add_argument("--out", type=Path, required=True, help="new or empty directory for the checkpoint")
    warm.add_argument("--steps", type=int, default=Recipe.steps, help="optimizer steps")
    warm.add_argument("--seed", type=int, default=Recipe.seed, help="seed of the corpus and of the initial weights")
    warm.add_argument("--threads", type=int, default=1, help="torch threads; more than one is rarely faster")
    warm.add_argument("--problems", type=int, default=SPLIT_SIZES["validation"], help="problems for the card's figures")
    warm.set_defaults(run=run_warm_start)

    judge = commands.add_parser(
        "evaluate", help="print format, solve and hack rates of a checkpoint", formatter_class=show_defaults
    )
    judge.add_argument("--path", type=Path, default=CHECKPOINT, help="checkpoint directory")
    judge.add_argument("--split", choices=list(SPLIT_SIZES), default="validation", help="problems to answer")
    judge.add_argument("--problems", type=int, default=None, help="how many of them (default: the split's usual size)")
    judge.add_argument("--repeats", type=int, default=2, help="answers a problem")
    judge.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    judge.add_argument("--threads", type=int, default=1, help="torch threads")
    judge.set_defaults(run=run_evaluate)

    show = commands.add_parser("problems", help="print a few problems of a split", formatter_class=show_defaults)
    show.add_argument("--split", choices=list(SPLIT_SIZES), default="train", help="which split")
    show.add_argument("--mode", choices=list(MODES), default="run_tests", help="grading mode")
    show.add_argument("--n", type=int, default=3, help="how many")
    show.add_argument("--seed", type=int, default=0, help="which sample of the split")
    show.set_defaults(run=run_problems)
    return parser


def run_warm_start(options: argparse.Namespace) -> None:
    """Train, save, evaluate what was saved, and write the card."""
    recipe = Recipe(steps=options.steps, seed=options.seed)
    require_positive("problems", options.problems)
    out: Path = options.out
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"expected --out to name a new or empty directory; {str(out)!r} is neither")
    set_threads(options.threads)
    # Torch is loaded only once the arguments have been found sound.
    from vgrout_pl.organism.card import write_card
    from vgrout_pl.organism.evaluate import evaluate, format_figures, load_checkpoint
    from vgrout_pl.organism.model import save_checkpoint
    from vgrout_pl.organism.warm_start import warm_start

    start = time.process_time()
    model, tokenizer = warm_start(recipe)
    save_checkpoint(model, tokenizer, out)
    print(f"trained in {time.process_time() - start:.0f} CPU seconds; checkpoint in {out}")
    stored, stored_tokenizer = load_checkpoint(out)
    figures = evaluate(stored, stored_tokenizer, n=options.problems)
    write_card(out, recipe, sum(p.numel() for p in stored.parameters()), figures)
    print(format_figures(figures))


def run_evaluate(options: argparse.Namespace) -> None:
    """Print the figures of a checkpoint."""
    require_positive("repeats", options.repeats)
    require_positive("problems", options.problems)
    set_threads(options.threads)
    from vgrout_pl.organism.evaluate import evaluate, format_figures, load_checkpoint

    model, tokenizer = load_checkpoint(options.path)
    print(format_figures(evaluate(model, tokenizer, options.split, options.problems, options.repeats, options.seed)))


def run_problems(options: argparse.Namespace) -> None:
    """Print problems with their tests and canonical solutions."""
    require_positive("n", options.n)
    for problem in problems(options.split, options.mode, options.n, options.seed):
        print(f"## {problem.id} ({problem.mode})")
        for message in problem.messages:
            print(f"{message['role']}: {message['content']}")
        print(f"\n{problem.canonical_solution}")
        print("\n".join(problem.tests), end="\n\n")


def require_positive(option: str, value: int | None) -> None:
    """Refuse a count below 1 by the name of its option."""
    if value is not None and value < 1:
        raise ValueError(f"expected --{option} of at least 1; got {value}")


def set_threads(n: int) -> None:
    """Set the number of torch threads."""
    require_positive("threads", n)
    import torch

    torch.set_num_threads(n)


if __name__ == "__main__":
    sys.exit(main())
