"""SDXL models of any width as ComfyUI models, from diffusers' folder layout.

ComfyUI recognises checkpoints by the widths of published models, and so none as small as the miniature. This module
builds ComfyUI's classes from diffusers' ``config.json`` and renames the weights. ComfyUI then manages them like any
other model. Import this module late, because other versions of ComfyUI may lack one of these classes.
"""

# The stand-in host, which pyright reads, lacks some of these modules.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportUntypedBaseClass=false

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import comfy.cldm.cldm
import comfy.clip_model
import comfy.controlnet
import comfy.model_management as host
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import TimestepEmbedSequential
from torch import Tensor, nn

Config = dict[str, Any]

_SPECIAL_TOKENS = {"start": "bos", "end": "eos", "pad": "pad"}  # ComfyUI's names -> transformers'
# The first encoder has no projection: SDXL reads the second one's pooled text.
_NEVER_READ = {"clip_l.transformer.text_projection.weight", "clip_l.logit_scale", "clip_g.logit_scale"}


def load_model(base: Path) -> comfy.model_patcher.ModelPatcher:
    """Load the UNet in ``base/unet`` as MODEL, with the prediction type of ``base/scheduler``."""
    config, weights = _read(base / "unet")
    shape = _shape(config)
    dtype, cast_to = _dtypes(weights)
    family = comfy.supported_models.SDXL(shape)
    family.unet_config |= shape  # SDXL overwrites the width of the attention heads
    family.set_inference_dtype(dtype, cast_to)
    prediction = json.loads((base / "scheduler" / "scheduler_config.json").read_text())["prediction_type"]
    # ComfyUI looks for this key in a state dict, whatever its value.
    mark = {"v_pred": torch.empty(0)} if prediction == "v_prediction" else {}
    model = family.get_model(mark, device=host.unet_offload_device())
    _set_norm_groups(model.diffusion_model, config)
    model.diffusion_model.load_state_dict(_renamed(weights, comfy.utils.unet_to_diffusers(shape)))
    return comfy.model_patcher.ModelPatcher(
        model, load_device=host.get_torch_device(), offload_device=host.unet_offload_device()
    )


def load_control_net(folder: Path) -> comfy.controlnet.ControlNet:
    """Load the ``ControlNetModel`` in a folder as CONTROL_NET."""
    config, weights = _read(folder)
    shape = _shape(config)
    dtype, cast_to = _dtypes(weights)
    device, operations = host.unet_offload_device(), comfy.ops.pick_operations(dtype, cast_to)
    del shape["out_channels"]
    network = comfy.cldm.cldm.ControlNet(
        **shape, hint_channels=config["conditioning_channels"], dtype=dtype, device=device, operations=operations
    )
    # Channels in and out, and stride, of the convolutions that bring the keypoint picture to the latent's size.
    widths = config["conditioning_embedding_out_channels"]
    sizes = [(config["conditioning_channels"], widths[0], 1)]
    for narrow, wide in pairwise(widths):
        sizes += [(narrow, narrow, 1), (narrow, wide, 2)]
    sizes.append((widths[-1], config["block_out_channels"][0], 1))
    convolutions = [
        operations.Conv2d(narrow, wide, 3, padding=1, stride=stride, dtype=dtype, device=device)
        for narrow, wide, stride in sizes
    ]
    layers = [layer for convolution in convolutions for layer in (convolution, nn.SiLU())]
    network.input_hint_block = TimestepEmbedSequential(*layers[:-1])
    _set_norm_groups(network, config)

    modules = {"controlnet_mid_block": "middle_block_out.0"}
    modules |= {f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(len(network.zero_convs))}
    hint = ["conv_in", *(f"blocks.{i}" for i in range(len(convolutions) - 2)), "conv_out"]
    modules |= {f"controlnet_cond_embedding.{name}": f"input_hint_block.{2 * i}" for i, name in enumerate(hint)}
    names = {f"{old}.{part}": f"{new}.{part}" for old, new in modules.items() for part in ("weight", "bias")}
    network.load_state_dict(_renamed(weights, comfy.utils.unet_to_diffusers(shape) | names))
    return comfy.controlnet.ControlNet(network, load_device=host.get_torch_device(), manual_cast_dtype=cast_to)


def load_vae(folder: Path) -> comfy.sd.VAE:
    """Load the ``AutoencoderKL`` in a folder as VAE."""
    config, weights = _read(folder)
    widths = config["block_out_channels"]
    shape = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": config["sample_size"],
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    # VAE renames the weights itself.
    vae = comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": shape, "embed_dim": config["latent_channels"]}})
    _set_norm_groups(vae.first_stage_model, config)
    return vae


