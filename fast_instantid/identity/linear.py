"""Linear layers that are applied to a few rows, once for each person."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BLOCK = 640 << 10  # weights that are converted at a time: 2.6 MB in fp32, which a core's cache keeps for the product


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` on the device and in the dtype of ``inputs``, with weights from anywhere, of any dtype.

    On the CPU in fp32, converted weights are never in memory as a whole, and the result is the same to the bit as with
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
    # For 32 rows, MKL takes up to twice as long with the weights as the second operand.
    columns = inputs.flatten(0, -2).T
    size = len(weight) if weight.dtype == inputs.dtype else max(1, _BLOCK // weight.shape[1])
    products = [(block.to(inputs) @ columns).T for block in weight.split(size)]
    out = torch.cat(products, dim=1).unflatten(0, inputs.shape[:-1])
    return out if bias is None else out + bias


class Linear(nn.Linear):
    """A linear layer whose weights may be on another device or of another dtype than its input."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation whose weights may be on another device or of another dtype than its input."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight.to(input), self.bias.to(input), self.eps)
