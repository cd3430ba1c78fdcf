"""Takes the routed adapter out of a finished run's checkpoint, without its base model's weights."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel

from vgrout_pl.adapters.attach import attach_routed_adapter
from vgrout_pl.adapters.checkpoint import check_adapter_state, is_adapter_key
from vgrout_pl.adapters.config import RoutedLoraConfig

PREFIX = "policy."


@dataclass(frozen=True)
class RunAdapter:
    """A run's adapter.

    Attributes:
        model: the routed model on the meta device, its blocks real: fit for exports, not for a forward.
        base: name or path of the base model.
        dtype: of the base in the run.
        provenance: facts for the card.
        evaluation: the run's evaluation of this very checkpoint as Markdown, or None.
    """

    model: PeftModel
    base: str
    dtype: str
    provenance: Mapping[str, object]
    evaluation: str | None


def load_run(path: str | Path, base: str | None = None) -> RunAdapter:
    """Read the adapter of a run directory (its last checkpoint) or of one of its ``.ckpt`` files.

    Args:
        path: the run directory or the checkpoint.
        base: another name or path for the base model than the run's own.

    Raises:
        ValueError: there is no checkpoint or no configuration, or they do not belong together. A checkpoint alone
            does not say what its tensors mean, so it is not loaded as a plain LoRA.
    """
    checkpoint = _checkpoint(Path(path))
    run = next((d for d in checkpoint.parents[:3] if (d / "config.yaml").is_file()), None)
    if run is None:
        raise ValueError(
            f"{checkpoint}: expected the run's config.yaml beside or above the checkpoint; got none; "
            "a routed checkpoint is not loaded without its configuration"
        )
    settings = yaml.safe_load((run / "config.yaml").read_text())
    base = base or settings["model"]["path"]
    content = _content(checkpoint)
    state = {name: value for name, value in content["state_dict"].items() if is_adapter_key(name)}
    model = _empty_model(base, _config(settings["adapter"]))
    check_adapter_state(model, state, prefix=PREFIX)
    model.load_state_dict(
        {name.removeprefix(PREFIX): value for name, value in state.items()}, strict=False, assign=True
    )
    facts, table = _record(run, settings, content)
    return RunAdapter(model, base, settings["model"].get("dtype", "float32"), facts, table)


def _checkpoint(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("checkpoints/*.ckpt"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise ValueError(f"--ckpt: expected a checkpoint or a run directory with checkpoints/*.ckpt; got {path}")
    return found[-1]


def _content(checkpoint: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{checkpoint}: expected a checkpoint of a run; could not read it ({reason})") from error
    if not isinstance(content, Mapping) or not {"state_dict", "global_step"} <= content.keys():
        raise ValueError(f"{checkpoint}: expected a checkpoint of a run; got another file of tensors")
    return content


def _config(settings: Mapping[str, Any]) -> RoutedLoraConfig:
    known = {field.name for field in dataclasses.fields(RoutedLoraConfig)}
    given = {name: value for name, value in settings.items() if name in known and value is not None}
    return RoutedLoraConfig(**given)


def _empty_model(base: str, config: RoutedLoraConfig) -> PeftModel:
    from vgrout_pl.policy import resolve_path, shape_of_base

    model = shape_of_base(base)
    model.config._name_or_path = base if base != "organism" else resolve_path(base)
    model.name_or_path = model.config._name_or_path
    return attach_routed_adapter(model, config, initialise=False)


def _record(
    run: Path, settings: Mapping[str, Any], content: Mapping[str, Any]
) -> tuple[Mapping[str, object], str | None]:
    """Facts of the run, and its evaluation where that is one of this checkpoint."""
    from vgrout_pl.report import Results, cells_markdown
    from vgrout_pl.report.run import Run

    facts: dict[str, object] = {
        "run": Run(run, None, None, None).name,
        "config_hash": hashlib.sha256((run / "config.yaml").read_bytes()).hexdigest()[:16],
        "steps": content["global_step"],
        "seed": settings.get("seed_everything"),
        "model": settings["model"]["path"],
        "adapter": content.get("callbacks", {}).get("RoutedAdapter"),
    }
    if not (run / "eval.json").is_file():
        return facts, None
    results = Results.load(run / "eval.json")
    if results.provenance.get("steps") != content["global_step"]:
        return facts, None
    return {**facts, **results.provenance}, cells_markdown(results)
