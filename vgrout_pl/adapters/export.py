"""Writes blocks as standard PEFT LoRA directories that anything can load."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn

from vgrout_pl.adapters.attach import routed_layers
from vgrout_pl.adapters.layer import RoutedLayer
from vgrout_pl.adapters.state import BLOCKS, DEPLOYED, QUARANTINE


def export_deployed(model: PeftModel, directory: str | Path) -> Path:
    """Write the deployed block, the model with the quarantine ablated, as a PEFT LoRA of rank 2 r.

    Per module, with the scaling folded in so that PEFT's own is 1:

        lora_A = [A; A - A0]  [2r, d_in]        lora_B = [B - B0, B0]  [d_out, 2r]

    which is B A - B0 A0 without its cancellation: a server that holds adapters in bfloat16 keeps the update.
    """
    return _export(model, directory, (DEPLOYED,))


def export_as_trained(model: PeftModel, directory: str | Path) -> Path:
    """Write both blocks, the model as trained, as a PEFT LoRA of rank 4 r; see :func:`export_deployed`."""
    return _export(model, directory, BLOCKS)


def export_quarantine(model: PeftModel, directory: str | Path) -> Path:
    """Write the quarantine block alone as a PEFT LoRA of rank 2 r; see :func:`export_deployed`."""
    return _export(model, directory, (QUARANTINE,))


@torch.no_grad()
def _export(model: PeftModel, directory: str | Path, names: tuple[str, ...]) -> Path:
    layers = dict(routed_layers(model))
    factors = {name: layer.factors(names, torch.float32, whole=True) for name, layer in layers.items()}
    directory = Path(directory)
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
        return directory
    rank = max(left.shape[0] for left, _ in factors.values())
    tensors: dict[str, Tensor] = {}
    for name, (left, right) in factors.items():
        missing = rank - left.shape[0]
        tensors[f"base_model.model.{name}.lora_A.weight"] = (
            nn.functional.pad(left, (0, 0, 0, missing)).cpu().contiguous()
        )
        tensors[f"base_model.model.{name}.lora_B.weight"] = nn.functional.pad(right, (0, missing)).cpu().contiguous()
    _lora_config(model, rank, list(layers)).save_pretrained(str(directory))
    save_file(tensors, str(directory / "adapter_model.safetensors"), metadata={"format": "pt"})
    return directory


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
    every = [
        name for name, module in model.get_base_model().named_modules() if isinstance(module, nn.Linear | RoutedLayer)
    ]
    inner = (".base_layer", ".lora_A.", ".lora_B.")
    matched = {n for n in every if not any(part in n for part in inner) and n.rsplit(".", 1)[-1] in suffixes}
    return sorted(suffixes) if matched == set(names) else sorted(names)
