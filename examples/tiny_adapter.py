"""A random InstantID adapter of any size, in the layout of the published ``ip-adapter.bin``.

The published file is 1.69 GB: a resampler (dim 1280, depth 4, 20 heads, 16 queries, 512 -> 2048) and 70 pairs of key
and value weights. This one has a resampler of dim 64 and depth 2, so tests and demos make it in milliseconds. The
layout is spelt out here and not taken from the package: a test which reads it back checks the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

EMBEDDING_DIM = 512
DIM = 64
DEPTH = 2
NUM_QUERIES = 16
FEED_FORWARD_DIM = 4 * DIM


def write_tiny_adapter(path: str | Path, *, channels: Sequence[int], token_width: int = 64, seed: int = 0) -> Path:
    """Write random weights, always the same ones for the same arguments.

    Args:
        path: ``.bin`` for a torch pickle of nested dictionaries, ``.safetensors`` for dotted keys.
        channels: of each cross-attention layer of the UNet, in the order of the checkpoint (70 of them for SDXL).
        token_width: width of the identity tokens; the UNet's ``cross_attention_dim``.
    """
    path = Path(path)
    if path.suffix not in (".bin", ".safetensors"):
        raise ValueError(f"{path}: expected a name that ends in .bin or .safetensors")
    generator = torch.Generator().manual_seed(seed)

    def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        return {name: _random(name, shape, generator) for name, shape in shapes.items()}

    image_proj = weights(_image_proj_shapes(token_width))
    ip_adapter = weights(_ip_adapter_shapes(channels, token_width))
    if path.suffix == ".bin":
        torch.save({"image_proj": image_proj, "ip_adapter": ip_adapter}, path)
    else:
        dotted = {f"image_proj.{name}": tensor for name, tensor in image_proj.items()}
        dotted |= {f"ip_adapter.{name}": tensor for name, tensor in ip_adapter.items()}
        save_file(dotted, path)
    return path


def _image_proj_shapes(token_width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "latents": (1, NUM_QUERIES, DIM),
        "proj_in.weight": (DIM, EMBEDDING_DIM),
        "proj_in.bias": (DIM,),
        "proj_out.weight": (token_width, DIM),
        "proj_out.bias": (token_width,),
        "norm_out.weight": (token_width,),
        "norm_out.bias": (token_width,),
    }
    for i in range(DEPTH):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            shapes |= {f"layers.{i}.{norm}.weight": (DIM,), f"layers.{i}.{norm}.bias": (DIM,)}
        shapes[f"layers.{i}.0.to_q.weight"] = (DIM, DIM)
        shapes[f"layers.{i}.0.to_kv.weight"] = (2 * DIM, DIM)
        shapes[f"layers.{i}.0.to_out.weight"] = (DIM, DIM)
        shapes[f"layers.{i}.1.1.weight"] = (FEED_FORWARD_DIM, DIM)
        shapes[f"layers.{i}.1.3.weight"] = (DIM, FEED_FORWARD_DIM)
    return shapes


def _ip_adapter_shapes(channels: Sequence[int], token_width: int) -> dict[str, tuple[int, ...]]:
    # The numbers are odd because the training code counted self- and cross-attention layers together.
    return {
        f"{2 * i + 1}.to_{part}_ip.weight": (width, token_width) for i, width in enumerate(channels) for part in "kv"
    }


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Scaled so that every layer passes on about the variance it gets; norms and biases are random as well."""
    values = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return values / shape[-1] ** 0.5
    return 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
