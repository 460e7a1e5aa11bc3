"""Keys and values of the identity branch, projected once for all steps.

The published method multiplies the same tokens with 681.6 MB (fp16) of weights at every step. The products are 10.65
MB, and only they are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .linear import linear


@dataclass(frozen=True, slots=True, eq=False)
class IdentityBank:
    """Keys and values of one face for all cross-attention layers. Never change the tensors: they may be shared."""

    keys: tuple[Tensor, ...]
    """``(2, T, C)`` for each layer in checkpoint order: row 0 is uncond, row 1 cond; C is the layer's width. T is 16
    tokens per reference, concatenated."""
    values: tuple[Tensor, ...]
    """Like ``keys``."""

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> IdentityBank:
        """Return the bank on another device or in another dtype; itself if nothing changes."""
        keys = tuple(key.to(device=device, dtype=dtype) for key in self.keys)
        values = tuple(value.to(device=device, dtype=dtype) for value in self.values)
        unchanged = all(new is old for new, old in zip(keys + values, self.keys + self.values, strict=True))
        return self if unchanged else IdentityBank(keys, values)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for tensor in self.keys + self.values)

    def __repr__(self) -> str:
        return f"IdentityBank({len(self.keys)} layers, {self.nbytes / 1e6:.2f} MB)"


@torch.no_grad()
def project_bank(
    layers: Iterable[tuple[Tensor, Tensor]], tokens: Tensor, device: torch.device, dtype: torch.dtype
) -> IdentityBank:
    """Project identity tokens by every layer's weights.

    The memory-mapped weights are streamed: the device never holds more than one layer.

    Args:
        layers: ``to_k_ip`` and ``to_v_ip`` weight of each layer, ``(C, width)`` each, on any device, of any dtype.
        tokens: ``(2, T, width)``, uncond and cond.
        device, dtype: of the computation and the bank.
    """
    tokens = tokens.to(device, dtype)
    projected = [(linear(tokens, to_key), linear(tokens, to_value)) for to_key, to_value in layers]
    return IdentityBank(tuple(key for key, _ in projected), tuple(value for _, value in projected))
