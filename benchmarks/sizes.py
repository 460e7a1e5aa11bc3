"""Sizes of the networks that are measured. All have SDXL's 70 cross-attention layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_DEPTHS = {("input", 4): 2, ("input", 5): 2, ("input", 7): 10, ("input", 8): 10}
_DEPTHS |= {("output", block): depth for block, depth in enumerate((10, 10, 10, 2, 2, 2))} | {("middle", 0): 10}
LAYERS = {(*block, i): 640 if depth == 2 else 1280 for block, depth in _DEPTHS.items() for i in range(depth)}
"""SDXL's cross-attention layers as its UNet calls them, in the adapter's order, and the channels of each."""
TEXT_TOKENS, IDENTITY_TOKENS, EMBEDDING_DIM, HEAD_CHANNELS = 77, 16, 512, 64
WEIGHT = 0.8
"""Default strength of the face and of the IdentityNet in Apply InstantID."""


@dataclass(frozen=True)
class Size:
    """How large networks and pictures are."""

    channels: int
    """Channels of the UNet's first level; SDXL has 320."""
    head_channels: int
    token_width: int
    """Width of text and identity tokens."""
    pooled_width: int
    side: int
    """Side of the picture in pixels; the latent is an eighth of it."""
    resampler_dim: int

    @property
    def layer_channels(self) -> list[int]:
        """Channels of the 70 layers, in the adapter's order."""
        return [channels * self.channels // 320 for channels in LAYERS.values()]

    @property
    def unet(self) -> dict[str, Any]:
        """Arguments of ComfyUI's UNet and ControlNet."""
        sizes = {"image_size": 32, "in_channels": 4, "model_channels": self.channels, "context_dim": self.token_width}
        sizes |= {"num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "adm_in_channels": self.pooled_width + 1536}
        depths = {"transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10}
        kinds = {"num_classes": "sequential", "use_spatial_transformer": True, "use_linear_in_transformer": True}
        return sizes | depths | kinds | dict.fromkeys(("use_temporal_attention", "use_checkpoint", "legacy"), False)


SIZES = {
    "tiny": Size(channels=32, head_channels=16, token_width=64, pooled_width=64, side=128, resampler_dim=64),
    "small": Size(channels=64, head_channels=64, token_width=2048, pooled_width=1280, side=128, resampler_dim=1280),
    "full": Size(channels=320, head_channels=64, token_width=2048, pooled_width=1280, side=1024, resampler_dim=1280),
}
