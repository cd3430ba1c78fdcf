set shell := ["bash", "-euo", "pipefail", "-c"]

export OMP_NUM_THREADS := "1"

# list the targets
default:
    @just --list --unsorted

# from nothing to the 2 x 2 table: train on the embedded organism, ablate, evaluate, report
demo:
    python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e . && python cli.py fit --config configs/demo.yaml

# the fast suite, from nothing
test:
    python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e '.[test]' && python -m pytest

# the same assertions with larger counts, and the long proofs
test-full:
    VGROUT_FULL=1 .venv/bin/python -m pytest

# invariants (grader matrix, marker gap, masks, ablation, export), then a short routed run
smoke:
    .venv/bin/python -m pytest tests/adapters tests/env
    .venv/bin/python cli.py fit --config configs/demo.yaml --config configs/router/oracle.yaml --trainer.max_steps 4 --name smoke --overwrite true

# format, lint, types
check:
    .venv/bin/ruff format --check .
    .venv/bin/ruff check .
    .venv/bin/mypy

# a measurement of bench/; by default CPU seconds and peak memory of the demo
bench name="demo_cost":
    .venv/bin/python bench/{{ name }}.py

# the report of a run directory, or the table over all runs below a folder
report dir="runs":
    .venv/bin/python -m vgrout_pl.report {{ dir }}

# what `check` and `smoke` need besides the tests' own packages
dev:
    python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e '.[dev]' && pre-commit install
