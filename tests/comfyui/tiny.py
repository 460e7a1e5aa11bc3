"""A tiny SDXL in ComfyUI's own classes: the 70 cross-attention layers of the real one, 32 channels, random weights.

What it draws is noise, but every part of it acts: text, pooled text, ControlNet and identity all change the latent.
Import it only after ``conftest.py`` has put a host on ``sys.path``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import torch

from examples.tiny_adapter import write_tiny_adapter

CHANNELS = 32  # the group norms have 32 groups
LAYER_CHANNELS = [64] * 4 + [128] * 20 + [128] * 30 + [64] * 6 + [128] * 10
"""Channels of the 70 cross-attention layers in the adapter's order: input 4, 5, 7, 8, output 0 to 5, middle."""
TOKEN_WIDTH = 64
"""Width of the text and identity tokens; SDXL's is 2048."""

_CPU = torch.device("cpu")
_POOLED_WIDTH = 64
_UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": CHANNELS,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "context_dim": TOKEN_WIDTH,
    "num_classes": "sequential",
    "adm_in_channels": _POOLED_WIDTH + 6 * 256,  # six sizes and offsets, embedded in 256 numbers each
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "use_temporal_attention": False,
    "use_checkpoint": False,
    "legacy": False,
}
_HEAD_CHANNELS = 16
# Of what is added to something: with branches of full size a random UNet makes several last bits of one.
_BRANCH_ENDS = ("to_out.0.weight", "proj_out.weight", "net.2.weight", "out_layers.3.weight")


def tiny_model(
    dtype: torch.dtype = torch.float32, *, compute_dtype: torch.dtype | None = None, seed: int = 0
) -> comfy.model_patcher.ModelPatcher:
    """SDXL without text encoders and VAE: always the same weights for the same arguments.

    Args:
        dtype: of the weights.
        compute_dtype: of the activations, where the host should cast the weights to it at each use.
    """
    config = comfy.supported_models.SDXL(_UNET)
    config.unet_config["num_head_channels"] = _HEAD_CHANNELS  # the config forces 64, which a layer of 32 has not got
    config.set_inference_dtype(dtype, compute_dtype)
    model = config.get_model({}, device=_CPU)
    _randomize(model.diffusion_model, seed)
    return comfy.model_patcher.ModelPatcher(model, load_device=_CPU, offload_device=_CPU)


def tiny_controlnet(dtype: torch.dtype = torch.float32, *, seed: int = 1) -> comfy.controlnet.ControlNet:
    """A ControlNet to match. The convolutions it is read out through, zero before training, are random too."""
    unet = {name: value for name, value in _UNET.items() if name not in ("out_channels", "transformer_depth_output")}
    network = comfy.cldm.cldm.ControlNet(
        **unet, num_head_channels=_HEAD_CHANNELS, hint_channels=3, dtype=dtype, device=_CPU
    )
    _randomize(network, seed)
    return comfy.controlnet.ControlNet(network, load_device=_CPU)


def conditioning(seed: int, tokens: int = 77) -> list[list[Any]]:
    """Random output of a text encode node, ``[[(1, tokens, TOKEN_WIDTH), {"pooled_output": (1, width)}]]``."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, tokens, TOKEN_WIDTH, generator=generator)
    return [[text, {"pooled_output": torch.randn(1, _POOLED_WIDTH, generator=generator)}]]


def noise(seed: int, batch: int = 1, height: int = 128, width: int = 128) -> torch.Tensor:
    """``(batch, 4, height / 8, width / 8)`` for a picture of so many pixels."""
    return torch.randn(batch, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def sample(
    model: comfy.model_patcher.ModelPatcher,
    positive: list[list[Any]],
    negative: list[list[Any]],
    *,
    steps: int = 3,
    cfg: float = 4.5,
    seed: int = 0,
    batch: int = 1,
    height: int = 128,
    width: int = 128,
    sampler: str = "euler",
    scheduler: str = "normal",
) -> torch.Tensor:
    """Sample an empty latent as the KSampler node does: ``(batch, 4, height / 8, width / 8)``."""
    start = noise(seed, batch, height, width)
    return comfy.sample.sample(
        model,
        start,
        steps,
        cfg,
        sampler,
        scheduler,
        positive,
        negative,
        torch.zeros_like(start),
        disable_pbar=True,
        seed=seed,
    )


@torch.inference_mode()
def call(node: type, **inputs: Any) -> tuple[Any, ...]:
    """Execute a node as the host does: a new instance, its ``FUNCTION``, in inference mode."""
    return getattr(node(), node.FUNCTION)(**inputs)


def distance(picture: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, in units of the largest latent of ``other``: a random UNet draws hundreds."""
    return float((picture - other).abs().max() / other.abs().max())


def adapter_file(folder: Path, name: str = "tiny-adapter.bin", seed: int = 0) -> Path:
    """A small random InstantID adapter for :func:`tiny_model`."""
    return write_tiny_adapter(folder / name, channels=LAYER_CHANNELS, token_width=TOKEN_WIDTH, seed=seed)


def _randomize(network: torch.nn.Module, seed: int) -> None:
    """Weights that pass on about the variance they get. The host leaves them uninitialised for a checkpoint to fill."""
    shapes = tuple((name, parameter.shape) for name, parameter in network.named_parameters())
    with torch.no_grad():
        for parameter, values in zip(network.parameters(), _random_weights(shapes, seed), strict=True):
            parameter.copy_(values)


@cache
def _random_weights(shapes: tuple[tuple[str, torch.Size], ...], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights: list[torch.Tensor] = []
    for name, shape in shapes:
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            values /= shape[1:].numel() ** 0.5
            values *= 0.7 if name.endswith(_BRANCH_ENDS) else 1.0
        else:
            values = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
        weights.append(values)
    return weights
