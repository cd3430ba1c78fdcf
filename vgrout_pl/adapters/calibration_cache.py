"""A disk cache of calibration batches, addressed by everything that their statistics depend on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_FORMAT = "completion means 1"


def model_fingerprint(model: nn.Module) -> str:
    """Hash of every parameter and buffer of ``model``: name, dtype, shape, bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_raw_bytes(tensor))
    return digest.hexdigest()


def _raw_bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


class MeansCache:
    """Completion means of one batch per file; an interrupted calibration goes on from the batches it has.

    The address of a batch is the hash of the model's weights, the modules' names and the batch's tensors, so that
    nothing stale can be found; a file that does not say so itself, or can't be read, counts as absent.
    """

    def __init__(self, directory: str | Path, model: nn.Module, names: Sequence[str]) -> None:
        self.directory = Path(directory)
        self._prefix = "\n".join([_FORMAT, model_fingerprint(model), *names]).encode()

    def address(self, batch: Mapping[str, Tensor]) -> str:
        """The batch's address."""
        digest = hashlib.blake2b(self._prefix, digest_size=16)
        for key in sorted(batch):
            value = batch[key].long()
            digest.update(f"{key} {list(value.shape)}".encode())
            digest.update(_raw_bytes(value))
        return digest.hexdigest()

    def load(self, address: str) -> dict[str, Tensor] | None:
        """The means per module, each [rows, d_in], or None."""
        try:
            with safe_open(str(self._path(address)), framework="pt") as file:
                if (file.metadata() or {}).get("address") != address:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None

    def store(self, address: str, means: Mapping[str, Tensor]) -> None:
        """Keep the means; a reader sees no file or the whole of it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        draft = self._path(f"{address}.{os.getpid()}.draft")
        save_file({name: value.contiguous() for name, value in means.items()}, str(draft), {"address": address})
        draft.replace(self._path(address))

    def _path(self, address: str) -> Path:
        return self.directory / f"{address}.safetensors"
