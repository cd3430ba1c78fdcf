"""One weight in oneDNN's own layout, and products with it."""

from __future__ import annotations

import torch
from torch import Tensor


class PackedLinear:
    """x W^T + b with W copied into the layout that oneDNN reads fastest for few rows; no gradients.

    The operators are those that torch.compile's frozen CPU graphs call.

    Args:
        weight: [d_out, d_in], float32 or bfloat16, on the CPU.
        bias: [d_out] or None.
    """

    __slots__ = ("_bias", "_weight", "dtype", "width")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self._bias = None if bias is None else bias.detach()
        self.dtype, self.width = weight.dtype, weight.shape[0]

    @staticmethod
    def can_hold(weight: Tensor) -> bool:
        """Whether oneDNN multiplies by such a weight here."""
        onednn = torch.backends.mkldnn
        if weight.device.type != "cpu" or hasattr(weight, "full_tensor"):
            return False
        if not (onednn.is_available() and onednn.enabled):  # type: ignore[truthy-function]
            return False
        if weight.dtype == torch.bfloat16:
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        return weight.dtype == torch.float32

    def __call__(self, x: Tensor) -> Tensor:
        """[.., d_in] of the weight's dtype -> [.., d_out]."""
        flat = x.reshape(-1, x.shape[-1])
        out: Tensor = torch.ops.mkldnn._linear_pointwise(flat, self._weight, self._bias, "none", [], "")
        return out.view(*x.shape[:-1], self.width)

    def added_to(self, rows: Tensor, x: Tensor) -> Tensor:
        """``rows`` [n, d_out] plus the product for x [n, d_in], in one pass."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, rows, self._weight, self._bias, "add")
        return out
