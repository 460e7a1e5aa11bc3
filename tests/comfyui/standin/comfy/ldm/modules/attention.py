"""Attention, and the transformer block that looks up patches for its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def wrap_attn(func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let ``transformer_options["optimized_attention_override"]`` take over, but not what it calls itself."""

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        override = (kwargs.get("transformer_options") or {}).get("optimized_attention_override")
        if override is None or kwargs.get("_inside_attn_wrapper"):
            return func(*args, **kwargs)
        return override(func, *args, **{**kwargs, "_inside_attn_wrapper": True})

    return wrapper


@wrap_attn
def attention_pytorch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    attn_precision=None,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **kwargs: Any,
) -> Tensor:
    """``(B, tokens, heads * d)``, or ``(B, heads, tokens, d)`` with ``skip_reshape``, to ``(B, tokens, heads * d)``."""
    if not skip_reshape:
        q, k, v = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))
    if mask is not None:
        mask = mask.reshape(*[1] * (4 - mask.ndim), *mask.shape) if mask.ndim == 2 else mask.unsqueeze(-3)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


optimized_attention = attention_pytorch


class GEGLU(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, operations, **factory: Any) -> None:
        super().__init__()
        self.proj = operations.Linear(dim_in, dim_out * 2, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int, operations, **factory: Any) -> None:
        super().__init__()
        layers = GEGLU(dim, 4 * dim, operations, **factory), nn.Identity(), operations.Linear(4 * dim, dim, **factory)
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class CrossAttention(nn.Module):
    def __init__(self, query_dim: int, context_dim: int, heads: int, operations, **factory: Any) -> None:
        super().__init__()
        self.heads = heads
        self.attn_precision = None
        self.to_q = operations.Linear(query_dim, query_dim, bias=False, **factory)
        self.to_k = operations.Linear(context_dim, query_dim, bias=False, **factory)
        self.to_v = operations.Linear(context_dim, query_dim, bias=False, **factory)
        self.to_out = nn.Sequential(operations.Linear(query_dim, query_dim, **factory))

    def forward(self, x: Tensor, context: Tensor, value: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(value)
        options = {"attn_precision": self.attn_precision, "transformer_options": transformer_options}
        return self.to_out(optimized_attention(q, k, v, self.heads, **options))

    def forward_replaced(
        self, patch: Callable[..., Tensor], x: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]
    ) -> Tensor:
        return self.to_out(patch(self.to_q(x), self.to_k(context), self.to_v(value), extra_options))


class BasicTransformerBlock(nn.Module):
    def __init__(self, dim: int, n_heads: int, d_head: int, context_dim: int, operations, **factory: Any) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.d_head = d_head
        # In the host's order, which is the order in which tests draw their random weights.
        self.attn1 = CrossAttention(dim, dim, n_heads, operations, **factory)
        self.ff = FeedForward(dim, operations, **factory)
        self.attn2 = CrossAttention(dim, context_dim, n_heads, operations, **factory)
        self.norm2 = operations.LayerNorm(dim, **factory)
        self.norm1 = operations.LayerNorm(dim, **factory)
        self.norm3 = operations.LayerNorm(dim, **factory)

    def forward(self, x: Tensor, context: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        n = self.norm1(x)
        x = x + self._attend("attn1", n, n, transformer_options)
        x = x + self._attend("attn2", self.norm2(x), context, transformer_options)
        return x + self.ff(self.norm3(x))

    def _attend(self, name: str, n: Tensor, context: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        """With all patches of this name, and with the replacement for ``(*block, index)`` or else for ``block``."""
        attention: CrossAttention = getattr(self, name)
        extra_options = {k: v for k, v in transformer_options.items() if k not in ("patches", "patches_replace")}
        extra_options |= {"n_heads": self.n_heads, "dim_head": self.d_head, "attn_precision": attention.attn_precision}
        patches = transformer_options.get("patches", {})
        value = context
        for patch in patches.get(f"{name}_patch", []):
            n, context, value = patch(n, context, value, extra_options)
        replace = transformer_options.get("patches_replace", {}).get(name, {})
        block = transformer_options.get("block")
        key = block and (*block, transformer_options.get("block_index", 0))
        patch = replace.get(key, replace.get(block))
        if patch is None:
            n = attention(n, context, value, transformer_options)
        else:
            n = attention.forward_replaced(patch, n, context, value, extra_options)
        for patch in patches.get(f"{name}_output_patch", []):
            n = patch(n, extra_options)
        return n


class SpatialTransformer(nn.Module):
    """A stack of blocks over the pixels of a feature map, with linear layers around it as in SDXL."""

    def __init__(
        self, in_channels: int, n_heads: int, d_head: int, depth: int, context_dim: int, operations, **factory: Any
    ) -> None:
        super().__init__()
        self.norm = operations.GroupNorm(32, in_channels, eps=1e-6, **factory)
        self.proj_in = operations.Linear(in_channels, in_channels, **factory)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(in_channels, n_heads, d_head, context_dim, operations, **factory)
            for _ in range(depth)
        )
        self.proj_out = operations.Linear(in_channels, in_channels, **factory)

    def forward(self, x: Tensor, context: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        transformer_options["activations_shape"] = list(x.shape)
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for i, block in enumerate(self.transformer_blocks):
            transformer_options["block_index"] = i
            tokens = block(tokens, context, transformer_options)
        return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, x.shape[2:])
