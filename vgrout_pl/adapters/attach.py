"""Puts a routed adapter onto a causal LM."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraModel, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from vgrout_pl.adapters.config import RoutedLoraConfig
from vgrout_pl.adapters.inits import InitRequest, init_strategy, module_generator
from vgrout_pl.adapters.layer import RoutedLayer
from vgrout_pl.adapters.state import BLOCKS, DEPLOYED, QUARANTINE, RouteState
from vgrout_pl.adapters.targets import check_adapter_fits

if TYPE_CHECKING:
    from vgrout_pl.adapters.calibration import Calibration


def attach_routed_adapter(
    model: nn.Module,
    config: RoutedLoraConfig,
    calibration: Calibration | None = None,
    *,
    initialise: bool = True,
) -> PeftModel:
    """Freeze ``model`` and give every target ``nn.Linear`` a deployed and a quarantine block of rank ``config.r``.

    The model computes what it did before (the update is exactly zero) and its weights are not touched.

    Args:
        model: a causal LM in any dtype; adapter tensors are fp32 on the device of each module.
        config: ranks, targets and init.
        calibration: statistics for the inits that are fitted to contrastive pairs; ignored by the others.
        initialise: False leaves NaN in the blocks, for a checkpoint to be loaded over: no calibration is needed.

    Returns:
        The PeftModel, with the adapters ``deployed`` and ``quarantine`` both active and trainable.

    Raises:
        ValueError: no target matches, a module is too narrow, or a calibration is missing or of another model.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError("expected a bare model; got one with an adapter; merge and unload it, or load the base anew")
    names = check_adapter_fits(model, config)
    strategy = init_strategy(config.init)
    if initialise and strategy.calibrated:
        if calibration is None:
            raise ValueError(
                f"init {config.init}: expected a calibration; got None; run collect_calibration(model, ..) first"
            )
        calibration.check_covers({name: cast(nn.Linear, model.get_submodule(name)).in_features for name in names})
    resolved = copy.deepcopy(config)
    resolved.target_modules = set(names)  # type: ignore[assignment]
    resolved.exclude_modules = None
    resolved.layers_to_transform = resolved.layers_pattern = None
    with torch.random.fork_rng(devices=[]):
        peft_model = get_peft_model(model, resolved, adapter_name=DEPLOYED)
        peft_model.add_adapter(QUARANTINE, copy.deepcopy(resolved))
    cast(LoraModel, peft_model.base_model).set_adapter(list(BLOCKS))
    state = RouteState()
    peft_model.route_state = state  # type: ignore[assignment]
    for name, layer in routed_layers(peft_model):
        layer.route_state = state
        if initialise:
            _initialise(name, layer, config, strategy, calibration)
    return cast(PeftModel, peft_model)


@torch.no_grad()
def _initialise(name: str, layer: RoutedLayer, config: RoutedLoraConfig, strategy: Any, calibration: Any) -> None:
    weight = layer.base_weight
    request = InitRequest(
        name=name,
        weight=weight.detach().float(),
        rank=layer.r[DEPLOYED],
        generator=module_generator(config.init_seed, name),
        deltas=calibration.deltas[name].to(weight.device).float() if strategy.calibrated else None,
        groups=calibration.groups if strategy.calibrated else None,
        signed_directions=min(config.signed_directions, layer.r[DEPLOYED]),
        covariance_eps=config.covariance_eps,
    )
    scales = {DEPLOYED: config.deployed_scale, QUARANTINE: config.quarantine_scale}
    for block, init in strategy.build(request)._asdict().items():
        layer.set_block(block, scales[block], *init)


def routed_layers(model: nn.Module) -> Iterator[tuple[str, RoutedLayer]]:
    """(name in the bare model, layer) of every routed layer of ``model`` or of a module that holds it."""
    found = False
    for name, module in model.named_modules():
        if isinstance(module, RoutedLayer):
            found = True
            yield module.module_name or name, module
    if not found:
        raise ValueError(
            f"expected a model from attach_routed_adapter; got {type(model).__name__} without routed layers"
        )


def route_state(model: nn.Module) -> RouteState:
    """The state object that all routed layers of ``model`` share."""
    state = getattr(model, "route_state", None)
    return state if isinstance(state, RouteState) else next(routed_layers(model))[1].route_state
