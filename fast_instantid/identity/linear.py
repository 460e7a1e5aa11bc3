"""Linear layers that are applied to a few rows, once for each person."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..placement import has_onednn

_BLOCK = 1280 << 10  # weights that are converted at a time: 5 MB in fp32, which the cores' cache keeps for the product


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` on the device and in the dtype of ``inputs``, with weights from anywhere, of any dtype.

    On the CPU in fp32, 5 MB of converted weights are in memory at a time, and the result is the same to the bit as with
    weights that were converted before.

    Args:
        inputs: ``(..., n, K)``.
        weight, bias: ``(C, K)`` and ``(C,)``.

    Returns:
        ``(..., n, C)``, contiguous.
    """
    bias = None if bias is None else bias.to(inputs)
    if inputs.device.type != "cpu" or inputs.dtype != torch.float32:
        return F.linear(inputs, weight.to(inputs), bias)
    rows = inputs.flatten(0, -2)
    size = len(weight) if weight.dtype == inputs.dtype else max(1, _BLOCK // weight.shape[1])
    out = torch.cat([_product(rows, block.to(inputs)) for block in weight.split(size)], dim=1)
    out = out.unflatten(0, inputs.shape[:-1])
    return out if bias is None else out + bias


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    has_gradient = torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad)
    if has_gradient or not has_onednn(torch.float32):  # oneDNN's operator has no gradient
        return (weight @ rows.T).T  # for 32 rows, MKL takes up to twice as long with the weights as the second operand
    # As torch's compiler calls it. For 32 rows it is twice as fast as MKL.
    onednn: Any = torch.ops.mkldnn
    return onednn._linear_pointwise(rows, weight, None, "none", [], "")


class Linear(nn.Linear):
    """A linear layer whose weights may be on another device or of another dtype than its input."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation whose weights may be on another device or of another dtype than its input."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight.to(input), self.bias.to(input), self.eps)
