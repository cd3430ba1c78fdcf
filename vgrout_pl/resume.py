"""Going on with a run: which settings must be those it began with, and what a checkpoint may decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from torch.optim.lr_scheduler import LambdaLR

from vgrout_pl.callbacks.jsonl import append_records
from vgrout_pl.run_directory import CHANGES_FILE, CONFIG_FILE

SCIENCE = ("seed_everything", "model", "data", "adapter", "router")
"""Groups of settings that a run's numbers depend on."""
TRAINER_SCIENCE = tuple(
    f"trainer.{name}"
    for name in ("precision", "gradient_clip_val", "gradient_clip_algorithm", "limit_train_batches", "overfit_batches")
)
RESOURCES = (
    "model.grader_workers",
    "model.gradient_checkpointing",
    "model.score_chunk_tokens",
    "model.share_prompts",
    *(f"model.engine.init_args.{name}" for name in ("base_url", "lora_dir", "concurrency", "timeout_s", "retries")),
    "adapter.cache_dir",
    "adapter.calibration_batch_size",
)
"""Settings inside those groups that only spend memory or time differently."""
ORDERS = ("ckpt_path", "overwrite", "allow_changed")
"""Arguments of one start, no part of the experiment."""


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``a.b.c`` -> value; lists and empty mappings are values."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changed_settings(saved: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings of which two configurations differ: key -> (saved, present), None where one lacks it."""
    old, new = flattened(saved), flattened(present)
    keys = [*old, *(key for key in new if key not in old)]
    return {
        key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key) and not _within(key, ORDERS)
    }


def is_science(key: str) -> bool:
    """Whether a run's numbers depend on a setting."""
    return _within(key, (*SCIENCE, *TRAINER_SCIENCE)) and not _within(key, RESOURCES)


def _within(key: str, groups: Sequence[str]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def refuse_changed(changed: Mapping[str, tuple[Any, Any]], allowed: Sequence[str]) -> None:
    """Raise where a setting that the numbers depend on was changed and is not allowed to.

    Args:
        changed: from :func:`changed_settings`.
        allowed: keys, or groups of keys, that may differ.

    Raises:
        ValueError: one line with every such key, its old and its new value.
    """
    refused = {key: pair for key, pair in changed.items() if is_science(key) and not _within(key, allowed)}
    if refused:
        shown = "; ".join(f"{key}: {_shown(old)} -> {_shown(new)}" for key, (old, new) in refused.items())
        raise ValueError(
            f"resume: expected the settings that the run began with; got {shown}; set them back, start anew under "
            f"another --name, or allow it with --allow_changed '[{', '.join(refused)}]'"
        )


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def changes_since(checkpoint: Path, run_dir: Path, present: str) -> dict[str, tuple[Any, Any]]:
    """Compare the settings of a checkpoint's run with a present configuration (YAML), by :func:`changed_settings`.

    The checkpoint's run is the directory above its folder, or else ``run_dir``; nothing has changed where neither
    holds a configuration.
    """
    candidates = (checkpoint.absolute().parent.parent / CONFIG_FILE, run_dir / CONFIG_FILE)
    try:
        saved = yaml.safe_load(next(filter(Path.is_file, candidates), candidates[1]).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return changed_settings(saved, yaml.safe_load(present)) if isinstance(saved, Mapping) else {}


def described(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """One line for each setting that is resumed with another value."""
    lines = [f"{key}: {_shown(old)} -> {_shown(new)}" for key, (old, new) in changed.items()]
    if "trainer.max_steps" in changed:
        lines.append(f"a learning rate whose cosine ends at step {changed['trainer.max_steps'][1]}")
    return lines


def note_changes(run_dir: Path, checkpoint: Path, present: str, step: int) -> None:
    """Add a line to ``<run>/changes.jsonl`` where a run goes on under other settings: step, key -> [old, new]."""
    changed = changes_since(checkpoint, run_dir, present)
    if changed:
        run_dir.mkdir(parents=True, exist_ok=True)
        append_records(run_dir / CHANGES_FILE, [{"step": step, "changed": changed}])


def count_batches_anew(checkpoint: Mapping[str, Any], micro_batches: int) -> None:
    """Set Lightning's batch counters of a loaded checkpoint to its optimizer step, in whole windows.

    The checkpoint may have been written with another number of micro-batches, and while Lightning already knew the
    next batch to be the last one.
    """
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress")
    if progress is None:
        return
    batches = checkpoint["global_step"] * micro_batches
    for counters in (progress["total"], progress["current"]):
        counters.update(dict.fromkeys(counters, batches))
    progress["is_last_batch"] = False


def apply_options(trainer: Trainer) -> None:
    """Let the configuration decide what a restored optimizer does: learning rate, its schedule, and all other options.

    A checkpoint brings the moments and the step. With unchanged settings this changes no bit.
    """
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group.update({name: value for name, value in optimizer.defaults.items() if name != "lr"})
    for config in trainer.lr_scheduler_configs:
        schedule = config.scheduler
        if isinstance(schedule, LambdaLR):
            peak = schedule.optimizer.defaults["lr"]
            schedule.base_lrs = [peak] * len(schedule.base_lrs)
            rates = [peak * share(schedule.last_epoch) for share in schedule.lr_lambdas]
            for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
                group["initial_lr"], group["lr"] = peak, rate
            schedule._last_lr = rates
