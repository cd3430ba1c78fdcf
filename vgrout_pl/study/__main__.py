"""Command line of the classifier study."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

import torch

from vgrout_pl.directions.scores import AGGREGATIONS
from vgrout_pl.env import Problem
from vgrout_pl.policy import ORGANISM
from vgrout_pl.sampling import Sampling
from vgrout_pl.study.core import Design, Study
from vgrout_pl.study.model import Subject, tokenised
from vgrout_pl.study.reading import POOLINGS, SITES, read_blocks, readers, usable
from vgrout_pl.study.report import FILES, write_results
from vgrout_pl.study.rollouts import StoredRollout, choose, load_rollouts
from vgrout_pl.study.sources import (
    SELF_GENERATED,
    StudySource,
    configured_pairs,
    default_pairs,
    default_placebos,
    fitting,
    pair_sources,
    self_generated,
    self_generated_file,
    shown_problems,
    sign_flipped,
    stored_self_generated,
)

DESCRIPTION = """Score stored, labelled rollouts along every {source of directions} x {site} x {pooling} x
{aggregation}, each against random directions in the identical pipeline, before any training.

  python -m vgrout_pl.study RUN_DIR                      a run's rollouts, on its adapter as last saved
  python -m vgrout_pl.study RUN_DIR --model organism     the same rollouts, on a base with a fresh adapter
  python -m vgrout_pl.study --rollouts FILE.jsonl --model PATH

Writes study.json, study.md and study.png. Rows are those that were paid (hacks and solves) under hinted prompts; the
cut is the 1 - tail quantile of these rows, so that F0.5 at the cut says most where hacks are about as rare as the rows
above it: see --base-rate. It is not a live gate's cut, which is a quantile of every row in groups with reward
differences, rows that were paid nothing and hint-free ones included, the latest weighted most: nothing at the cut says
what a gate would have reached. --among all --hint-free studies such rows too (of groups without differences as well).

Random directions, others at every site and pooling, give each cell's median and 95th percentile, and the threshold of
the family: the value that their largest over all cells exceeds in a share alpha / S of them, S sources (Bonferroni).
It covers one metric: F0.5 at the cut is the confirmatory one, the others are descriptive. Where ties leave few rows
above the cut (votes of few modules), F0.5 and precision say nothing; such cells are marked and not counted. Placebos
may exceed the threshold too: only what they do not reach counts. The oracle is fitted to the labels of other problems
than those it is judged on.

A SET is a Markdown file, a packaged set, or pairs on the organism's problems, organism[:MODE,...]. "authored" is the
whole packaged set, as a gate with source: authored takes it; authored:MODE,... is its pairs of these modes. By default
the set that the run's gate was given by name; else, as a gate without a source, the pairs in the studied modes:
organism:MODE,... on the organism, authored:MODE,... on any other model. n, the number of pairs, is in every table."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the study; a user's mistake is one line on stderr and exit status 2."""
    options = build_parser().parse_args(args)
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    try:
        run_study(options)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vgrout_pl.study", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN_DIR", help="its rollouts, adapter and pairs")
    parser.add_argument("--out", type=Path, help="folder of the results; default: RUN_DIR/study, or study")
    model = parser.add_argument_group("model")
    model.add_argument("--model", help=f"{ORGANISM}, a directory or a hub id: a base with a fresh adapter")
    model.add_argument("--ckpt", type=Path, help="a run's .ckpt file, or a run directory: the adapter saved there")
    model.add_argument("--rank", type=int, help="of each block of a fresh adapter (default 32; the organism's: 8)")
    model.add_argument("--init", default="gaussian", help="of a fresh adapter (default gaussian)")
    model.add_argument("--init-seed", type=int, default=0, help="of a fresh adapter (default 0)")
    model.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of a base (default float32)"
    )
    model.add_argument("--device", help="default: cuda where there is one, else cpu")
    rows = parser.add_argument_group("rows")
    rows.add_argument("--rollouts", nargs="+", type=Path, metavar="FILE", help="files as RUN_DIR/rollouts.jsonl")
    rows.add_argument("--steps", type=_steps, metavar="FROM:END", help="only these training steps, END not taken")
    rows.add_argument("--modes", nargs="+", metavar="MODE", help="loophole modes; needed where there are several")
    rows.add_argument("--hint-free", action="store_true", help="take rows of hint-free prompts too (never hacks)")
    rows.add_argument(
        "--among", choices=["rewarded", "all"], default="rewarded", help="rows that were paid (default), or all of them"
    )
    rows.add_argument("--unmixed", action="store_true", help="leave out solves that use the loophole as well")
    rows.add_argument("--max-rows", type=int, default=2000, help="at most so many, drawn at random (default 2000)")
    rows.add_argument("--base-rate", type=float, metavar="SHARE", help="draw rows to this share of hacks")
    rows.add_argument("--repeats", type=int, default=20, help="draws of --base-rate (default 20)")
    what = parser.add_argument_group("directions")
    what.add_argument("--pairs", nargs="+", metavar="SET", help="sets to judge; default: what the run's gate takes")
    what.add_argument(
        "--placebos", nargs="*", metavar="SET", help="sets on unrelated axes; default: those that there are"
    )
    what.add_argument("--self-generated", type=Path, metavar="FILE", help="pairs that a run wrote; default: RUN_DIR's")
    what.add_argument("--n-generated", type=int, default=32, help="pairs that the organism writes itself; 0: none")
    what.add_argument("--sites", nargs="+", default=SITES, choices=SITES, metavar="SITE", help=f"of {', '.join(SITES)}")
    what.add_argument(
        "--poolings", nargs="+", default=POOLINGS, choices=POOLINGS, metavar="NAME", help=f"of {', '.join(POOLINGS)}"
    )
    what.add_argument(
        "--aggregations",
        nargs="+",
        default=AGGREGATIONS,
        choices=AGGREGATIONS,
        metavar="NAME",
        help=f"of {', '.join(AGGREGATIONS)}",
    )
    judged = parser.add_argument_group("judgement")
    judged.add_argument("--haar", type=int, default=400, help="random directions (default 400)")
    judged.add_argument("--tail", type=float, default=0.1, help="share of the studied rows above the cut (default 0.1)")
    judged.add_argument("--alpha", type=float, default=0.05, help="level of a cell and of the family (default 0.05)")
    judged.add_argument("--folds", type=int, default=5, help="of problems, for the oracle (default 5)")
    judged.add_argument("--seed", type=int, default=0, help="of random directions, draws, folds, flipped signs")
    cost = parser.add_argument_group("cost")
    cost.add_argument("--batch-size", type=int, default=32, help="rows read together (default 32)")
    cost.add_argument("--memory", type=float, default=8.0, metavar="GIB", help="for one block's features (default 8)")
    return parser


