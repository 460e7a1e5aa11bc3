"""What a ControlNetModel need not compute again, or at all, as long as it is the IdentityNet of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel, ControlNetOutput
from torch import Tensor

from ..reuse import ReplacedForward, Reuse


def keep_hint(net: ControlNetModel, reuse: Reuse) -> ReplacedForward:
    """Run the convolutions over the keypoint picture, which see it at full size, once per run."""
    hint_block = net.controlnet_cond_embedding

    def make(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda conditioning: reuse(hint_block, conditioning, forward)

    return ReplacedForward(hint_block, make)


def skip_when_silent(net: ControlNetModel) -> ReplacedForward:
    """Do not run the network for a ``conditioning_scale`` of 0, which pipelines give it at strength 0 and outside its
    range: they multiply what it says with 0.

    What it returns then is 0 where that product is -0, or NaN where the network overflows.
    """

    def make(forward: Callable[..., Any]) -> Callable[..., Any]:
        def forward_unless_silent(
            sample: Tensor,
            timestep: Any,
            encoder_hidden_states: Tensor,
            controlnet_cond: Tensor,
            conditioning_scale: Any = 1.0,
            *args: Any,
            return_dict: bool = True,
            **kwargs: Any,
        ) -> Any:
            is_silent = (
                not torch.compiler.is_compiling()  # a graph would be made for each scale
                and not torch.is_grad_enabled()
                and not args
                and isinstance(conditioning_scale, (int, float))
                and conditioning_scale == 0
                and not net.config["global_pool_conditions"]
            )
            if not is_silent:
                inputs = sample, timestep, encoder_hidden_states, controlnet_cond, conditioning_scale, *args
                return forward(*inputs, **kwargs, return_dict=return_dict)
            down, mid = silence(net, sample)
            return ControlNetOutput(down, mid) if return_dict else (down, mid)

        return forward_unless_silent

    return ReplacedForward(net, make)


def silence(net: Any, sample: Tensor) -> tuple[Any, Tensor]:
    """Zeros of the shapes that the network returns: ``(B, C, h, w)`` of each layer, and of the middle block."""
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
