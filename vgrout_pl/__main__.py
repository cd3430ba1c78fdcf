"""``python -m vgrout_pl fit --config FILE``: the command line, where ``cli.py`` is not at hand."""

from vgrout_pl.cli import main

if __name__ == "__main__":
    main()
