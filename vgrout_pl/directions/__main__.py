"""`python -m vgrout_pl.directions`: check or print a set of contrastive pairs."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence

from vgrout_pl.directions.lint import lint, passed
from vgrout_pl.directions.markdown import PairFile
from vgrout_pl.directions.pairs import pairs_hash
from vgrout_pl.directions.sources import load_entries, packaged_sets


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; exit status 1 for a failed check, 2 and one line on stderr for a user's mistake."""
    options = build_parser().parse_args(args)
    try:
        return int(options.run(options))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m vgrout_pl.directions", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("lint", help="report confounds and near-duplicates; exit status 1 if there are any")
    check.set_defaults(run=run_lint)
    show = commands.add_parser("show", help="print pairs")
    show.set_defaults(run=run_show)
    for command in (check, show):
        command.add_argument(
            "source", help=f"Markdown file, organism[:MODE,...], or a packaged set: {', '.join(packaged_sets())}"
        )
        command.add_argument("--section", action="append", help="only this section; may be repeated")
        command.add_argument("--tag", action="append", help="only pairs with this tag; may be repeated")
        command.add_argument("--prefix", help="only pairs whose name begins so")
        command.add_argument("--n", type=int, help="only the first N of them")
    return parser


def run_lint(options: argparse.Namespace) -> int:
    """Print the table of checks."""
    found = _selected(options)
    findings = lint([entry.pair for entry in found.entries], found.axes)
    print(_headline(found))
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        cells = f"{finding.verdict:4}  {finding.check:{width}}  {finding.value:12}  {finding.limit:22}"
        print(f"{cells}  {finding.detail}".rstrip())
    return 0 if passed(findings) else 1


def run_show(options: argparse.Namespace) -> int:
    """Print each pair's prompt and sides."""
    found = _selected(options)
    print(_headline(found))
    for entry in found.entries:
        pair = entry.pair
        print(f"\n=== {pair.name}  [{', '.join(pair.tags)}]  {entry.section}, {entry.where}")
        for message in pair.messages:
            print(f"--- {message['role']}\n{message['content']}")
        print(f"--- hack\n{pair.hack}\n--- clean\n{pair.clean}")
    return 0


def _selected(options: argparse.Namespace) -> PairFile:
    return load_entries(options.source, options.section, options.tag, options.prefix, options.n)


def _headline(found: PairFile) -> str:
    pairs = [entry.pair for entry in found.entries]
    mechanisms = Counter(pair.mechanism for pair in pairs)
    return f"{len(pairs)} pairs, {len(mechanisms)} mechanisms, hash {pairs_hash(pairs)[:16]}"


if __name__ == "__main__":
    sys.exit(main())
