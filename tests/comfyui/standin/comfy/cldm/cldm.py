"""The network of a ControlNet: the UNet's way down, plus a hint, read out through convolutions (Zhang et al. 2023)."""

from __future__ import annotations

from typing import Any

from comfy.ldm.modules.diffusionmodules.openaimodel import Encoder
from torch import Tensor, nn

_HINT_LAYERS = ((16, 1), (16, 1), (32, 2), (32, 1), (96, 2), (96, 1), (256, 2))  # channels and stride: 8 times smaller


class ControlNet(Encoder):
    def __init__(self, model_channels: int, hint_channels: int, **config: Any) -> None:
        super().__init__(model_channels=model_channels, **config)
        middle_block = self._modules.pop("middle_block")  # the host makes it after what follows
        self.zero_convs = nn.ModuleList(nn.Sequential(self._conv(width, width, 1)) for width in self.skip_channels)
        layers, channels = [], hint_channels
        for width, stride in _HINT_LAYERS:
            layers += [self._conv(channels, width, 3, stride=stride, padding=1), nn.SiLU()]
            channels = width
        self.input_hint_block = nn.Sequential(*layers, self._conv(channels, model_channels, 3, padding=1))
        self.middle_block = middle_block
        self.middle_block_out = nn.Sequential(self._conv(self.channels, self.channels, 1))

    def _conv(self, *args: int, **kwargs: int) -> nn.Module:
        return self._operations.Conv2d(*args, **kwargs, **self._factory)

    def forward(
        self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor, y: Tensor
    ) -> dict[str, list[Tensor]]:
        emb = self.embed(timesteps, y, x)
        h, read_out = x, []
        for i, (block, zero_conv) in enumerate(zip(self.input_blocks, self.zero_convs, strict=True)):
            h = block(h, emb, context, {})
            if i == 0:
                h = h + self.input_hint_block(hint)
            read_out.append(zero_conv(h))
        h = self.middle_block(h, emb, context, {})
        return {"middle": [self.middle_block_out(h)], "output": read_out}