def load_clip(base: Path) -> comfy.sd.CLIP:
    """Load both text encoders in ``base``, with their tokenizers, as CLIP."""
    configs: dict[str, Config] = {}
    weights: dict[str, Tensor] = {}
    for name, folder in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
        configs[name], tensors = _read(base / folder)
        for key, tensor in tensors.items():
            # Since version 5, transformers omits "text_model." in the first encoder's names.
            key = key if key.startswith("text_projection.") else f"text_model.{key.removeprefix('text_model.')}"
            weights[f"{name}.transformer.{key}"] = tensor
    target = comfy.supported_models_base.ClipTarget(
        partial(_Tokenizers, base, configs), partial(_TextEncoders, configs)
    )
    clip = comfy.sd.CLIP(target, folder_paths.get_folder_paths("embeddings"), parameters=_count(weights))
    missing, unexpected = clip.load_sd(weights, full_model=True)
    if unexpected or set(missing) - _NEVER_READ:
        raise RuntimeError(f"text encoders of another kind in {base}: {missing} missing, {unexpected} unexpected")
    return clip


class _Tokenizers(comfy.sdxl_clip.SDXLTokenizer):
    """Both tokenizers of a folder."""

    def __init__(self, base: Path, configs: dict[str, Config], embedding_directory: Any = None, **_: Any) -> None:
        for name, folder in (("clip_l", "tokenizer"), ("clip_g", "tokenizer_2")):
            tokenizer = comfy.sd1_clip.SDTokenizer(
                str(base / folder),
                max_length=configs[name]["max_position_embeddings"],
                embedding_directory=embedding_directory,
                embedding_size=configs[name]["hidden_size"],
                embedding_key=name,
            )
            setattr(self, name, tokenizer)


class _TextEncoders(comfy.sdxl_clip.SDXLClipModel):
    """Both text encoders, in the sizes of their configurations."""

    def __init__(self, configs: dict[str, Config], device: Any, dtype: Any, model_options: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        for encoder, config in configs.items():
            model = comfy.sd1_clip.SDClipModel(
                device=device,
                dtype=dtype,
                layer="hidden",
                layer_idx=-2,
                textmodel_json_config=config,
                model_class=_TextEncoder,
                special_tokens={use: config[f"{name}_token_id"] for use, name in _SPECIAL_TOKENS.items()},
                layer_norm_hidden_state=False,
                model_options={**model_options, "model_name": encoder},
            )
            setattr(self, encoder, model)
        self.dtypes = {dtype}


class _TextEncoder(comfy.clip_model.CLIPTextModel):
    """A text encoder with the vocabulary size of its configuration; ComfyUI's class has a fixed one."""

    def __init__(self, config: Config, dtype: Any, device: Any, operations: Any) -> None:
        super().__init__(config, dtype, device, operations)
        self.set_input_embeddings(
            operations.Embedding(config["vocab_size"], config["hidden_size"], dtype=dtype, device=device)
        )


class _Multiplier(float):
    """A channel multiplier below 1, such as 0.5, whose products are integers: ComfyUI uses them as channel counts."""

    def __mul__(self, channels: int) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        return round(float(self) * channels)

    __rmul__ = __mul__  # pyright: ignore[reportAssignmentType]


def _shape(config: Config) -> Config:
    """Return the arguments of ComfyUI's UNet for a configuration of diffusers."""
    widths, blocks = config["block_out_channels"], config["layers_per_block"]
    (head_width,) = {width // heads for width, heads in zip(widths, config["attention_head_dim"], strict=True)}
    levels = zip(config["down_block_types"], config["transformer_layers_per_block"], strict=True)
    depths = [depth if kind.startswith("CrossAttn") else 0 for kind, depth in levels]
    return {
        "image_size": 32,  # unused
        "in_channels": config["in_channels"],
        "out_channels": config.get("out_channels", config["in_channels"]),
        "model_channels": widths[0],
        "channel_mult": [_Multiplier(width / widths[0]) for width in widths],
        "num_res_blocks": [blocks] * len(widths),
        "num_heads": -1,
        "num_head_channels": head_width,
        "transformer_depth": [depth for depth in depths for _ in range(blocks)],
        "transformer_depth_middle": depths[-1],
        "transformer_depth_output": [depth for depth in depths for _ in range(blocks + 1)],
        "context_dim": config["cross_attention_dim"],
        "num_classes": "sequential",
        "adm_in_channels": config["projection_class_embeddings_input_dim"],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "use_temporal_attention": False,
        "legacy": False,
    }


def _set_norm_groups(network: nn.Module, config: Config) -> None:
    """Set the number of groups of all group norms, which ComfyUI fixes at 32."""
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = config["norm_num_groups"]


def _dtypes(weights: dict[str, Tensor]) -> tuple[torch.dtype, torch.dtype | None]:
    """Return ComfyUI's dtype for a UNet's weights, and the dtype to cast them to at each use; None for no cast."""
    stored = next(iter(weights.values())).dtype
    dtype = host.unet_dtype(model_params=_count(weights), weight_dtype=stored)
    return dtype, host.unet_manual_cast(dtype, host.get_torch_device())


def _count(weights: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())


def _renamed(weights: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    return {names[name]: tensor for name, tensor in weights.items()}


def _read(folder: Path) -> tuple[Config, dict[str, Tensor]]:
    (file,) = folder.glob("*.safetensors")
    return json.loads((folder / "config.json").read_text()), comfy.utils.load_torch_file(str(file))
