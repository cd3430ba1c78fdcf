"""Routed LoRA: a deployed and a quarantine block beside every frozen Linear, as citizens of PEFT.

>>> model = attach_routed_adapter(model, RoutedLoraConfig(r=8, init="gaussian"))
>>> with routed(model, routes):            # int tensor [rows] of Route
...     loss(model(**batch)).backward()
>>> with ablated(model):                   # the deployed model
...     model.generate(**prompts)
>>> export_deployed(model, "deployed")     # a standard PEFT LoRA directory
"""

from vgrout_pl.adapters.attach import attach_routed_adapter, routed_layers
from vgrout_pl.adapters.blocks import (
    BlockTensors,
    TrainedTensor,
    block_delta_norms,
    block_gradient_norms,
    blocks,
    decay_toward_init,
    delta_norm,
    install_decay_toward_init,
    quarantine_share,
    trained_tensors,
)
from vgrout_pl.adapters.calibration import Calibration, collect_calibration
from vgrout_pl.adapters.checkpoint import adapter_state, check_adapter_state, is_adapter_key
from vgrout_pl.adapters.config import RoutedLoraConfig
from vgrout_pl.adapters.contexts import ablated, clear_routes, quarantine_only, reference_policy, routed, set_routes
from vgrout_pl.adapters.diagnostics import ModuleDiagnostics, diagnostics, module_diagnostics
from vgrout_pl.adapters.export import export_as_trained, export_deployed, export_quarantine
from vgrout_pl.adapters.inits import INITS, register_init
from vgrout_pl.adapters.merge import merged
from vgrout_pl.adapters.packing import is_packable, packed
from vgrout_pl.adapters.state import DEPLOYED, QUARANTINE, Route
from vgrout_pl.adapters.targets import check_adapter_fits

__all__ = [
    "DEPLOYED",
    "INITS",
    "QUARANTINE",
    "BlockTensors",
    "Calibration",
    "ModuleDiagnostics",
    "Route",
    "RoutedLoraConfig",
    "TrainedTensor",
    "ablated",
    "adapter_state",
    "attach_routed_adapter",
    "block_delta_norms",
    "block_gradient_norms",
    "blocks",
    "check_adapter_fits",
    "check_adapter_state",
    "clear_routes",
    "collect_calibration",
    "decay_toward_init",
    "delta_norm",
    "diagnostics",
    "export_as_trained",
    "export_deployed",
    "export_quarantine",
    "install_decay_toward_init",
    "is_adapter_key",
    "is_packable",
    "merged",
    "module_diagnostics",
    "packed",
    "quarantine_only",
    "quarantine_share",
    "reference_policy",
    "register_init",
    "routed",
    "routed_layers",
    "set_routes",
    "trained_tensors",
]
