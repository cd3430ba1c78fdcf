"""The adapters that a server holds for one run: exported, loaded under new names, and taken away again."""

from __future__ import annotations

import atexit
import shutil
import threading
import uuid
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist
from peft import PeftModel

from vgrout_pl.adapters.attach import route_state
from vgrout_pl.adapters.export import export_adapter
from vgrout_pl.adapters.state import BLOCKS, DEPLOYED, QUARANTINE
from vgrout_pl.engines.base import EngineError
from vgrout_pl.engines.client import Client, RefusedError
from vgrout_pl.processes import gathered

Blocks = tuple[str, ...]
EXPORTED: dict[Blocks, str] = {BLOCKS: "as_trained", (DEPLOYED,): "deployed", (QUARANTINE,): "quarantine"}


def blocks_in_force(policy: PeftModel) -> Blocks:
    """The blocks that all rows see in the policy's present state."""
    return route_state(policy).plan.blocks


def without_quarantine(blocks: Blocks) -> Blocks:
    """The blocks that are left when the quarantine is ablated too."""
    return tuple(name for name in blocks if name != QUARANTINE)


class ServedAdapters:
    """Keeps a server's adapters those of the policy.

    Each version has names of its own, so that no cached prefix and no adapter of before is ever taken for it. Process 0
    exports and loads; the others wait for it and learn the names.

    Args:
        client: of the server.
        base: name under which the server lists the base model.
        directory: where adapters are written; the server reads them under the same path.
    """

    def __init__(self, client: Client, base: str, directory: str | Path):
        self._client, self._base, self._directory = client, base, Path(directory).absolute()
        self._run = f"vgrout-{uuid.uuid4().hex[:8]}"
        self._version = 0
        self._names: dict[Blocks, str] = {}
        self._made: list[str] = []
        atexit.register(self.drop)  # a run that fails leaves nothing behind either

    def name_of(self, blocks: Blocks) -> str:
        """The model to ask for: an adapter, or the base where no block is in force."""
        return self._names[blocks] if blocks else self._base

    def replace(self, policy: PeftModel, *, also_ablated: bool) -> None:
        """Export the policy in its present state, load it into the server and drop what was there before.

        Raises:
            EngineError: on every process, where the first one could not.
        """
        states = {blocks_in_force(policy)}
        if also_ablated:
            states |= {without_quarantine(state) for state in states}
        gathered(None)  # no process samples from the adapters of before any longer
        self._version += 1
        problem, names = None, {}
        try:
            self.drop()
            for blocks in sorted(states - {()}):
                names[blocks] = self._served(policy, EXPORTED[blocks])
        except (EngineError, OSError) as error:
            problem = str(error)
            self.drop()
        problem, self._names = gathered((problem, names))[0]
        if problem is not None:
            raise EngineError(problem)

    def _served(self, policy: PeftModel, what: str) -> str:
        """Write one adapter, whole or not at all, and have it loaded."""
        name = f"{self._run}-{what}-{self._version}"
        self._made.append(name)
        partial, path = self._paths(name)
        export_adapter(policy, partial, what)
        if _is_first():
            partial.rename(path)
            self._load(name, path)
        return name

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self._directory / f".{name}.partial", self._directory / name

    def _load(self, name: str, path: Path) -> None:
        try:
            self._client.post("load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
        except RefusedError as error:
            if name in self._listed():  # loaded, but the first answer was lost
                return
            raise EngineError(
                f"engine: expected the server at {self._client.url} to load the adapter {path} (rank {_rank(path)}); "
                f"it answered {error.status}: {error.reason}; start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, "
                f"--enable-lora, --max-loras 2 and --max-lora-rank of at least {_rank(path)}, where it can read that "
                "path"
            ) from error

    def _listed(self) -> set[str]:
        return {model["id"] for model in self._client.get("models")["data"]}

    def drop(self) -> None:
        """Unload this run's adapters, where the server still has them, and remove their directories.

        Process 0 does it, and asks once: names are never used again, so that one that stays does no harm.
        """
        names, self._made, self._names = self._made, [], {}
        once = threading.Event()
        once.set()
        for name in names if _is_first() else []:
            for path in self._paths(name):
                shutil.rmtree(path, ignore_errors=True)
            with suppress(EngineError):
                self._client.post("unload_lora_adapter", {"lora_name": name}, once)


def _is_first() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _rank(path: Path) -> int:
    from peft import LoraConfig

    return int(LoraConfig.from_pretrained(str(path)).r)
