"""Layers that cast their weights to the type of their input at each use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _cast(layer: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    bias = layer.bias
    return layer.weight.to(x), None if bias is None else bias.to(x)


class manual_cast:
    class Linear(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, *_cast(self, x))

    class Conv2d(torch.nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, *_cast(self, x))

    class GroupNorm(torch.nn.GroupNorm):
        def forward(self, x: Tensor) -> Tensor:
            return F.group_norm(x, self.num_groups, *_cast(self, x), self.eps)

    class LayerNorm(torch.nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x, self.normalized_shape, *_cast(self, x), self.eps)


disable_weight_init = manual_cast
"""The host's layers that cast nothing; here casting to the type that is there already is nothing."""
