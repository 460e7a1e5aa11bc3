"""SDXL in the original layout of a single-file checkpoint: the inverse of diffusers' conversion."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig

from examples.tiny_sdxl import TOKEN_WIDTH, write_tiny_sdxl

_RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
)
_UNET: tuple[tuple[str, str | Callable[[Any], str]], ...] = (
    (r"conv_in\.", "input_blocks.0.0."),
    (r"conv_norm_out\.", "out.0."),
    (r"conv_out\.", "out.2."),
    (r"time_embedding\.linear_(\d)\.", lambda m: f"time_embed.{2 * int(m[1]) - 2}."),
    (r"add_embedding\.linear_(\d)\.", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}."),
    (r"down_blocks\.(\d)\.resnets\.(\d)\.", lambda m: f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.0."),
    (r"down_blocks\.(\d)\.attentions\.(\d)\.", lambda m: f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.1."),
    (r"down_blocks\.(\d)\.downsamplers\.0\.conv\.", lambda m: f"input_blocks.{3 * int(m[1]) + 3}.0.op."),
    (r"mid_block\.resnets\.(\d)\.", lambda m: f"middle_block.{2 * int(m[1])}."),
    (r"mid_block\.attentions\.0\.", "middle_block.1."),
    (r"up_blocks\.(\d)\.resnets\.(\d)\.", lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.0."),
    (r"up_blocks\.(\d)\.attentions\.(\d)\.", lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.1."),
    (r"up_blocks\.(\d)\.upsamplers\.0\.conv\.", lambda m: f"output_blocks.{3 * int(m[1]) + 2}.2.conv."),
)
_VAE: tuple[tuple[str, str | Callable[[Any], str]], ...] = (
    (r"down_blocks\.(\d)\.resnets\.(\d)\.", r"down.\1.block.\2."),
    (r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.(\d)\.resnets\.(\d)\.", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}."),
    (r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{3 - int(m[1])}.upsample."),
    (r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"attn_1\.group_norm\.", "attn_1.norm."),
    (r"attn_1\.to_out\.0\.", "attn_1.proj_out."),
    (r"attn_1\.to_([qkv])\.", r"attn_1.\1."),
    (r"conv_norm_out\.", "norm_out."),
    (r"conv_shortcut\.", "nin_shortcut."),
)
_OPEN_CLIP = (
    (r"^embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"layer_norm(\d)\.", r"ln_\1."),
    (r"mlp\.fc1\.", "mlp.c_fc."),
    (r"mlp\.fc2\.", "mlp.c_proj."),
    (r"self_attn\.out_proj\.", "attn.out_proj."),
)


def checkpoint_of(networks: Mapping[str, torch.nn.Module]) -> dict[str, Tensor]:
    """Tensors of a checkpoint with SDXL's ``unet``, ``vae``, ``text_encoder`` and ``text_encoder_2``."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in networks["unet"].state_dict().items():
        renamed = _replaced(name, _UNET)
        if re.match(r"(input|output)_blocks\.\d+\.0\.|middle_block\.[02]\.", renamed):
            for old, new in _RESNET:
                renamed = renamed.replace(f".{old}.", f".{new}.")
        tensors[f"model.diffusion_model.{renamed}"] = tensor
    for name, tensor in networks["vae"].state_dict().items():
        renamed = _replaced(name, _VAE)
        linear = "attn_1" in renamed and tensor.ndim == 2  # there a convolution
        tensors[f"first_stage_model.{renamed}"] = tensor[:, :, None, None] if linear else tensor
    for name, tensor in networks["text_encoder"].state_dict().items():
        tensors[f"conditioner.embedders.0.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    prefix, state = "conditioner.embedders.1.model.", networks["text_encoder_2"].state_dict()
    for name, tensor in state.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            tensors[f"{prefix}text_projection"] = tensor.T
        elif match := re.search(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            parts = [
                next(t for n, t in state.items() if n.endswith(name.replace("q_proj", f"{p}_proj"))) for p in "qkv"
            ]
            tensors[f"{prefix}transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            tensors[prefix + _replaced(name, _OPEN_CLIP)] = tensor
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _replaced(name: str, rules: Any) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def write_tiny_checkpoint(folder: Path) -> tuple[Path, Path]:
    """Write a tiny SDXL twice; return its folder in diffusers' layout, and the single file.

    As SDXL's do, its text encoders differ in width, by which diffusers tells them apart.
    """
    base = write_tiny_sdxl(folder / "base")
    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    widths = {"text_encoder": 8, "text_encoder_2": TOKEN_WIDTH - 8}
    for name, width in widths.items():
        encoder = getattr(pipe, name)
        sizes = {"hidden_size": width, "intermediate_size": width, "projection_dim": width}
        pipe.register_modules(**{name: type(encoder)(CLIPTextConfig(**encoder.config.to_dict() | sizes)).eval()})
    pooled = {"projection_class_embeddings_input_dim": widths["text_encoder_2"] + 6 * 8}  # and six numbers of 8 each
    pipe.register_modules(unet=UNet2DConditionModel.from_config(pipe.unet.config, **pooled))
    pipe.save_pretrained(base)
    save_file(checkpoint_of(pipe.components), folder / "tiny.safetensors")
    return base, folder / "tiny.safetensors"
