"""What the README and its neighbours promise: commands, code, paths and keys are real."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import vgrout_pl
from vgrout_pl.adapters import Route

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
INSTALL = "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e "
DEMO = f"{INSTALL}. && python cli.py fit --config configs/demo.yaml"
TEST = f"{INSTALL}'.[test]' && python -m pytest"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.M | re.S)


def recipe(name):
    """Return the lines of a target of the justfile."""
    text = (ROOT / "justfile").read_text(encoding="utf-8")
    body = re.search(rf"^{name}[^\n]*:\n((?:    .*\n)+)", text, flags=re.M)
    assert body, f"justfile has no target {name}"
    return [line.strip() for line in body[1].splitlines()]


def tree_paths():
    """Yield the paths of the README's tree, indentation taken as nesting."""
    (tree,) = blocks("text")
    parents = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], line.split()[0]]
        yield "".join(parents)


def test_the_two_commands_are_single_lines_in_blocks_of_their_own():
    assert [block for block in blocks("bash") if block.startswith("python3 -m venv")] == [f"{DEMO}\n", f"{TEST}\n"]


def test_just_demo_and_just_test_are_the_same_commands():
    assert recipe("demo") == [DEMO]
    assert recipe("test") == [TEST]


def test_ci_ends_with_the_same_test_command_and_stops_at_the_first_failure():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert script[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in script
    assert script[-1] == TEST
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_every_python_block_runs(tmp_path):
    found = blocks("python")
    assert len(found) == 5
    script = "\n".join(f"exec(compile({block!r}, 'README block {i}', 'exec'), {{}})" for i, block in enumerate(found))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-2:] == ["3.5 True False", "3.5 False True"]
    assert (tmp_path / "deployed" / "adapter_config.json").is_file()


def test_the_routers_of_the_readme_route():
    long, some = (defined(name) for name in ("RouteLong", "RouteSome"))
    rows = Rows(completions=["x" * 500, "return 0", *["x"] * 198], step=3)
    routes = long(limit=400).route(rows, None)
    assert [Route(int(route)) for route in routes[:3]] == [Route.ROUTE, Route.KEEP, Route.KEEP]
    routes = some(rest="absorb").route(rows, None)
    assert routes[1] == Route.ROUTE
    assert 5 <= int((routes == Route.ROUTE).sum()) <= 40
    assert set(routes.tolist()) == {Route.ROUTE, Route.ABSORB}


class Rows(SimpleNamespace):
    """As much of a window's rollouts as these routers look at."""

    def __len__(self):
        return len(self.completions)


def defined(name):
    """Return the class of this name that a block of the README defines."""
    (block,) = [block for block in blocks("python") if f"class {name}" in block]
    names = {}
    exec(compile(block, name, "exec"), names)
    return names[name]


@pytest.mark.parametrize("path", tree_paths())
def test_every_path_of_the_tree_exists(path):
    assert (ROOT / path).exists()
    assert (ROOT / path).is_dir() == path.endswith("/")


def test_every_package_is_in_the_tree():
    packages = {f"vgrout_pl/{p.parent.name}/" for p in (ROOT / "vgrout_pl").glob("*/__init__.py")}
    assert packages <= set(tree_paths())


def test_every_config_that_a_command_names_exists():
    named = re.findall(r"--config (configs/\S+?\.yaml)", README + (ROOT / "justfile").read_text(encoding="utf-8"))
    assert len(named) >= 4
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_local_link_leads_somewhere():
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", README) if "://" not in t]
    anchors = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", README, re.M)}
    assert [t for t in targets if not (t[1:] in anchors if t.startswith("#") else (ROOT / t).exists())] == []


def other_commands():
    """Yield (module, command) of the README's table; the command is empty for a module without any."""
    section = README.split("## Other commands")[1].split("## How to add")[0]
    for module, cell in re.findall(r"^\| `(vgrout_pl\.\w+)` \| (.+) \|$", section, flags=re.M):
        for command in re.findall(r"`([\w-]+)`", cell) or [""]:
            yield module, command


def test_every_module_with_commands_is_listed():
    runnable = {f"vgrout_pl.{path.parent.name}" for path in (ROOT / "vgrout_pl").glob("*/__main__.py")}
    assert {module for module, _ in other_commands()} == runnable


@pytest.mark.full
@pytest.mark.parametrize(("module", "command"), other_commands())
def test_every_listed_command_explains_itself(module, command):
    words = [sys.executable, "-m", module, *([command] if command else []), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m {module}")


def test_every_router_of_the_table_has_its_overlay():
    table = README.split("| router | decides by | labels used |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, flags=re.M)
    assert sorted(rows) == sorted(path.stem for path in (ROOT / "configs" / "router").glob("*.yaml"))


def test_every_logged_key_is_documented_with_unit_and_range():
    from vgrout_pl import metrics
    from vgrout_pl.report.run_report import CURVES
    from vgrout_pl.report.tables import StepTable

    rows = re.findall(
        r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", (ROOT / "docs/metrics.md").read_text(), re.M
    )
    documented = {key for key, *_ in rows}
    assert len(documented) == len(rows)
    assert all(text.strip() for row in rows for text in row)
    logged = {*metrics._MEANS, *metrics._SUMS, "grad_norm", "lr", "step_time"}
    shown = {name for name, _ in CURVES} | {name for *_, name in StepTable.COLUMNS}
    assert (logged | shown) - documented == set()


def test_the_constraints_pin_every_dependency_within_its_range():
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins["torch"] == "2.13.0"
    assert not any("+" in version or " " in version for version in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(r for group in project["optional-dependencies"].values() for r in group)]
    normal = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    for requirement in map(Requirement, wanted):
        if requirement.name != "vgrout_pl":
            assert requirement.specifier.contains(normal[requirement.name.lower()]), requirement


def test_citation_and_licence_agree_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == vgrout_pl.__version__
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_pre_commit_hooks_are_local_and_call_what_is_installed():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    assert {hook["entry"].split()[0] for hook in repositories[0]["hooks"]} == {"ruff", "mypy"}
