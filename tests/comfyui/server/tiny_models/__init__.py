"""A custom node pack for tests only: it gives ComfyUI's own loader nodes tiny random models to load.

The files have the names that the example workflows ask for. InstantID's, IPAdapter's and the face models are real files
in the real formats; the others are empty, because ComfyUI recognises checkpoints by widths that a tiny one has not got,
so the functions that read them are replaced. All networks are the real classes.
"""

from __future__ import annotations

import json
from pathlib import Path

import comfy.clip_vision
import comfy.controlnet
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models_base
import comfy.taesd.taesd
import folder_paths
import torch
from safetensors.torch import save_file

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_faces import write_tiny_pack

from . import tiny

NODE_CLASS_MAPPINGS: dict[str, type] = {}

MODELS = Path(folder_paths.models_dir)
TOKEN_WIDTH = 2048  # not tiny, because IPAdapter_plus takes the models for SDXL by it
EMPTY = (
    "checkpoints/sd_xl_base_1.0.safetensors",
    "controlnet/instantid/diffusion_pytorch_model.safetensors",
    "controlnet/controlnet-depth-sdxl-1.0.safetensors",
    "clip_vision/CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
)

tiny._UNET["context_dim"] = TOKEN_WIDTH


def write_files() -> None:
    for name in (*EMPTY, "instantid/ip-adapter.bin", "ipadapter/ip-adapter_sdxl_vit-h.safetensors"):
        (MODELS / name).parent.mkdir(parents=True, exist_ok=True)
        (MODELS / name).touch()
    adapter = MODELS / "instantid/ip-adapter.bin"
    write_tiny_adapter(adapter, channels=tiny.LAYER_CHANNELS, token_width=TOKEN_WIDTH)
    keys_and_values = torch.load(adapter, weights_only=True)["ip_adapter"]
    ipadapter = {f"ip_adapter.{name}": tensor.flip(0).contiguous() for name, tensor in keys_and_values.items()}
    ipadapter["image_proj.proj.weight"] = torch.randn(4 * TOKEN_WIDTH, tiny._POOLED_WIDTH) / 8
    ipadapter["image_proj.proj.bias"] = torch.zeros(4 * TOKEN_WIDTH)
    ipadapter["image_proj.norm.weight"] = torch.ones(TOKEN_WIDTH)
    ipadapter["image_proj.norm.bias"] = torch.zeros(TOKEN_WIDTH)
    save_file(ipadapter, MODELS / "ipadapter/ip-adapter_sdxl_vit-h.safetensors")
    write_tiny_pack(MODELS / "insightface/models/antelopev2")


def load_checkpoint(*_: object, **__: object) -> tuple[object, ...]:
    return tiny.tiny_model(), tiny_clip(), tiny_vae(), None


def tiny_clip() -> comfy.sd.CLIP:
    """SDXL's two text encoders with three layers each; the second one is as wide as the pooled text."""
    layers = {"num_hidden_layers": 3, "num_attention_heads": 1, "intermediate_size": 64}
    options = {
        "clip_l_model_config": {**layers, "hidden_size": TOKEN_WIDTH - tiny._POOLED_WIDTH},
        "clip_g_model_config": {**layers, "hidden_size": tiny._POOLED_WIDTH},
        "dtype": torch.float32,
    }
    target = comfy.supported_models_base.ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    clip = comfy.sd.CLIP(target, model_options=options)
    tiny._randomize(clip.cond_stage_model, seed=2)
    return clip


def tiny_vae() -> comfy.sd.VAE:
    network = comfy.taesd.taesd.TAESD()
    tiny._randomize(network, seed=3)
    return comfy.sd.VAE(sd=network.state_dict())


def load_controlnet(path: str, *_: object, **__: object) -> comfy.controlnet.ControlNet:
    return tiny.tiny_controlnet(seed=1 if "instantid" in path else 4)


def load_clip_vision(*_: object, **__: object) -> comfy.clip_vision.ClipVisionModel:
    config = MODELS / "clip_vision" / "tiny.json"
    config.write_text(json.dumps({
        "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 1, "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "gelu",
        "projection_dim": tiny._POOLED_WIDTH,
    }))  # fmt: skip
    model = comfy.clip_vision.ClipVisionModel(str(config))
    tiny._randomize(model.model, seed=5)
    return model


def compile_without_compiler(*args: object, **options: object) -> object:
    """Trace as ever, but generate no code, which takes minutes and is not ours to test."""
    return _compile(*args, **{**options, "backend": "eager"})


write_files()
comfy.sd.load_checkpoint_guess_config = load_checkpoint
comfy.controlnet.load_controlnet = load_controlnet
comfy.clip_vision.load = load_clip_vision
_compile, torch.compile = torch.compile, compile_without_compiler
