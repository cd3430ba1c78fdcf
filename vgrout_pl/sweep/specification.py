"""What a sweep runs, as one YAML file.

For example::

    configs: [configs/demo.yaml]                  # of every run, in this order
    set: {data.test_seed: 1}                      # keys of every run
    seeds: [0, 1, 2, 3, 4]
    arms:                                         # name -> what this arm adds
      none: {configs: [configs/router/none.yaml]}
      shrinkage:
        configs: [configs/router/shrinkage.yaml]
        set: {router.init_args.share: null, router.init_args.matched: "{root}/none/seed{seed}"}
        after: [none]                             # arms whose run of the same seed has to be finished first

``{root}`` and ``{seed}`` in values are filled in. Paths are relative to the folder the command is run in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        configs: files that go after those of the sweep.
        keys: settings that go after those of the sweep.
        after: arms whose run of the same seed comes first.
    """

    configs: tuple[str, ...] = ()
    keys: Mapping[str, Any] | None = None
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Specification:
    """What a sweep runs: ``arms`` x ``seeds``, each with ``configs`` and ``keys``."""

    configs: tuple[str, ...]
    keys: Mapping[str, Any]
    seeds: tuple[int, ...]
    arms: Mapping[str, Arm]

    @classmethod
    def load(cls, path: Path) -> Specification:
        """Read and check a specification.

        Raises:
            ValueError: not such a file; one line with the key, what was expected and what came.
        """
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: expected the YAML file of a sweep; {' '.join(str(error).split())}") from error
        try:
            return cls._checked(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def _checked(cls, data: object) -> Specification:
        top = _mapping("the file", data, {"configs", "set", "seeds", "arms"})
        seeds = top.get("seeds", [0])
        if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
            raise ValueError(f"seeds: expected a list of whole numbers; got {seeds!r}")
        arms = {}
        for name, given in _mapping("arms", top.get("arms"), None).items():
            arm = _mapping(f"arms.{name}", given or {}, {"configs", "set", "after"})
            after = _names(f"arms.{name}.after", arm.get("after", []))
            late = [other for other in after if other not in arms]
            if late:
                raise ValueError(f"arms.{name}.after: expected arms that stand above it; got {', '.join(late)}")
            keys = _mapping(f"arms.{name}.set", arm.get("set") or {}, None)
            arms[str(name)] = Arm(existing_files(f"arms.{name}.configs", arm.get("configs", [])), keys, after)
        if not arms:
            raise ValueError("arms: expected at least one; got none")
        return cls(
            existing_files("configs", top.get("configs", [])),
            _mapping("set", top.get("set") or {}, None),
            tuple(seeds),
            arms,
        )

    def command(self, arm: str, seed: int, root: Path) -> list[str]:
        """Return the command line of one run, after ``python``; a finished part of it is not run again."""
        chosen = self.arms[arm]
        command = ["-m", "vgrout_pl", "fit"]
        for config in (*self.configs, *chosen.configs):
            command += ["--config", config]
        for key, value in {**self.keys, **(chosen.keys or {})}.items():
            text = value if isinstance(value, str) else json.dumps(value)
            command.append(f"--{key}={text.replace('{root}', str(root)).replace('{seed}', str(seed))}")
        command += [f"--name={arm}", f"--seed_everything={seed}", f"--trainer.default_root_dir={root}"]
        return [*command, "--ckpt_path=last"]

    def evaluated_modes(self, arm: str) -> frozenset[str] | None:
        """Loophole modes that an arm is evaluated in, as the last of its files and keys says; None: unknown."""
        chosen, found = self.arms[arm], dict[str, Any]()
        for config in (*self.configs, *chosen.configs):
            try:
                content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError):
                return None
            data = content.get("data") if isinstance(content, Mapping) else None
            found |= data if isinstance(data, Mapping) else {}
        keys = {**self.keys, **(chosen.keys or {})}
        if "data" in keys:
            return None
        found |= {key.removeprefix("data."): value for key, value in keys.items() if key.startswith("data.")}
        modes = found.get("eval_mode") or found.get("mode")
        modes = [modes] if isinstance(modes, str) else modes
        if not (isinstance(modes, list) and all(isinstance(mode, str) for mode in modes)):
            return None
        return frozenset(modes) - {"gt_only"}


def _mapping(name: str, value: object, allowed: set[str] | None) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected a mapping; got {value!r}")
    unknown = set() if allowed is None else set(value) - allowed
    if unknown:
        raise ValueError(f"{name}: expected the keys {', '.join(sorted(allowed or ()))}; got {sorted(unknown)[0]!r}")
    return value


def _names(name: str, value: object) -> tuple[str, ...]:
    if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise ValueError(f"{name}: expected a list of names; got {value!r}")
    return tuple(value)


def existing_files(name: str, value: object) -> tuple[str, ...]:
    """A list of paths that exist, for the key ``name``; ValueError else."""
    files = _names(name, value)
    absent = [file for file in files if not Path(file).is_file()]
    if absent:
        raise ValueError(f"{name}: expected files; there is no {absent[0]} below {Path.cwd()}")
    return files
