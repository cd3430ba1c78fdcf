"""A run of the command line, small enough for a test."""

import pytest

from vgrout_pl.cli import main

SMALL = (
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--data.prompts_per_step=4",
    "--model.group_size=4",
    "--data.validation_size=4",
    "--data.test_size=4",
    "--data.train_eval_size=4",
    "--model.grader_workers=1",
)


def command(subcommand, *args, config, root):
    main([subcommand, "--config", str(config), *SMALL, f"--trainer.default_root_dir={root}", *args])


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Run ``fit`` with the demo's configuration made small; returns the folder of all runs."""
    monkeypatch.setattr("sys.argv", ["cli.py"])

    def run(*args, config="configs/demo.yaml", root=tmp_path):
        command("fit", *args, config=config, root=root)
        return root

    return run
