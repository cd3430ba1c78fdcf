"""What every routed layer does, whatever its blocks are made of: who sees what, and a fused forward."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from vgrout_pl.adapters.decoding import DecodeStep, Factors, PackedFactors
from vgrout_pl.adapters.functional import add_update
from vgrout_pl.adapters.packed_linear import PackedLinear
from vgrout_pl.adapters.state import BLOCKS, Plan, RouteState


class Trainable(NamedTuple):
    """A trainable tensor of a block and the init that it decays to."""

    label: str
    parameter: Tensor
    init: Tensor


class RoutedLayer(LoraLinear):
    """y = W x + sum over the blocks b in force of right_b left_b x, an update of low rank.

    A subclass holds the tensors of the blocks ``deployed`` and ``quarantine`` and turns them into factors. What a row
    sees and trains comes from the model's :class:`~vgrout_pl.adapters.state.RouteState`, which all layers share.
    PEFT's ``disable_adapter``, ``set_adapter`` and ``merge`` are respected.
    """

    stack_copies: int
    """How many times each block's rank appears in the stacked bottleneck."""

    def __init__(self, base_layer: Any, adapter_name: str, config: Any, **kwargs: Any) -> None:
        self.route_state = RouteState()
        self.module_name = kwargs.get("target_name", "")
        self.compute_dtype = config.compute_dtype
        self._decode_step: DecodeStep | None = None
        self._packed: PackedLinear | None = None
        self._active_blocks: tuple[str, ...] = BLOCKS
        super().__init__(base_layer, adapter_name, config=config, **kwargs)

    @abstractmethod
    def set_block(self, name: str, scale: float, *init: Tensor) -> None:
        """Start block ``name`` at an init times ``scale``."""

    @abstractmethod
    def trainables(self, name: str) -> list[Trainable]:
        """The trainable tensors of one block, the live tensors themselves."""

    @abstractmethod
    def sources(self, name: str) -> list[Tensor]:
        """Every tensor that the factors of one block are made from."""

    @abstractmethod
    def factors(self, names: tuple[str, ...], dtype: torch.dtype, *, whole: bool = False) -> tuple[Tensor, Tensor]:
        """Stacked (left [k, d_in], right [d_out, k]) whose product is the update; ``whole`` gathers sharded tensors."""

    @abstractmethod
    def _trained(self, base: Tensor, x: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor:
        """Base plus update with a graph to the blocks' parameters, gated by the plan."""

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: Any, **kwargs: Any) -> None:
        """Add one of the two blocks, uninitialised; ValueError for any other adapter."""
        if adapter_name not in BLOCKS or not hasattr(config, "block_rank"):
            raise ValueError(
                f"a routed layer holds the adapters {' and '.join(BLOCKS)} alone; got {adapter_name!r}; "
                "add further adapters to an exported or merged model"
            )
        rank = config.block_rank(self.out_features, self.in_features)
        self._add_block(adapter_name, rank, lora_alpha * rank / r, config, **kwargs)

    @abstractmethod
    def _add_block(self, name: str, rank: int, alpha: float, config: Any, **kwargs: Any) -> None:
        """Make the tensors of one block, full of NaN."""

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """PEFT's choice of active adapters: an inactive block takes no part (and PEFT freezes it)."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._active_blocks = tuple(name for name in BLOCKS if name in adapter_names)
        self._decode_step = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._check_unpacked()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._check_unpacked()
        return super()._apply(*args, **kwargs)

    def _check_unpacked(self) -> None:
        """Before weights change: forget what was made from them; ValueError where a packed copy would stay as it is."""
        if self.is_packed:
            raise ValueError("the weights are packed: expected no change of them; leave packed(model) first")
        self._decode_step = None

    @property
    def base_weight(self) -> Tensor:
        """The frozen weight, [d_out, d_in]."""
        return cast(nn.Linear, self.get_base_layer()).weight

    def pack(self, weight: Tensor | None) -> None:
        """Multiply by a packed copy of ``weight`` [d_out, d_in] in place of the base weight; None: no longer."""
        bias = cast(nn.Linear, self.get_base_layer()).bias
        self._packed = None if weight is None else PackedLinear(weight, bias)
        self._decode_step = None

    @property
    def is_packed(self) -> bool:
        """Whether a packed copy stands for the base weight."""
        return self._packed is not None

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """Block ``adapter``'s update of the weight, fp32 [d_out, d_in]; exactly zero at the init."""
        left, right = self.factors((adapter,), torch.float32, whole=True)
        return right @ left

    def forward(self, x: Tensor) -> Tensor:
        """Base output plus the update of the blocks in force; x [rows, .., d_in]."""
        plan = self.route_state.plan
        if self._active_blocks != BLOCKS:
            plan = plan.restricted(self._active_blocks)
        step = self._decode_step
        if step is not None and x.dim() == 3 and x.shape[1] == 1 and step.plan is plan and self._still_valid(step, x):
            return step(x)
        if torch.is_grad_enabled() and (plan.merged or self._packed is not None):
            raise ValueError("the adapter is merged or packed: expected torch.no_grad(); leave the context to train")
        base = self._base_output(x)
        if self._disable_adapters or self.merged_adapters or not plan.blocks:
            return base
        if plan.rows is not None and x.shape[0] != plan.rows:
            raise ValueError(
                f"{self.module_name}: the model's routes and rows are for a batch of {plan.rows}; got {x.shape[0]}; "
                "give one route per batch row, already expanded for several samples per prompt"
            )
        if plan.positions is not None and x.shape[1] != plan.positions:
            raise ValueError(
                f"{self.module_name}: the model's routes are for {plan.positions} positions; got {x.shape[1]}; "
                "give a route for each position of the pass"
            )
        if torch.is_grad_enabled():
            self._decode_step = None
            dtype = self._dtype(x)
            with torch.autocast(x.device.type, enabled=False):
                return self._trained(base, x, plan, dtype)
        return self._inference_forward(base, x, plan)

    def _base_output(self, x: Tensor) -> Tensor:
        if self._packed is None or self.merged_adapters:
            return cast(Tensor, self.base_layer(x))
        if x.dtype != self._packed.dtype or torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"{self.module_name}: the weights are packed: expected {self._packed.dtype} without autocast; got "
                f"{x.dtype}; leave packed(model) first"
            )
        return self._packed(x)

    def _still_valid(self, step: DecodeStep, x: Tensor) -> bool:
        return not torch.compiler.is_compiling() and (
            (step.mask is None or step.mask.shape[0] == x.shape[0])
            and step.versions == [t._version for t in step.sources]
            and step.x_dtype == x.dtype
            and not (torch.is_grad_enabled() or self._disable_adapters or self.merged_adapters)
            and not torch.is_autocast_enabled(step.device_type)
        )

    def _inference_forward(self, base: Tensor, x: Tensor, plan: Plan) -> Tensor:
        """The update without a graph; prepares the decoding steps that may follow this call."""
        dtype = self._dtype(x)
        kind = x.device.type
        with torch.autocast(kind, enabled=False):
            left, right = self.factors(plan.blocks, dtype)
            mask, _ = plan.masks(self.r[BLOCKS[0]], self.stack_copies, x.device, dtype)
            out = add_update(base.to(dtype), x.to(dtype), left.t(), right.t(), mask).to(base.dtype)
        self._decode_step = None
        decodes = plan.positions is None and not torch.is_autocast_enabled(kind) and not torch.compiler.is_compiling()
        if x.dim() == 3 and decodes:
            sources = [tensor for name in plan.blocks for tensor in self.sources(name)]
            self._decode_step = DecodeStep(
                plan=plan,
                base=self.base_layer if self._packed is None else self._packed,
                factors=(Factors if self._packed is None else PackedFactors)(left, right),
                mask=None if mask is None else mask.squeeze(1),
                sources=sources,
                versions=[tensor._version for tensor in sources],
                x_dtype=x.dtype,
                device_type=kind,
                widens=x.dtype != dtype,
            )
        return out

    def _dtype(self, x: Tensor) -> torch.dtype:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return dtype if self.compute_dtype == "base" and dtype == torch.bfloat16 else torch.float32

    def __repr__(self) -> str:
        return "routed." + super(LoraLinear, self).__repr__()


def whole_tensor(tensor: Tensor) -> Tensor:
    """The tensor without its graph; gathered from all processes where it is sharded."""
    return tensor.full_tensor().detach() if hasattr(tensor, "full_tensor") else tensor.detach()
