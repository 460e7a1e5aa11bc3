"""SDXL's UNet at any width, with the host's names of weights and keys of layers (Podell et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import comfy.ops
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor, nn


def timestep_embedding(timesteps: Tensor, dim: int, max_period: int = 10000) -> Tensor:
    """``(B,) -> (B, dim)``: cosines, then sines."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32) / half)
    angles = timesteps[:, None].float() * frequencies.to(timesteps.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResBlock(nn.Module):
    def __init__(self, channels: int, emb_channels: int, out_channels: int, operations, **factory: Any) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            operations.GroupNorm(32, channels, **factory),
            nn.SiLU(),
            operations.Conv2d(channels, out_channels, 3, padding=1, **factory),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), operations.Linear(emb_channels, out_channels, **factory))
        self.out_layers = nn.Sequential(
            operations.GroupNorm(32, out_channels, **factory),
            nn.SiLU(),
            nn.Identity(),
            operations.Conv2d(out_channels, out_channels, 3, padding=1, **factory),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else operations.Conv2d(channels, out_channels, 1, **factory)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[..., None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    def __init__(self, channels: int, operations, **factory: Any) -> None:
        super().__init__()
        self.op = operations.Conv2d(channels, channels, 3, stride=2, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int, operations, **factory: Any) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, **factory)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return self.conv(F.interpolate(x, size=tuple(size), mode="nearest"))


class TimestepEmbedSequential(nn.Sequential):
    """Layers that get further inputs beside the feature map."""

    def forward(
        self, x: Tensor, emb: Tensor, context: Tensor, transformer_options: dict[str, Any], output_shape=None
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context, transformer_options)
                if "transformer_index" in transformer_options:
                    transformer_options["transformer_index"] += 1
            elif isinstance(layer, Upsample):
                x = layer(x, output_shape[2:])
            else:
                x = layer(x)
        return x


class Encoder(nn.Module):
    """The way down and the middle, which UNet and ControlNet have in common. The rest of a config is ignored."""

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        num_res_blocks: Sequence[int],
        channel_mult: Sequence[int],
        transformer_depth: Sequence[int],
        transformer_depth_middle: int,
        context_dim: int,
        adm_in_channels: int,
        num_head_channels: int,
        dtype: torch.dtype = torch.float32,
        device=None,
        operations=comfy.ops.disable_weight_init,
        **config: Any,
    ) -> None:
        super().__init__()
        self.model_channels = model_channels
        self.dtype = dtype
        self._operations, self._factory = operations, {"dtype": dtype, "device": device}
        self._width = 4 * model_channels  # of the embedding
        self._head_channels, self._context_dim = num_head_channels, context_dim
        self.time_embed = self._perceptron(model_channels)
        self.label_emb = nn.Sequential(self._perceptron(adm_in_channels))

        depths = iter(transformer_depth)
        channels = model_channels
        first = operations.Conv2d(in_channels, channels, 3, padding=1, **self._factory)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(first)])
        self.skip_channels = [channels]
        for level, (mult, count) in enumerate(zip(channel_mult, num_res_blocks, strict=True)):
            for _ in range(count):
                layers = self._block(channels, mult * model_channels, next(depths))
                channels = mult * model_channels
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                self.skip_channels.append(channels)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(TimestepEmbedSequential(Downsample(channels, operations, **self._factory)))
                self.skip_channels.append(channels)
        middle = [*self._block(channels, channels, transformer_depth_middle), *self._block(channels, channels, 0)]
        self.channels = channels
        self.middle_block = TimestepEmbedSequential(*middle)

    def _perceptron(self, width: int) -> nn.Sequential:
        linear = self._operations.Linear
        return nn.Sequential(
            linear(width, self._width, **self._factory), nn.SiLU(), linear(self._width, self._width, **self._factory)
        )

    def _block(self, channels: int, out_channels: int, depth: int) -> list[nn.Module]:
        layers: list[nn.Module] = [ResBlock(channels, self._width, out_channels, self._operations, **self._factory)]
        if depth:
            heads, context_dim = out_channels // self._head_channels, self._context_dim
            arguments = out_channels, heads, self._head_channels, depth, context_dim, self._operations
            layers.append(SpatialTransformer(*arguments, **self._factory))
        return layers

    def embed(self, timesteps: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return self.time_embed(timestep_embedding(timesteps, self.model_channels).to(x.dtype)) + self.label_emb(y)


class UNetModel(Encoder):
    def __init__(
        self,
        out_channels: int,
        model_channels: int,
        num_res_blocks: Sequence[int],
        channel_mult: Sequence[int],
        transformer_depth_output: Sequence[int],
        **config: Any,
    ) -> None:
        shape = {"model_channels": model_channels, "num_res_blocks": num_res_blocks, "channel_mult": channel_mult}
        super().__init__(**shape, **config)
        depths = list(transformer_depth_output)  # read backwards
        skips, channels = self.skip_channels, self.channels
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed([*enumerate(channel_mult)]):
            for i in range(num_res_blocks[level] + 1):
                layers = self._block(channels + skips.pop(), mult * model_channels, depths.pop())
                channels = mult * model_channels
                if level and i == num_res_blocks[level]:
                    layers.append(Upsample(channels, self._operations, **self._factory))
                self.output_blocks.append(TimestepEmbedSequential(*layers))
        self.out = nn.Sequential(
            self._operations.GroupNorm(32, channels, **self._factory),
            nn.SiLU(),
            self._operations.Conv2d(channels, out_channels, 3, padding=1, **self._factory),
        )

    def forward(self, x, timesteps=None, context=None, y=None, control=None, transformer_options=None, **kwargs):
        transformer_options = {} if transformer_options is None else transformer_options
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timesteps, context, y, control, transformer_options, **kwargs)

    def _forward(self, x, timesteps, context, y, control, transformer_options, **kwargs) -> Tensor:
        transformer_options["original_shape"] = list(x.shape)
        transformer_options["transformer_index"] = 0
        emb = self.embed(timesteps, y, x)
        h, skips = x, []
        for i, block in enumerate(self.input_blocks):
            transformer_options["block"] = ("input", i)
            h = _controlled(block(h, emb, context, transformer_options), control, "input")
            skips.append(h)
        transformer_options["block"] = ("middle", 0)
        h = _controlled(self.middle_block(h, emb, context, transformer_options), control, "middle")
        for i, block in enumerate(self.output_blocks):
            transformer_options["block"] = ("output", i)
            h = torch.cat([h, _controlled(skips.pop(), control, "output")], dim=1)
            h = block(h, emb, context, transformer_options, skips[-1].shape if skips else None)
        return self.out(h.type(x.dtype))


def _controlled(h: Tensor, control: dict[str, list[Tensor | None]] | None, name: str) -> Tensor:
    added = control[name].pop() if control and control.get(name) else None
    return h if added is None else h.add_(added)  # of its own type, whatever the ControlNet computes in
