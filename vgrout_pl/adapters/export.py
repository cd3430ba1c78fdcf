"""Writes blocks as standard PEFT LoRA directories that anything can load, and as whole merged models."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn

from vgrout_pl.adapters.attach import routed_layers
from vgrout_pl.adapters.card import model_card
from vgrout_pl.adapters.layer import RoutedLayer
from vgrout_pl.adapters.state import BLOCKS, DEPLOYED, QUARANTINE

WHAT = {"deployed": (DEPLOYED,), "as_trained": BLOCKS, "quarantine": (QUARANTINE,)}
ADAPTER_FILE = "adapter_model.safetensors"


def export_deployed(model: PeftModel, directory: str | Path, **card: Any) -> Path:
    """Write the deployed block, the model with the quarantine ablated, as a PEFT LoRA of rank 2 r.

    Per module, with the scaling folded in so that PEFT's own is 1:

        lora_A = [A; A - A0]  [2r, d_in]        lora_B = [B - B0, B0]  [d_out, 2r]

    which is B A - B0 A0 without its cancellation: a server that holds adapters in bfloat16 keeps the update.
    Antipasto's blocks have rank r: lora_A = [R] V, lora_B = U diag(S tanh g).

    Args:
        model: the routed model; unchanged.
        directory: made if need be.
        card: ``provenance`` and ``evaluation`` of :func:`~vgrout_pl.adapters.card.model_card`, for the README.
    """
    return export_adapter(model, directory, "deployed", **card)


def export_as_trained(model: PeftModel, directory: str | Path, **card: Any) -> Path:
    """Write both blocks, the model as trained, as a PEFT LoRA of rank 4 r; see :func:`export_deployed`."""
    return export_adapter(model, directory, "as_trained", **card)


def export_quarantine(model: PeftModel, directory: str | Path, **card: Any) -> Path:
    """Write the quarantine block alone as a PEFT LoRA of rank 2 r; see :func:`export_deployed`."""
    return export_adapter(model, directory, "quarantine", **card)


@torch.no_grad()
def export_adapter(model: PeftModel, directory: str | Path, what: str, **card: Any) -> Path:
    """Write ``deployed``, ``as_trained`` or ``quarantine``; see :func:`export_deployed`."""
    layers = dict(routed_layers(model))
    factors = {name: layer.factors(_blocks(what), torch.float32, whole=True) for name, layer in layers.items()}
    directory = Path(directory)
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
        return directory
    rank = max(left.shape[0] for left, _ in factors.values())
    tensors: dict[str, Tensor] = {}
    for name, (left, right) in factors.items():
        missing = rank - left.shape[0]
        left, right = nn.functional.pad(left, (0, 0, 0, missing)), nn.functional.pad(right, (0, missing))
        tensors[f"base_model.model.{name}.lora_A.weight"] = left.cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = right.cpu().contiguous()
    config = _lora_config(model, rank, list(layers))
    config.save_pretrained(str(directory))
    save_file(tensors, str(directory / ADAPTER_FILE), metadata={"format": "pt"})
    base = str(config.base_model_name_or_path or "")
    (directory / "README.md").write_text(model_card(what, base, rank=rank, modules=len(layers), **card))
    return directory


@torch.no_grad()
def merge_update(base: nn.Module, model: nn.Module, what: str, dtype: torch.dtype | None = None) -> float:
    """Add an update to the weights of a bare ``base``, in place, and return the share of it that rounding lost.

        lost = |round(W + delta) - W - delta|_F / |delta|_F      over all adapted modules

    Args:
        base: the bare model; its adapted weights change (and all of its weights take ``dtype``).
        model: the routed model to take the update from; its own base weights are not read.
        what: ``deployed``, ``as_trained`` or ``quarantine``.
        dtype: to store the merged model in; None keeps the base's. A UserWarning states the loss below float32.
    """
    if dtype is not None:
        base.to(dtype)
    lost = total = 0.0
    for name, layer in routed_layers(model):
        weight = cast(nn.Linear, base.get_submodule(name)).weight
        left, right = layer.factors(_blocks(what), torch.float32, whole=True)
        update = (right @ left).to(weight.device)
        before = weight.to(torch.float32, copy=True)
        weight.copy_(before + update)
        lost += float((weight.float() - before - update).double().square().sum())
        total += float(update.double().square().sum())
    share = (lost / total) ** 0.5 if total else 0.0
    stored = next(base.parameters()).dtype
    if stored not in (torch.float32, torch.float64):
        warnings.warn(
            f"merging into {str(stored).removeprefix('torch.')} lost {share:.1%} of the update to rounding; "
            "merge in float32 or ship the LoRA to keep it",
            stacklevel=2,
        )
    return share


def export_merged(base: Any, model: nn.Module, directory: str | Path, what: str = "deployed", **options: Any) -> float:
    """Merge into ``base`` (changed in place) and save it as a whole model; returns the lost share.

    Args:
        base: a bare Hugging Face causal LM, the one the adapter was trained on.
        model: the routed model.
        directory: made if need be.
        what: ``deployed``, ``as_trained`` or ``quarantine``.
        options: ``dtype`` of :func:`merge_update`; ``provenance`` and ``evaluation`` of the card.
    """
    lost = merge_update(base, model, what, options.pop("dtype", None))
    base.save_pretrained(str(directory))
    name = str(getattr(base.config, "_name_or_path", ""))
    card = model_card(what, name, modules=sum(1 for _ in routed_layers(model)), merged_loss=lost, **options)
    (Path(directory) / "README.md").write_text(card)
    return lost


def push_to_hub(directory: str | Path, repository: str, *, private: bool = True) -> str:
    """Upload an export to the Hugging Face hub and return its address; needs a logged-in ``huggingface_hub``."""
    from huggingface_hub import HfApi

    api = HfApi()
    repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
    api.upload_folder(repo_id=repository, folder_path=str(directory), commit_message="Upload adapter")
    return f"https://huggingface.co/{repository}"


def _blocks(what: str) -> tuple[str, ...]:
    if what not in WHAT:
        raise ValueError(f"what: expected {', '.join(WHAT)}; got {what!r}")
    return WHAT[what]


def _lora_config(model: PeftModel, rank: int, names: list[str]) -> LoraConfig:
    config = model.peft_config[DEPLOYED]
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=_shortest_targets(model, names),
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )


def _shortest_targets(model: PeftModel, names: list[str]) -> list[str]:
    """Last name parts where they pick out exactly ``names`` among the model's modules, else the full names."""
    suffixes = {name.rsplit(".", 1)[-1] for name in names}
    modules: Mapping[str, nn.Module] = dict(model.get_base_model().named_modules())
    inner = (".base_layer", ".lora_A.", ".lora_B.")
    linear = [
        n for n, m in modules.items() if isinstance(m, nn.Linear | RoutedLayer) and not any(i in n for i in inner)
    ]
    matched = {name for name in linear if name.rsplit(".", 1)[-1] in suffixes}
    return sorted(suffixes) if matched == set(names) else sorted(names)
