"""Configuration of a routed adapter: PEFT's LoraConfig plus the init of the two blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig

from vgrout_pl.adapters.inits import init_strategy

DEFAULT_TARGETS = (
    # Llama, Qwen, Gemma, Mistral, ..
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    # Phi-3
    "qkv_proj",
    "gate_up_proj",
    # GPT-NeoX, Falcon, Bloom
    "query_key_value",
    "dense",
    "dense_h_to_4h",
    "dense_4h_to_h",
    # OPT, Phi
    "out_proj",
    "fc1",
    "fc2",
    # linear attention and state-space mixers, without their few-column gates
    "in_proj",
    "in_proj_qkv",
    "in_proj_qkvz",
    "in_proj_z",
)

_FIXED = {"lora_dropout": 0.0, "bias": "none", "use_dora": False, "lora_bias": False, "use_rslora": False}


@dataclass
class RoutedLoraConfig(LoraConfig):
    """A LoraConfig for two routed blocks of rank ``r`` each.

    Attributes:
        r: rank of ONE block; 2 r is shipped by ``none``, r per block is trained.
        init: name in the registry of :mod:`vgrout_pl.adapters.inits`.
        init_seed: seed of the random parts of the init; every module draws its own stream from it and its name.
        deployed_scale: factor on A0 and B0 of the deployed block.
        quarantine_scale: factor on A0 and B0 of the quarantine block.
        signed_directions: seeded rows k of the signed inits, one per group of contrastive pairs.
        covariance_eps: ridge of the contrastive covariance, as a share of its mean eigenvalue.
        narrow: what to do with a module whose smaller side is below the 2 r orthogonal directions that some inits
            need: ``error``, ``cap`` (its own rank becomes half of the smaller side) or ``skip`` (it gets no adapter).
        compute_dtype: ``base`` computes the update in the dtype of its input where that is bfloat16 (fp16 is
            widened); ``float32`` always widens.
        lora_alpha: PEFT's; the default ``r`` makes PEFT's scaling 1.
        target_modules: PEFT's syntax; None takes the attention and MLP projections by suffix. Never the output head.
    """

    init: str = "gaussian"
    init_seed: int = 0
    deployed_scale: float = 1.0
    quarantine_scale: float = 1.0
    signed_directions: int = 1
    covariance_eps: float = 1e-3
    narrow: Literal["error", "cap", "skip"] = "error"
    compute_dtype: Literal["base", "float32"] = "base"
    lora_alpha: int | None = None  # type: ignore[assignment]
    target_modules: list[str] | str | None = None
    task_type: Any = "CAUSAL_LM"

    def __post_init__(self) -> None:
        """Check every field before a model is loaded; ValueError with one line."""
        strategy = init_strategy(self.init)
        if not isinstance(self.r, int) or self.r < 1:
            raise ValueError(f"r: expected a rank of at least 1; got {self.r!r}")
        for name in ("deployed_scale", "quarantine_scale", "covariance_eps"):
            value = getattr(self, name)
            if not value > 0 or value == float("inf"):
                raise ValueError(f"{name}: expected a positive finite number; got {value!r}")
        if self.narrow not in ("error", "cap", "skip"):
            raise ValueError(f"narrow: expected error, cap or skip; got {self.narrow!r}")
        if self.compute_dtype not in ("base", "float32"):
            raise ValueError(f"compute_dtype: expected base or float32; got {self.compute_dtype!r}")
        if not 1 <= self.signed_directions <= self.r:
            raise ValueError(f"signed_directions: expected 1..r = {self.r}; got {self.signed_directions!r}")
        for name, value in _FIXED.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}: a routed adapter supports {value!r} only; got {getattr(self, name)!r}")
        if self.lora_alpha is None:
            self.lora_alpha = self.r
        self.init_lora_weights = False  # PEFT's own inits would change the base weight
        self._needs_orthogonal = strategy.orthogonal
        super().__post_init__()
        from vgrout_pl.adapters.antipasto import AntipastoLinear
        from vgrout_pl.adapters.lora import RoutedLinear

        kinds = {"lora": RoutedLinear, "antipasto": AntipastoLinear}
        self._register_custom_module({torch.nn.Linear: kinds[strategy.parametrisation]})

    def block_rank(self, d_out: int, d_in: int) -> int:
        """Rank of one block in a module of this shape: ``r``, or the cap where ``narrow`` is ``cap``."""
        if self._needs_orthogonal and self.narrow == "cap":
            return max(1, min(self.r, min(d_out, d_in) // 2))
        return self.r

    def fits(self, d_out: int, d_in: int) -> bool:
        """Whether the init finds the directions it needs in a [d_out, d_in] weight at full rank."""
        return not self._needs_orthogonal or 2 * self.r <= min(d_out, d_in)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: PEFT's files would silently load as a plain LoRA without the frozen init."""
        raise ValueError(
            "a routed adapter is not saved by save_pretrained: expected export_deployed, export_as_trained or "
            "export_quarantine for a standard LoRA, or the model's state dict for a checkpoint"
        )
