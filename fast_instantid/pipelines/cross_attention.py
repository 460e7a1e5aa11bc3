"""Cross-attention layers of diffusers with an identity branch. Their processors are never touched.

A layer's ``forward`` is replaced instead. So whatever happens to its processor later is honoured: an IP-Adapter that is
loaded, rescaled or unloaded, attention slicing, fused projections, a processor of the user's own. ``attn.to_q`` and its
siblings are looked up at every call, so a LoRA that wraps them is honoured too.
"""

# diffusers types the projections of an Attention as optional; a cross-attention layer has them all.
# pyright: reportArgumentType=false, reportOptionalCall=false, reportOptionalSubscript=false

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from ..attention import identity_attention
from ..fused import fused_attention
from ..identity.layout import LayerFace, Layout
from ..reuse import Reuse


@dataclass
class Evaluation:
    """Inputs of the identity branch in the layers of one network during one evaluation."""

    faces: Sequence[Sequence[LayerFace]] = ()
    """The people in each layer; empty without people."""
    layout: Layout | None = None
    thread: int = 0
    """The thread of the evaluation. A call that began in another thread before the injection has no people."""
    reuse: Reuse | None = None
    """Remembers keys and values of the text for the steps of a run; None computes them at every step."""

    def clear(self) -> None:
        """Remove the people, for the next evaluation."""
        self.faces, self.layout, self.reuse = (), None, None


@dataclass
class CrossAttention:
    """A layer that does what its processor does, and adds the identity branch."""

    attn: Attention
    index: int
    """The layer's index in :attr:`Evaluation.faces`."""
    evaluation: Evaluation

    def forward(
        self,
        before: Callable[..., Tensor],
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """``(B, N, C), (B, T, width) -> (B, N, C)``; ``before`` is the layer's own forward."""
        evaluation = self.evaluation
        faces = evaluation.faces[self.index] if evaluation.faces else ()
        if faces and not torch.compiler.is_compiling() and not torch.is_grad_enabled():
            faces = faces if evaluation.thread == threading.get_ident() else ()
        has_work = bool(faces) or evaluation.reuse is not None
        if has_work and not kwargs and encoder_hidden_states is not None and is_plain(self.attn):
            return self._plain(hidden_states, encoder_hidden_states, attention_mask, faces)
        attended = before(hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        if not faces:
            return attended
        # to_out is linear: projecting the two attentions apart, with its bias once, equals projecting their sum.
        query = self.attn.to_q(hidden_states)
        identity = identity_attention(query, self._entries(query, faces))
        projection = self.attn.to_out[0]
        identity = projection(identity) - projection.bias
        return attended + identity / self.attn.rescale_output_factor

    def _plain(
        self, hidden_states: Tensor, text: Tensor, attention_mask: Tensor | None, faces: Sequence[LayerFace]
    ) -> Tensor:
        """AttnProcessor2_0, bit for bit, with keys and values that may come from the step before; and the branch."""
        attn, reuse = self.attn, self.evaluation.reuse
        query = attn.to_q(hidden_states)
        key, value = (to(text) if reuse is None else reuse(to, text) for to in (attn.to_k, attn.to_v))
        entries = self._entries(query, faces) if faces else []
        attended = fused_attention(query, key, value, entries) if entries and attention_mask is None else None
        if attended is None:
            if attention_mask is not None:
                attention_mask = attn.prepare_attention_mask(attention_mask, key.shape[1], len(key))
                attention_mask = attention_mask.view(len(key), attn.heads, -1, attention_mask.shape[-1])
            heads = (tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for tensor in (query, key, value))
            attended = F.scaled_dot_product_attention(*heads, attn_mask=attention_mask).transpose(1, 2).flatten(2)
            if entries:
                attended = identity_attention(query, entries, onto=attended)
        return attn.to_out[1](attn.to_out[0](attended))

    def _entries(self, query: Tensor, faces: Sequence[LayerFace]) -> list[Any]:
        layout = self.evaluation.layout
        assert layout is not None, "the network says how its batch is made up before its layers run"
        return [face.entry(query, self.attn.heads, layout) for face in faces]


def is_plain(attn: Attention) -> bool:
    """Whether the layer computes torch's attention and nothing else."""
    return (
        type(attn.processor) is AttnProcessor2_0
        and attn.spatial_norm is attn.group_norm is attn.norm_q is attn.norm_k is None
        and not (attn.norm_cross or attn.residual_connection)
        and attn.rescale_output_factor == 1
    )


def cross_attention_layers(network: Any) -> dict[str, Attention]:
    """A network's cross-attention layers by name, in checkpoint order: down, up, middle."""
    names = [name.removesuffix(".processor") for name in network.attn_processors if name.endswith("attn2.processor")]
    return {name: network.get_submodule(name) for name in names}
