"""``python -m vgrout_pl.report DIR``: the report of a run, or the table over all runs below a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vgrout_pl.report.files import write_atomically
from vgrout_pl.report.run import is_run_directory
from vgrout_pl.report.run_report import write_report
from vgrout_pl.report.sweep import Sweep


def main(args: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code (1: unreadable input, said in one line on stderr)."""
    parser = argparse.ArgumentParser(
        prog="python -m vgrout_pl.report",
        description="Write report.md and plots of a run directory, or compare all runs below a folder.",
    )
    parser.add_argument(
        "directory", type=Path, help="a run directory, a folder of <experiment>/seed<k> directories, or a --csv of one"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write every cell of every run to FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the comparison to FILE as Markdown")
    options = parser.parse_args(args)
    try:
        if not options.directory.exists():
            raise ValueError(f"{options.directory}: expected a directory; there is none of this name")
        if is_run_directory(options.directory):
            if options.markdown is not None or options.csv is not None:
                raise ValueError(f"--markdown, --csv: expected a folder of runs; {options.directory} is a single run")
            print(write_report(options.directory))
            return 0
        sweep = Sweep.load(options.directory)
        print(sweep.text())
        if options.markdown is not None:
            write_atomically(options.markdown, sweep.markdown() + "\n")
        if options.csv is not None:
            write_atomically(options.csv, sweep.csv())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
