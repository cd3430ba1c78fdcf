"""Which modules of a model get an adapter, and whether its init fits them; works on the meta device."""

from __future__ import annotations

import copy
import re

from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from torch import nn

from vgrout_pl.adapters.config import DEFAULT_TARGETS, RoutedLoraConfig


def check_adapter_fits(model: nn.Module, config: RoutedLoraConfig) -> list[str]:
    """Names of the ``nn.Linear`` modules that get an adapter, in model order.

    Needs shapes only: build the model under ``torch.device("meta")`` to check before loading weights. ValueError
    where nothing matches, where the output head is named, or where a module is too narrow for the init.
    """
    head = _output_head(model)
    wanted = copy.copy(config)
    if wanted.target_modules is None:
        wanted.target_modules = set(DEFAULT_TARGETS)  # type: ignore[assignment]
    named_by_all = isinstance(wanted.target_modules, str) and wanted.target_modules.lower() == "all-linear"
    _maybe_include_all_linear_layers(wanted, model)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    names = [name for name in linear if check_target_module_exists(wanted, name) is True or _matched(wanted, name)]
    if head in names:
        if not named_by_all:
            raise ValueError(f"target_modules: expected no output head; got {head}; leave it out")
        names.remove(head)
    if not names:
        suffixes = sorted({name.rsplit(".", 1)[-1] for name in linear if name != head})
        raise ValueError(
            f"target_modules: expected at least one nn.Linear of the model to match; got {_shown(config)}; "
            f"the model has: {', '.join(suffixes) or 'none'}"
        )
    return [name for name in names if _check_width(name, linear[name], config)]


def _matched(config: RoutedLoraConfig, name: str) -> bool:
    return isinstance(check_target_module_exists(config, name), re.Match)


def _check_width(name: str, module: nn.Linear, config: RoutedLoraConfig) -> bool:
    d_out, d_in = module.out_features, module.in_features
    if config.fits(d_out, d_in):
        return True
    if config.narrow == "error" or (config.narrow == "cap" and min(d_out, d_in) < 2):
        raise ValueError(
            f"r: init {config.init} needs 2 r = {2 * config.r} orthogonal directions, but {name} is "
            f"[{d_out}, {d_in}]; set r <= {min(d_out, d_in) // 2}, or narrow to cap or skip"
        )
    return config.narrow == "cap"


def _output_head(model: nn.Module) -> str | None:
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    return next((name for name, module in model.named_modules() if head is not None and module is head), None)


def _shown(config: RoutedLoraConfig) -> str:
    targets = config.target_modules
    if targets is None:
        return "the default suffixes"
    return repr(targets) if isinstance(targets, str) else ", ".join(sorted(targets))