def run_study(options: argparse.Namespace) -> None:
    """Check everything that needs no weights, then load, read, judge and write."""
    design = Design(
        tuple(options.aggregations),
        options.haar,
        options.tail,
        options.alpha,
        options.folds,
        options.base_rate,
        options.repeats,
        options.seed,
    )
    for name, least in (("max_rows", 1), ("batch_size", 1), ("rank", 1), ("n_generated", 0)):
        if getattr(options, name) is not None and getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {least}; got {getattr(options, name)}")
    if not options.memory > 0:
        raise ValueError(f"--memory: expected GiB above 0; got {options.memory}")
    device = _device(options.device)
    out = _folder(options.out or (options.run / "study" if options.run else Path("study")))
    chosen = readers(options.sites, options.poolings)
    stored = load_rollouts(_files(options))
    rows = choose(
        stored,
        steps=options.steps,
        modes=options.modes,
        hint_free=options.hint_free,
        among=options.among,
        unmixed=options.unmixed,
        max_rows=options.max_rows,
        seed=options.seed,
    )
    subject = _subject(options)
    modes = options.modes or sorted({row.mode for row in rows if row.hacked})
    sources = [
        *_authored(options, subject, modes),
        *pair_sources(default_placebos(subject.path) if options.placebos is None else options.placebos, "placebo"),
    ]
    generated, shown = _generated(options, subject, modes)
    names = Counter(source.name for source in (*sources, *([generated] if generated else [])))
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(f"--pairs, --placebos: expected each set once; got {twice[0]} twice")
    hacked = torch.tensor([row.hacked for row in rows])
    study = Study(hacked, [row.problem for row in rows], design)
    design.check(len(sources) + 2)  # and the self-generated and the sign-flipped
    left_out: list[str] = []
    chosen = usable(subject, chosen, len(rows), options.haar + len(sources), options.memory, left_out.append)
    tokenizer = subject.tokenizer()
    tokens = tokenised(tokenizer, rows, subject.room)

    _make(out)
    start = time.process_time()
    policy = subject.load(device)
    if generated is None:
        sampling = Sampling(max_new_tokens=64, temperature=1.0, top_p=1.0, top_k=0)
        generated = self_generated(policy, tokenizer, shown, options.seed, sampling)
    sources = [fitting(source, tokenizer, subject.room) for source in [sources[0], generated, *sources[1:]]]
    first = next((source for source in sources if source.role == "authored" and source.source), sources[0])
    sources.append(sign_flipped(first, options.seed))
    for block in read_blocks(policy, tokenizer, tokens, sources, chosen, options.batch_size, left_out.append):
        study.add(block)
    if not study.cells:
        raise ValueError(f"--sites: expected one with features; got none: {'; '.join(left_out)}")
    lengths = torch.tensor([float(len(row.completion)) for row in tokens])
    study.baseline("length in tokens", lengths)
    study.baseline("length in tokens, shortest first", -lengths)
    if all(row.advantage is not None for row in rows):
        study.baseline("advantage", torch.tensor([float(row.advantage or 0.0) for row in rows]))
    else:
        left_out.append("baseline advantage: the rollouts have none")
    total = time.process_time() - start
    about = {
        "model": subject.described,
        "among": options.among,
        "selection": _selection(options, rows, stored, modes),
        "rows": len(rows),
        "hacks": int(hacked.sum()),
        "cpu_seconds": f"{total - study.cpu_seconds:.1f} loading and reading, {study.cpu_seconds:.1f} judging",
        "options": {name: value for name, value in vars(options).items() if value is not None},
    }
    print(write_results(out, study, sources, about, left_out))
    for line in [*left_out, *(f"{source.name}: {source.note}" for source in sources if source.source is None)]:
        print(f"left out: {line}")
    print(f"wrote {out}/{', '.join(FILES)}; CPU seconds: {about['cpu_seconds']}")


