"""Command line of vgrout_pl: python cli.py fit --config configs/demo.yaml."""

from vgrout_pl.cli import main

if __name__ == "__main__":
    main()
