"""The IdentityNet's output: zeros in place of it, and where it acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..identity.layout import Layout, residual_mask


def zero_residuals(net: Any, sample: Tensor) -> tuple[Any, Tensor]:
    """Return zeros in the shapes of a ControlNet's output: ``(B, C, h, w)`` of each layer, and of the middle block."""
    height, width = sample.shape[-2:]
    sizes = [(height, width)]
    for block in net.down_blocks:
        sizes += [(height, width)] * len(block.resnets)
        if block.downsamplers is not None:
            height, width = (height + 1) // 2, (width + 1) // 2  # a kernel of 3, a stride of 2 and a padding of 1
            sizes.append((height, width))
    zero = sample.new_zeros((), dtype=net.dtype)  # takes no memory for its shape, but may not be written to
    down = [
        zero.expand(len(sample), convolution.out_channels, *size)
        for convolution, size in zip(net.controlnet_down_blocks, sizes, strict=True)
    ]
    # Several ControlNets are added up in the first one's.
    mid = zero.expand(len(sample), net.controlnet_mid_block.out_channels, height, width).contiguous()
    return down, mid


def has_zero_scale(net: nn.Module, scale: Any) -> bool:
    """Whether the pipeline multiplies a ControlNet's output by 0, as at scale 0 and outside of the ControlNet's range.

    Zeros replace that product. They differ from it where it is -0, or NaN after an overflow in the network.
    """
    is_zero = isinstance(scale, (int, float)) and scale == 0
    return is_zero and not torch.is_grad_enabled() and not net.config["global_pool_conditions"]  # pyright: ignore


def masked_residuals(down: Sequence[Tensor], mid: Tensor, mask: Tensor, layout: Layout) -> tuple[list[Tensor], Tensor]:
    """Return a ControlNet's output multiplied by a mask ``(M, H, W)`` of the pictures of a chunk."""
    images = len(mid) // len(layout.chunks)
    sizes = {(residual.shape[-2], residual.shape[-1]) for residual in (*down, mid)}
    masks = {size: residual_mask(mask, size, layout, images).to(mid.device, mid.dtype) for size in sizes}
    first, *others = [residual * masks[residual.shape[-2], residual.shape[-1]] for residual in (mid, *down)]
    return others, first
