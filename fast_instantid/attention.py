"""The identity branch of decoupled cross-attention, with keys and values that were projected beforehand.

Each cross-attention layer adds ``weight * softmax(q K^T / sqrt(d)) V`` to its text attention (IP-Adapter, Ye et al.
2023, section 3.2.2; InstantID, Wang et al. 2024, section 3.2). K and V depend on the face alone, so all that is left to
do per step is one attention over a few tokens.
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
    """``(G, heads, T, d)``, contiguous in ``d``: one row for each of the G chunks of the batch (cond, uncond, ...), in
    the batch's order."""
    value: Tensor
    """Like ``key``."""
    scale: float | Tensor = 1.0
    """How much the face acts. A number, or a tensor without dimensions, is its weight everywhere; ``(b, N, 1)`` is its
    weight at every position, where ``b`` is 1 for all images alike, or the number of images of a chunk."""

    @classmethod
    def split(cls, key: Tensor, value: Tensor, num_heads: int, scale: float | Tensor = 1.0) -> IdentityEntry:
        """Views of keys and values ``(G, T, C)`` as projections make them, ``C = num_heads * d``."""
        shape = *key.shape[:2], num_heads, -1
        return cls(key.reshape(shape).transpose(1, 2), value.reshape(shape).transpose(1, 2), scale)


def identity_attention(
    query: Tensor,
    entries: Sequence[IdentityEntry],
    attend: Attend = F.scaled_dot_product_attention,
    *,
    onto: Tensor | None = None,
) -> Tensor:
    """The sum over faces of ``scale * softmax(q K^T / sqrt(d)) V``, and ``onto``.

    A pure function: nothing is copied for the sake of the batch, and no tensor's values are looked at.

    Args:
        query: ``(B, N, C)``, G equal chunks of ``B / G`` images each.
        entries: at least one; all have the same G and the layer's heads, ``C = heads * d``.
        attend: the host's attention.
        onto: ``(B, N, C)``, the text attention, to which each face is added in one operation. None for nothing.

    Returns:
        ``(B, N, C)`` of the query's dtype, or that of ``onto`` where it has more bits.
    """
    if not torch.compiler.is_compiling() and is_recording():  # in this order, a graph does not depend on who records
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
    """``onto + attended * scale``"""
    if isinstance(scale, Tensor) and scale.ndim and len(scale) > 1:
        rows = -1, len(scale)  # the same in every chunk: (G, images of a chunk, N, C)
        onto = None if onto is None else onto.unflatten(0, rows)
        return _added(onto, attended.unflatten(0, rows), scale[None]).flatten(0, 1)
    if onto is None:
        return attended * scale
    if torch.compiler.is_compiling():  # which makes one kernel of both, and no other graph for another number
        return onto + attended * scale
    if isinstance(scale, Tensor):
        return torch.addcmul(onto, attended, scale)
    return torch.add(onto, attended, alpha=scale)


def region_mask(mask: Tensor, image_size: tuple[int, int], num_tokens: int, batch: int) -> Tensor:
    """A mask in pixels, as the tokens of one layer see it.

    The grid of the layer is guessed from the number of its tokens (cubiq/ComfyUI_InstantID, CrossAttentionPatch.py,
    ``instantid_attention``). Where the guess has fewer cells than there are tokens, which happens for odd sizes at
    extreme aspect ratios, the flattened mask is padded with zeros at both ends.

    Args:
        mask: ``(M, H, W)`` in 0..1, of any size and floating dtype.
        image_size: ``(h, w)`` of the latent picture that is sampled.
        num_tokens: N of the layer.
        batch: images per chunk. One mask serves them all; otherwise image i gets mask i, and the last mask serves those
            that have none of their own.

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
