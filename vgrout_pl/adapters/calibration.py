"""Statistics of contrastive pairs for the fitted inits: how each Linear's input differs between the two sides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vgrout_pl.adapters.calibration_cache import MeansCache
from vgrout_pl.adapters.config import RoutedLoraConfig
from vgrout_pl.adapters.targets import check_adapter_fits

Batch = Mapping[str, Tensor]
_KEYS = ("input_ids", "attention_mask", "completion_mask")


@dataclass(frozen=True)
class Calibration:
    """Per-module differences of completion-mean inputs over contrastive pairs.

    Attributes:
        deltas: per module name, fp32 CPU [pairs, d_in]: hack side minus clean side.
        groups: int64 [pairs], the group (mechanism) of each pair, for several signed directions; or None.
        provenance: strings that say where it comes from: ``pairs_hash``, ``dtype``, ``model``, and the caller's own.
    """

    deltas: Mapping[str, Tensor]
    groups: Tensor | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)

    def check_covers(self, widths: Mapping[str, int]) -> None:
        """ValueError unless every module of ``widths`` (name -> d_in) has differences of its width."""
        for name, d_in in widths.items():
            if name not in self.deltas:
                raise ValueError(f"calibration: expected statistics of {name}; it has none; collect them on this model")
            got = self.deltas[name].shape[1]
            if got != d_in:
                raise ValueError(f"calibration: expected width {d_in} at {name}; got {got}; collect it on this model")

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        tensors = {f"delta.{name}": value.contiguous() for name, value in self.deltas.items()}
        if self.groups is not None:
            tensors["groups"] = self.groups
        save_file(tensors, str(path), metadata={"provenance": json.dumps(dict(self.provenance), sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what :meth:`save` wrote; ValueError for another kind of file."""
        with safe_open(str(path), framework="pt") as file:
            provenance = (file.metadata() or {}).get("provenance")
            if provenance is None:
                raise ValueError(f"{path}: expected a calibration file; got safetensors without provenance")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        groups = tensors.pop("groups", None)
        deltas = {name.removeprefix("delta."): value for name, value in tensors.items()}
        return cls(deltas, groups, json.loads(provenance))


@torch.no_grad()
def collect_calibration(
    model: nn.Module,
    hack_batches: Iterable[Batch],
    clean_batches: Iterable[Batch],
    config: RoutedLoraConfig,
    *,
    groups: Sequence[int] | Tensor | None = None,
    provenance: Mapping[str, str] | None = None,
    cache_dir: str | Path | None = None,
) -> Calibration:
    """Run both sides of the pairs through the bare ``model`` and keep, per target module, the mean difference.

        delta_p = mean_{t in completion of hack p} x_t  -  mean_{t in completion of clean p} x_t      [d_in]

    Args:
        model: the model before :func:`~vgrout_pl.adapters.attach_routed_adapter`; its mode is restored.
        hack_batches: dicts of ``input_ids``, ``attention_mask``, ``completion_mask``, each [rows, T].
        clean_batches: likewise; its i-th row is the partner of the i-th hack row, in any batching and padding.
        config: the adapter that will be attached (its targets).
        groups: optional group label per pair.
        provenance: strings to record beside the pairs' hash, the model and its dtype.
        cache_dir: keep each batch's statistics there, by content, and reuse those that are there already.

    Raises:
        ValueError: the two streams differ in length, a mask is empty, or a key is missing.
    """
    names = check_adapter_fits(model, config)
    digest = hashlib.sha256()
    cache = None if cache_dir is None else MeansCache(cache_dir, model, names)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        hack = _side_means(model, hack_batches, names, "hack", digest, cache)
        clean = _side_means(model, clean_batches, names, "clean", digest, cache)
    finally:
        for module in training:
            module.training = True
    pairs = len(hack[names[0]])
    if len(clean[names[0]]) != pairs:
        raise ValueError(f"pairs: expected as many clean as hack rows; got {len(clean[names[0]])} and {pairs}")
    labels = None if groups is None else torch.as_tensor(groups, dtype=torch.long)
    if labels is not None and labels.shape != (pairs,):
        raise ValueError(f"groups: expected one label for each of {pairs} pairs; got {list(labels.shape)}")
    record = {
        "pairs_hash": digest.hexdigest()[:16],
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "model": str(getattr(getattr(model, "config", None), "_name_or_path", "")),
        **(provenance or {}),
    }
    return Calibration({name: hack[name] - clean[name] for name in names}, labels, record)


def _side_means(
    model: nn.Module, batches: Iterable[Batch], names: Sequence[str], side: str, digest: Any, cache: MeansCache | None
) -> dict[str, Tensor]:
    parts: list[dict[str, Tensor]] = []
    digest.update(side.encode())
    for index, batch in enumerate(batches):
        if missing := [key for key in _KEYS if key not in batch]:
            raise ValueError(f"{side} batch {index}: expected {', '.join(_KEYS)}; {', '.join(missing)} missing")
        used = {key: batch[key] for key in _KEYS}
        if not bool(used["completion_mask"].any(dim=1).all()):
            raise ValueError(f"{side} batch {index}: expected a completion token in every row; a mask is empty")
        for row, real, part in zip(*(value.tolist() for value in used.values()), strict=True):
            tokens = [(t, bool(c)) for t, r, c in zip(row, real, part, strict=True) if r]
            digest.update(json.dumps(tokens).encode())
        address = None if cache is None else cache.address(used)
        means = cache.load(address) if cache is not None and address is not None else None
        if means is None:
            means = _batch_means(model, used, names)
            if cache is not None and address is not None:
                cache.store(address, means)
        parts.append(means)
    if not parts:
        raise ValueError(f"{side} batches: expected at least one; got none")
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def _batch_means(model: nn.Module, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    ids, attention, completion = (batch[key].to(device) for key in _KEYS)
    weights = completion.float() / completion.sum(dim=1, keepdim=True)
    means: dict[str, Tensor] = {}
    with _completion_means(model, names, weights, means):
        model(input_ids=ids, attention_mask=attention, use_cache=False, logits_to_keep=1)
    return means


@contextmanager
def _completion_means(
    model: nn.Module, names: Sequence[str], weights: Tensor, means: dict[str, Tensor]
) -> Iterator[None]:
    def keep(module: nn.Module, inputs: tuple[Tensor, ...], name: str) -> None:
        x = inputs[0]
        if x.shape[:2] != weights.shape:
            raise ValueError(f"{name}: expected inputs [rows, T, d_in] with {list(weights.shape)}; got {list(x.shape)}")
        means[name] = torch.einsum("rt,rtd->rd", weights, x.float()).cpu()

    handles = [model.get_submodule(name).register_forward_pre_hook(partial(keep, name=name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
