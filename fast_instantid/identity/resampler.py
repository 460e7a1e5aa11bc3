"""The network that turns a face embedding into identity tokens.

A Perceiver resampler (Alayrac et al. 2022, "Flamingo", section 3.1.1) in IP-Adapter's "plus" variant
(tencent-ailab/IP-Adapter, ip_adapter/resampler.py). Parameter names are the checkpoint's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelFileError
from ..weights import StateDict
from .linear import LayerNorm, Linear

HEAD_DIM = 64
"""Channels per head: the only size that the weights do not tell, 64 in every published resampler."""

_MAX_DEPTH = 64  # a layer takes 2 ms to make, however small


class PerceiverAttention(nn.Module):
    """Attention of the latents to the inputs and to themselves."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.norm2 = LayerNorm(dim)
        self.to_q = Linear(dim, inner_dim, bias=False)
        self.to_kv = Linear(dim, 2 * inner_dim, bias=False)
        self.to_out = Linear(inner_dim, dim, bias=False)

    def forward(self, inputs: Tensor, latents: Tensor) -> Tensor:
        """``(B, n, dim), (B, queries, dim) -> (B, queries, dim)``"""
        latents = self.norm2(latents)
        query = self.to_q(latents)
        key, value = self.to_kv(torch.cat([self.norm1(inputs), latents], dim=1)).chunk(2, dim=-1)
        heads = (tensor.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for tensor in (query, key, value))
        return self.to_out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class ResamplerLayer(nn.ModuleList):
    """Attention, then feed-forward, each with a residual; a list, because the checkpoint numbers them."""

    def __init__(self, dim: int, inner_dim: int, feed_forward_dim: int) -> None:
        feed_forward = nn.Sequential(
            LayerNorm(dim),
            Linear(dim, feed_forward_dim, bias=False),
            nn.GELU(),
            Linear(feed_forward_dim, dim, bias=False),
        )
        super().__init__([PerceiverAttention(dim, inner_dim), feed_forward])

    def forward(self, inputs: Tensor, latents: Tensor) -> Tensor:
        """``(B, n, dim), (B, queries, dim) -> (B, queries, dim)``"""
        attention, feed_forward = self
        latents = latents + attention(inputs, latents)
        return latents + feed_forward(latents)


class Resampler(nn.Module):
    """A fixed number of learnt latents that read any number of embeddings; InstantID has 16 latents for one."""

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        inner_dim: int,
        feed_forward_dim: int,
        num_queries: int,
        embedding_dim: int,
        output_dim: int,
    ) -> None:
        super().__init__()
        latents = torch.empty(1, num_queries, dim)
        if not latents.is_meta:  # arithmetic on meta tensors imports torch's compiler and sympy, a second or two
            latents = torch.randn(1, num_queries, dim) / dim**0.5
        self.latents = nn.Parameter(latents)
        self.proj_in = Linear(embedding_dim, dim)
        self.proj_out = Linear(dim, output_dim)
        self.norm_out = LayerNorm(output_dim)
        self.layers = nn.ModuleList(ResamplerLayer(dim, inner_dim, feed_forward_dim) for _ in range(depth))

    @classmethod
    def from_state_dict(cls, state_dict: StateDict) -> Resampler:
        """Return the resampler with these weights, uncopied; all dimensions are deduced from them.

        Raises:
            ModelFileError: a tensor is missing, unknown, or of an inconsistent shape.
        """
        try:
            if empty := [name for name, tensor in state_dict.items() if not tensor.numel()]:
                raise ValueError(f"{empty[0]} is empty")
            depth = len({name.split(".")[1] for name in state_dict if name.startswith("layers.")})
            if depth > _MAX_DEPTH:
                raise ValueError(f"{depth:,} layers; published ones have 4 to 8")
            _, num_queries, dim = state_dict["latents"].shape
            inner_dim = state_dict["layers.0.0.to_q.weight"].shape[0]
            if inner_dim % HEAD_DIM:
                raise ValueError(f"{inner_dim} attention channels are not a multiple of {HEAD_DIM}")
            with torch.device("meta"):
                resampler = cls(
                    dim=dim,
                    depth=depth,
                    inner_dim=inner_dim,
                    feed_forward_dim=state_dict["layers.0.1.1.weight"].shape[0],
                    num_queries=num_queries,
                    embedding_dim=state_dict["proj_in.weight"].shape[1],
                    output_dim=state_dict["proj_out.weight"].shape[0],
                )
            resampler.requires_grad_(False).load_state_dict(state_dict, assign=True)
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise ModelFileError(f"the weights are not those of a Perceiver resampler: {str(error)[:500]}") from error
        return resampler.eval()

    def forward(self, embeddings: Tensor) -> Tensor:
        """``(B, n, embedding_dim) -> (B, num_queries, output_dim)``; in InstantID ``(B, 1, 512) -> (B, 16, 2048)``.

        It computes on the embeddings' device, in their dtype. Other weights are streamed one by one: at the published
        size, at most 13 MB of 164 (fp16).
        """
        inputs = self.proj_in(embeddings)
        latents = self.latents.to(embeddings).expand(len(embeddings), -1, -1)
        for layer in self.layers:
            latents = layer(inputs, latents)
        return self.norm_out(self.proj_out(latents))
