"""The routed adapter inside a state dict: which keys are its own, and whether they fit a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vgrout_pl.adapters.state import BLOCKS

_LORA = (("lora_A", ".weight"), ("lora_B", ".weight"), ("lora_init_A", ""), ("lora_init_B", ""))
_ANTIPASTO = tuple((part, "") for part in ("lora_gain", "lora_skew", "lora_axes_U", "lora_axes_S", "lora_axes_V"))
_PARTS = tuple(f".{part}.{block}{suffix}" for part, suffix in (*_LORA, *_ANTIPASTO) for block in BLOCKS)


def is_adapter_key(name: str) -> bool:
    """Whether a state-dict key belongs to the routed adapter: a tensor of either block, whatever its prefix."""
    return name.endswith(_PARTS)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's part of ``model.state_dict()``: everything a checkpoint needs, nothing of the base."""
    return {name: value for name, value in model.state_dict().items() if is_adapter_key(name)}


def check_adapter_state(model: nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> None:
    """ValueError unless the adapter keys of ``state`` (below ``prefix``) are exactly those of ``model``, same shapes.

    Catches a checkpoint of another rank, of other targets or of another model, and one of a plain LoRA.
    """
    expected = {prefix + name: value.shape for name, value in adapter_state(model).items()}
    got = {name: value.shape for name, value in state.items() if is_adapter_key(name) and name.startswith(prefix)}
    if not expected:
        raise ValueError("expected a model with a routed adapter to load into; got one without; attach it first")
    if not got:
        raise ValueError("checkpoint: expected a routed adapter (deployed and quarantine blocks); it holds none")
    for name in sorted(expected.keys() & got.keys()):
        if expected[name] != got[name]:
            raise ValueError(
                f"checkpoint of another adapter shape: expected {list(expected[name])} at {name}; got "
                f"{list(got[name])}; use the run's own adapter settings"
            )
    for kind, names in (("lacks", expected.keys() - got.keys()), ("also holds", got.keys() - expected.keys())):
        if names:
            raise ValueError(
                f"checkpoint of another adapter: it {kind} {sorted(names)[0]} and {len(names) - 1} more; "
                "use the run's own model and target modules"
            )