def _files(options: argparse.Namespace) -> list[Path]:
    if options.rollouts:
        return list(options.rollouts)
    if options.run is None:
        raise ValueError("expected a RUN_DIR, or --rollouts with --model or --ckpt; got neither")
    if not options.run.is_dir():
        raise ValueError(f"RUN_DIR: expected a run directory; got {options.run}, which is none")
    return [options.run / "rollouts.jsonl"]


def _subject(options: argparse.Namespace) -> Subject:
    if options.model and options.ckpt:
        raise ValueError("--model, --ckpt: expected one of them, a fresh adapter or a trained one; got both")
    if options.model:
        rank = options.rank if options.rank is not None else 8 if options.model == ORGANISM else 32
        return Subject.fresh(options.model, rank, options.init, options.init_seed, options.dtype)
    path = options.ckpt or options.run
    if path is None:
        raise ValueError("expected a RUN_DIR, --ckpt or --model to read the features on; got none")
    return Subject.of_run(path)


def _device(name: str | None) -> torch.device:
    """The device, on which a number can be stored.

    Raises:
        ValueError: there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        there = not torch.zeros(1, device=device).is_meta
        reason = "it holds no numbers"
    except (RuntimeError, AssertionError, ImportError) as error:
        there, reason = False, (str(error).strip().splitlines() or [type(error).__name__])[0]
    if not there:
        raise ValueError(f"--device: expected a device of this machine, such as cpu or cuda; got {name} ({reason})")
    return device


def _folder(out: Path) -> Path:
    """The folder of the results, or where it can be made.

    Raises:
        ValueError: it is a file or lies below one, or holds folders under the results' names.
    """
    try:
        there = next(path for path in (out, *out.absolute().parents) if path.exists() or path.is_symlink())
        taken = [name for name in FILES if (out / name).is_dir()]
    except OSError as error:
        raise ValueError(f"--out: expected a folder; got {out}: {error.strerror}") from None
    if not there.is_dir():
        raise ValueError(f"--out: expected a folder; got {out}: {there} is a file; give another one")
    if taken:
        raise ValueError(f"--out: expected a folder for {', '.join(FILES)}; in {out}, {taken[0]} is a folder")
    return out


def _make(out: Path) -> None:
    """Make the folder and try to write there, so that no result is computed in vain."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(f"--out: expected a folder that can be written to; got {out}: {error.strerror}") from None


def _authored(options: argparse.Namespace, subject: Subject, modes: Sequence[str]) -> list[StudySource]:
    """The sets that were given; else the run's own on its own adapter; else those of a gate's defaults."""
    if options.pairs:
        return pair_sources(options.pairs, "authored")
    own = configured_pairs(options.run) if options.run is not None and subject.run is not None else None
    return pair_sources(default_pairs(subject.path, modes), "authored") if own is None else [own]


def _generated(
    options: argparse.Namespace, subject: Subject, modes: Sequence[str]
) -> tuple[StudySource | None, Sequence[Problem]]:
    """Self-generated pairs: those in a file, or None and the problems for the organism to write them on.

    On any other model, or without problems, they are left out, with the reason.
    """
    file = self_generated_file(options.self_generated, options.run)
    if file is not None:
        return stored_self_generated(file), ()
    if subject.path == ORGANISM and options.n_generated:
        return None, shown_problems(modes, options.n_generated)
    why = "no self_generated_pairs.md in a RUN_DIR; give --self-generated FILE"
    return StudySource(SELF_GENERATED, "self-generated", None, why), ()


def _selection(
    options: argparse.Namespace, rows: Sequence[StoredRollout], stored: Sequence[StoredRollout], modes: Sequence[str]
) -> str:
    steps = f"steps {min(row.step for row in rows)} to {max(row.step for row in rows)}"
    hints = "hint-free prompts too" if options.hint_free else "hinted prompts alone"
    mixed = sum(bool(row.exploits) for row in rows if not row.hacked)
    others = f"{mixed} of the {sum(not row.hacked for row in rows)} others use the loophole as well"
    return f"{steps}, modes {', '.join(modes)}, {hints}; {others}; {len(stored)} rows in the file"


def _steps(text: str) -> tuple[int, int]:
    first, colon, end = text.partition(":")
    if not (colon and first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise argparse.ArgumentTypeError(f"expected FROM:END with FROM below END; got {text}")
    return int(first), int(end)


if __name__ == "__main__":
    sys.exit(main())
