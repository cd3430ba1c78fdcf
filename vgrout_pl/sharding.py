"""FSDP2: a policy whose layers are spread over processes, and checkpoints that do not show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from vgrout_pl.adapters import is_adapter_key
from vgrout_pl.adapters.blocks import placed_as
from vgrout_pl.policy import base_of


def layers_to_shard(base: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers of a causal LM.

    Raises:
        ValueError: its decoder has no list of them.
    """
    layers = getattr(base.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"trainer.strategy: expected a decoder with .layers, which are what is sharded; {type(base).__name__} has "
            "none; use configs/strategy/ddp.yaml"
        )
    return list(layers)


def shard(policy: PeftModel, mesh: DeviceMesh) -> None:
    """Spread base weights and adapter over a mesh of processes, one group of tensors a decoder layer.

    Embeddings and head stay whole: they are called outside the decoder, and would be whole from the first forward pass
    to the last backward pass anyway.
    """
    base = base_of(policy)
    for layer in layers_to_shard(base):
        fully_shard(layer, mesh=mesh)
    embeddings = set(cast(nn.Module, base.get_input_embeddings()).parameters())
    fully_shard(base.get_decoder(), mesh=mesh, ignored_params=embeddings)


def is_sharded(policy: nn.Module) -> bool:
    """Whether a policy went through :func:`shard`."""
    return any(isinstance(module, FSDPModule) for module in policy.modules())


@contextmanager
def unsharded(policy: nn.Module) -> Iterator[None]:
    """Hold the whole policy on every process; inside, passes are no collective operations and may differ in number.

    To be entered by all processes. Parameters are copies inside: what is written to them is lost, and gradients that
    are accumulated in them too. Nothing happens to a policy that is not sharded.
    """
    parts = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        _keep_whole(part, True)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            _keep_whole(part, False)


def _keep_whole(part: FSDPModule, whole: bool) -> None:
    is_root = any(module is not part and isinstance(module, FSDPModule) for module in cast(nn.Module, part).modules())
    part.set_reshard_after_forward(not whole and not is_root, recurse=False)
    part.set_reshard_after_backward(not whole, recurse=False)
    part.set_requires_gradient_sync(not whole, recurse=False)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes, with checkpoints of the whole adapter and of its whole optimizer state.

    Lightning's strategy would gather the frozen base for every checkpoint and number the optimizer's parameters by all
    parameters of the model. These checkpoints are those of any other strategy, so that a run may go on under another
    one and with another number of processes. They are read before the optimizer is made and written by one process.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1)

    def setup_environment(self) -> None:
        """Start the processes' group, with one dimension for the data over all of them."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """As for strategies that do not shard: weights are read, and inits calibrated, on the process' own device."""
        with super(ModelParallelStrategy, self).tensor_init_context(empty_init):
            yield

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """As for strategies that do not shard."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """As for strategies that do not shard."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole adapter, and nothing of the base."""
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict()
        return _whole({name: value for name, value in state.items() if is_adapter_key(name)})

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process' part of every tensor."""
        assert self.lightning_module is not None
        here = self.lightning_module.state_dict()
        state = {name: placed_as(value, here[name]) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state."""
        return _whole(super(ModelParallelStrategy, self).optimizer_state(optimizer))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process' part of every tensor."""
        states = []
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            parameter_of = dict(zip(numbers, parameters, strict=True))
            state = {n: _placed(values, parameter_of[n]) for n, values in saved["state"].items()}
            states.append({**saved, "state": state})
        super(ModelParallelStrategy, self).load_optimizer_state_dict({"optimizer_states": states})

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write one file, by one process."""
        super(ModelParallelStrategy, self).save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read one file, on every process."""
        return super(ModelParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only)


def _whole(state: dict[str, Any]) -> dict[str, Any]:
    """Gather all sharded tensors of a nested state; a collective operation."""
    return cast(dict[str, Any], tree_map_only(DTensor, lambda tensor: tensor.full_tensor().detach(), state))


def _placed(values: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """One parameter's optimizer state, its moments placed as the parameter is."""
    return {
        name: placed_as(value, parameter)
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape
        else value
        for name, value in values.items()
    }
