"""Attention processors of cross-attention layers of diffusers: two that add the identity branch, and one that does not.

All look up ``attn.to_q`` and its siblings at every call, so a LoRA that wraps them later is honoured.
"""

# diffusers types the projections of an Attention as optional; a cross-attention layer has them all.
# pyright: reportArgumentType=false, reportOptionalCall=false, reportOptionalSubscript=false

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from ..attention import identity_attention
from ..fused import fused_attention
from ..reuse import Project, at_every_step
from .layout import LaidOutBank


def identity_processor(
    attn: Attention, bank: LaidOutBank, layer: int, project: Project
) -> IdentityAttnProcessor | AddIdentityProcessor:
    """A processor that does what the present one of ``attn`` does, and the identity branch of layer ``layer``.

    Args:
        project: makes keys and values of the text.
    """
    if is_plain(attn):
        return IdentityAttnProcessor(bank, layer, project)
    return AddIdentityProcessor(attn.processor, bank, layer)


def is_plain(attn: Attention) -> bool:
    """Whether it is torch's attention and nothing else."""
    return (
        type(attn.processor) is AttnProcessor2_0
        and attn.spatial_norm is attn.group_norm is attn.norm_q is attn.norm_k is None
        and not (attn.norm_cross or attn.residual_connection)
        and attn.rescale_output_factor == 1
    )


class TextAttnProcessor:
    """AttnProcessor2_0 of a plain layer, bit for bit, with keys and values that may come from the step before."""

    def __init__(self, project: Project = at_every_step) -> None:
        self.project = project

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,  # (B, N, C)
        encoder_hidden_states: torch.Tensor,  # (B, T, width)
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        query = attn.to_q(hidden_states)
        key, value = self.project(attn.to_k, encoder_hidden_states), self.project(attn.to_v, encoder_hidden_states)
        return attn.to_out[1](attn.to_out[0](self.attend(attn, query, key, value, attention_mask)))

    def attend(
        self,
        attn: Attention,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """``(B, N, C), (B, T, C), (B, T, C) -> (B, N, C)``"""
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, key.shape[1], len(key))
            attention_mask = attention_mask.view(len(key), attn.heads, -1, attention_mask.shape[-1])
        heads = (tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for tensor in (query, key, value))
        return F.scaled_dot_product_attention(*heads, attn_mask=attention_mask).transpose(1, 2).flatten(2)


class IdentityAttnProcessor(TextAttnProcessor):
    """``to_out(softmax(Q K_text^T) V_text + identity branch)``, the first term bit for bit AttnProcessor2_0's
    where the two are computed apart."""

    def __init__(self, bank: LaidOutBank, layer: int, project: Project = at_every_step) -> None:
        super().__init__(project)
        self.bank = bank
        self.layer = layer

    def attend(
        self,
        attn: Attention,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Both attentions, ``(B, N, C)``."""
        entries = self.bank.entries(self.layer, query.shape[1], attn.heads)
        can_fuse = bool(entries) and attention_mask is None
        fused = fused_attention(query, key, value, entries) if can_fuse else None
        if fused is not None:
            return fused
        attended = super().attend(attn, query, key, value, attention_mask)
        return identity_attention(query, entries, onto=attended) if entries else attended


class AddIdentityProcessor(nn.Module):
    """The identity branch added to what any other processor (IP-Adapter's, xFormers', ...) returns.

    ``to_out`` is linear, so projecting the two attentions apart, with its bias once, equals projecting their sum. It
    costs a second query projection and a second ``to_out``. A module, so that the inner processor's weights stay where
    ``unet.to()`` and offloading find them.
    """

    def __init__(self, inner: Any, bank: LaidOutBank, layer: int) -> None:
        super().__init__()
        self.inner = inner
        self.bank = bank
        self.layer = layer
        # Attention.forward passes the cross_attention_kwargs that it finds in the signature of this attribute
        # (ip_adapter_masks, for one). The call itself goes to the method of the class.
        self.__call__ = inner.__call__

    def __call__(self, attn: Attention, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        attended = self.inner(attn, hidden_states, *args, **kwargs)
        if not self.bank.is_on:
            return attended
        query = attn.to_q(hidden_states)
        identity = identity_attention(query, self.bank.entries(self.layer, query.shape[1], attn.heads))
        projection = attn.to_out[0]
        identity = projection(identity) - projection.bias
        return attended + identity / attn.rescale_output_factor
