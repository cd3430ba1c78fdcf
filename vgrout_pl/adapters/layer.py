"""A frozen Linear with a deployed and a quarantine block, as a PEFT LoRA layer with a fused forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from vgrout_pl.adapters.functional import RoutedUpdate, add_update, stack_blocks
from vgrout_pl.adapters.state import BLOCKS, Plan, RouteState

Block = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(slots=True)
class DecodeStep:
    """A layer's work for one new position per row, prepared by the multi-position forward before it.

    Valid for the same plan and as long as no tensor it was made from has changed (``versions``).
    """

    plan: Plan
    base_layer: Any
    left_t: Tensor
    right_t: Tensor
    mask: Tensor | None
    sources: list[Tensor]
    versions: list[int]
    x_dtype: torch.dtype
    device_type: str

    def __call__(self, x: Tensor) -> Tensor:
        """Base output plus update for x [rows, 1, d_in]."""
        bottleneck = x.reshape(-1, x.shape[2]).mm(self.left_t)
        if self.mask is not None:
            bottleneck.mul_(self.mask)
        base = self.base_layer(x)
        return torch.addmm(base.view(base.shape[0], -1), bottleneck, self.right_t).view(base.shape)


class RoutedLinear(LoraLinear):
    """y = W x + sum over the blocks b in force of (B_b A_b - B0_b A0_b) x, times PEFT's scaling.

    A and B are PEFT's ``lora_A``/``lora_B`` of the adapters ``deployed`` and ``quarantine``; A0 and B0 are buffers
    ``lora_init_A``/``lora_init_B``, in the state dict under PEFT's naming. What a row sees and trains comes from the
    model's :class:`~vgrout_pl.adapters.state.RouteState`, which all layers share. PEFT's ``disable_adapter``,
    ``set_adapter`` and ``merge`` are respected.
    """

    lora_init_A: BufferDict  # noqa: N815
    lora_init_B: BufferDict  # noqa: N815
    other_param_names: tuple[str, ...]

    def __init__(self, base_layer: Any, adapter_name: str, config: Any, **kwargs: Any) -> None:
        self.route_state = RouteState()
        self.module_name = kwargs.get("target_name", "")
        self.compute_dtype = config.compute_dtype
        self._decode_step: DecodeStep | None = None
        self._active_blocks: tuple[str, ...] = BLOCKS
        super().__init__(base_layer, adapter_name, config=config, **kwargs)

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: Any, **kwargs: Any) -> None:
        """Add one of the two blocks; its tensors hold NaN until :meth:`set_block` fills them."""
        if adapter_name not in BLOCKS or not hasattr(config, "block_rank"):
            raise ValueError(
                f"a routed layer holds the adapters {' and '.join(BLOCKS)} alone; got {adapter_name!r}; "
                "add further adapters to an exported or merged model"
            )
        rank = config.block_rank(self.out_features, self.in_features)
        super().update_layer(adapter_name, rank, lora_alpha=lora_alpha * rank / r, config=config, **kwargs)
        for name in ("lora_init_A", "lora_init_B"):
            if not hasattr(self, name):
                setattr(self, name, BufferDict({}, persistent=True))
                self.other_param_names = (*self.other_param_names, name)
        a, b = cast(nn.Linear, self.lora_A[adapter_name]), cast(nn.Linear, self.lora_B[adapter_name])
        a.to(torch.float32).weight.data.fill_(torch.nan)
        b.to(torch.float32).weight.data.fill_(torch.nan)
        self.lora_init_A[adapter_name] = a.weight.detach().clone()
        self.lora_init_B[adapter_name] = b.weight.detach().clone()

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """PEFT's choice of active adapters: an inactive block takes no part (and PEFT freezes it)."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._active_blocks = tuple(name for name in BLOCKS if name in adapter_names)
        self._decode_step = None

    @torch.no_grad()
    def set_block(self, name: str, a0: Tensor, b0: Tensor) -> None:
        """Start block ``name`` at A = A0 = ``a0`` [r, d_in], B = B0 = ``b0`` [d_out, r] (fp32 copies)."""
        a, b, init_a, init_b = self.block(name)
        for parameter, buffer, value in ((a, init_a, a0), (b, init_b, b0)):
            if parameter.shape != value.shape:
                raise ValueError(
                    f"{self.module_name}: block {name} expected an init of shape {list(parameter.shape)}; "
                    f"got {list(value.shape)}"
                )
            parameter.copy_(value)
            buffer.copy_(value)

    def block(self, name: str) -> Block:
        """(A [r, d_in], B [d_out, r], A0, B0) of one block, the live tensors themselves."""
        a, b = cast(nn.Linear, self.lora_A[name]), cast(nn.Linear, self.lora_B[name])
        return a.weight, b.weight, self.lora_init_A[name], self.lora_init_B[name]

    @property
    def base_weight(self) -> Tensor:
        """The frozen weight, [d_out, d_in]."""
        return cast(nn.Linear, self.get_base_layer()).weight

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Block ``adapter``'s update of the weight, fp32 [d_out, d_in]; exactly zero at the init."""
        left, right = stack_blocks([self.block(adapter)], self.scaling[adapter], torch.float32)
        return right @ left

    def forward(self, x: Tensor) -> Tensor:
        """Base output plus the update of the blocks in force; x [rows, .., d_in]."""
        plan = self.route_state.plan
        if self._active_blocks != BLOCKS:
            plan = plan.restricted(self._active_blocks)
        step = self._decode_step
        if step is not None and x.dim() == 3 and x.shape[1] == 1 and step.plan is plan and self._still_valid(step, x):
            return step(x)
        base = self.base_layer(x)
        if plan.merged and torch.is_grad_enabled():
            raise ValueError("the adapter is merged: expected torch.no_grad(); leave merged(model) to train")
        if plan.merged or self._disable_adapters or self.merged_adapters or not plan.blocks:
            return base
        if plan.rows is not None and x.shape[0] != plan.rows:
            raise ValueError(
                f"{self.module_name}: the model's routes and rows are for a batch of {plan.rows}; got {x.shape[0]}; "
                "give one route per batch row, already expanded for several samples per prompt"
            )
        if torch.is_grad_enabled():
            return self._training_forward(base, x, plan)
        return self._inference_forward(base, x, plan)

    def _still_valid(self, step: DecodeStep, x: Tensor) -> bool:
        return (
            (step.mask is None or step.mask.shape[0] == x.shape[0])
            and step.versions == [t._version for t in step.sources]
            and step.x_dtype == x.dtype
            and not (torch.is_grad_enabled() or self._disable_adapters or self.merged_adapters)
            and not torch.is_autocast_enabled(step.device_type)
            and not torch.compiler.is_compiling()
        )

    def _inference_forward(self, base: Tensor, x: Tensor, plan: Plan) -> Tensor:
        """The update without a graph; prepares the decoding steps that may follow this call."""
        dtype = self._dtype(x)
        members = [self.block(name) for name in plan.blocks]
        kind = x.device.type
        with torch.autocast(kind, enabled=False):
            left, right = stack_blocks(members, self.scaling[BLOCKS[0]], dtype)
            mask, _ = plan.masks(self.r[BLOCKS[0]], left)
            out = add_update(base.to(dtype), x.to(dtype), left.t(), right.t(), mask).to(base.dtype)
        plain = x.dtype == base.dtype == dtype and x.dim() == 3 and not torch.is_autocast_enabled(kind)
        self._decode_step = None
        if plain and not torch.compiler.is_compiling():
            sources = [tensor for member in members for tensor in member]
            self._decode_step = DecodeStep(
                plan=plan,
                base_layer=self.base_layer,
                left_t=left.t().contiguous(),
                right_t=right.t().contiguous(),
                mask=None if mask is None else mask.squeeze(1),
                sources=sources,
                versions=[tensor._version for tensor in sources],
                x_dtype=x.dtype,
                device_type=kind,
            )
        return out

    def _training_forward(self, base: Tensor, x: Tensor, plan: Plan) -> Tensor:
        dtype = self._dtype(x)
        scaling = self.scaling[BLOCKS[0]]
        self._decode_step = None
        with torch.autocast(x.device.type, enabled=False):
            with torch.no_grad():
                left, right = stack_blocks([self.block(name) for name in plan.blocks], scaling, dtype)
            used = tuple(BLOCKS.index(name) for name in plan.blocks)
            parameters = [p for name in BLOCKS for p in self.block(name)[:2]]
            masks = plan.masks(self.r[BLOCKS[0]], left)
            return RoutedUpdate.apply(base, x, left, right, *masks, scaling, used, *parameters)

    def _dtype(self, x: Tensor) -> torch.dtype:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return dtype if self.compute_dtype == "base" and dtype == torch.bfloat16 else torch.float32

    def __repr__(self) -> str:
        return "routed." + super(LoraLinear, self).__repr__()
