"""The identity branch of decoupled cross-attention, with keys and values that were projected beforehand.

Each cross-attention layer adds ``weight * softmax(q K^T / sqrt(d)) V`` to its text attention (IP-Adapter, Ye et al.
2023, section 3.2.2; InstantID, Wang et al. 2024, section 3.2). K and V depend on the face alone, so each step only
computes one attention over a few tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .recorder import is_recording, stage

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(G, heads, L, d), (G, heads, T, d), (G, heads, T, d) -> (G, heads, L, d)``: attention scaled by ``1 / sqrt(d)``."""


class IdentityEntry(NamedTuple):
    """One face as one layer sees it, on the query's device. Keys, values and masks have its dtype."""

    key: Tensor
    """``(G, heads, T, d)``, contiguous in ``d``: one row for each chunk of the batch (cond, uncond, ...), in order."""
    value: Tensor
    """Like ``key``."""
    scale: float | Tensor = 1.0
    """Weight of the face: a number or 0-dimensional tensor for all positions, or ``(b, N, 1)`` for each position. ``b``
    is 1, or the number of images of a chunk."""

    @classmethod
    def split(cls, key: Tensor, value: Tensor, num_heads: int, scale: float | Tensor = 1.0) -> IdentityEntry:
        """Split keys and values ``(G, T, C)`` into heads, as views; ``C = num_heads * d``."""
        shape = *key.shape[:2], num_heads, -1
        return cls(key.reshape(shape).transpose(1, 2), value.reshape(shape).transpose(1, 2), scale)


def identity_attention(
    query: Tensor,
    entries: Sequence[IdentityEntry],
    attend: Attend = F.scaled_dot_product_attention,
    *,
    onto: Tensor | None = None,
) -> Tensor:
    """Return the sum over faces of ``scale * softmax(q K^T / sqrt(d)) V``, plus ``onto``.

    Pure: it neither copies keys and values for the batch nor synchronises with the device.

    Args:
        query: ``(B, N, C)``, G equal chunks of ``B / G`` images each.
        entries: at least one; all have the same G and the layer's heads, ``C = heads * d``.
        attend: the host's attention.
        onto: the text attention, ``(B, N, C)``, to which each face is added in one operation; None for zeros.

    Returns:
        ``(B, N, C)`` of the query's dtype, or of ``onto``'s if that has more bits.
    """
    if not torch.compiler.is_compiling() and is_recording():  # in this order, recording does not recompile
        with stage("identity branch"):
            return _sum(query, entries, attend, onto)
    return _sum(query, entries, attend, onto)


def _sum(query: Tensor, entries: Sequence[IdentityEntry], attend: Attend, onto: Tensor | None) -> Tensor:
    for key, value, scale in entries:
        # All images of a chunk share keys and values, so their queries are one long sequence: (G, heads, B / G * N, d).
        chunks, heads, _, dim = key.shape
        attended = attend(query.reshape(chunks, -1, heads, dim).transpose(1, 2), key, value)
        # reshape_as takes the host less time than reshape(query.shape).
        onto = _added(onto, attended.transpose(1, 2).reshape_as(query), scale)
    assert onto is not None, "there is at least one face"
    return onto


def _added(onto: Tensor | None, attended: Tensor, scale: float | Tensor) -> Tensor:
    """Return ``onto + attended * scale``."""
    if isinstance(scale, Tensor) and scale.ndim and len(scale) > 1:
        rows = -1, len(scale)  # all chunks share the scale: (G, images of a chunk, N, C)
        onto = None if onto is None else onto.unflatten(0, rows)
        return _added(onto, attended.unflatten(0, rows), scale[None]).flatten(0, 1)
    if onto is None:
        return attended * scale
    if torch.compiler.is_compiling():  # fuses both, and does not recompile for another number
        return onto + attended * scale
    if isinstance(scale, Tensor):
        return torch.addcmul(onto, attended, scale)
    return torch.add(onto, attended, alpha=scale)


def region_mask(mask: Tensor, image_size: tuple[int, int], num_tokens: int, batch: int) -> Tensor:
    """Resize a mask in pixels to the tokens of one layer.

    The layer's grid is derived from its number of tokens (cubiq/ComfyUI_InstantID, CrossAttentionPatch.py,
    ``instantid_attention``). For odd sizes at extreme aspect ratios that grid has fewer cells than tokens. The
    flattened mask is then padded with zeros at both ends.

    Args:
        mask: ``(M, H, W)`` in 0..1, of any size and floating dtype.
        image_size: ``(h, w)`` of the latent.
        num_tokens: N of the layer.
        batch: images per chunk. A single mask applies to all; otherwise image i gets mask i, or else the last mask.

    Returns:
        ``(1, N, 1)`` or ``(batch, N, 1)`` of the mask's dtype, for :class:`IdentityEntry`.
    """
    height, width = image_size
    rows = max(int(height / math.sqrt(height * width / num_tokens)), 1)
    rows += num_tokens % rows != 0
    columns = num_tokens // rows
    resized = F.interpolate(mask.unsqueeze(1), size=(rows, columns), mode="bilinear").flatten(1)  # (M, rows * columns)
    missing = num_tokens - rows * columns
    tokens = F.pad(resized, (missing // 2, missing - missing // 2)).unsqueeze(-1)
    if len(tokens) == 1:
        return tokens
    return tokens[torch.arange(batch, device=tokens.device).clamp(max=len(tokens) - 1)]
