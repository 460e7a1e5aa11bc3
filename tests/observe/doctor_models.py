"""Small model files of the right kinds, and what the doctor says of them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_faces import IRESNET_100, write_iresnet, write_scrfd
from examples.tiny_sdxl import _BLOCKS, DEPTH, write_tiny_sdxl
from fast_instantid.observe.doctor import Finding, Places
from fast_instantid.observe.doctor.files import model_files

IRESNET_50 = (3, 4, 14, 3)
SMALL = (4, 4, 4, 4)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 260665334\n"
PAGE = b"<!DOCTYPE html><html><title>Sign in</title></html>"


def write_models(models: Path) -> Path:
    """A models folder of the command line in which all is well."""
    (models / "antelopev2").mkdir(parents=True)
    write_scrfd(models / "antelopev2" / "scrfd_10g_bnkps.onnx")
    write_iresnet(models / "antelopev2" / "glintr100.onnx", SMALL, IRESNET_100["blocks"])
    (models / "instantid").mkdir()
    write_tiny_adapter(models / "instantid" / "ip-adapter.bin", channels=[4] * 70, token_width=2048)
    write_controlnet(models / "instantid" / "ControlNetModel", 2048)
    write_tiny_sdxl(models / "base")
    set_width(models / "base", 2048)
    return models


def set_width(base: Path, width: int) -> None:
    """What the UNet's configuration says of its tokens; the weights stay tiny."""
    path = base / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cross_attention_dim": width}))


def write_controlnet(folder: Path, width: int) -> None:
    ControlNetModel(
        conditioning_embedding_out_channels=(8, 8, 16, 16),
        transformer_layers_per_block=DEPTH,
        **{**_BLOCKS, "cross_attention_dim": width},
    ).save_pretrained(folder)


def write_checkpoint(path: Path, width: int) -> Path:
    """A tensor of each part of a single-file checkpoint; the UNet's says for which tokens it is."""
    names = ("model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", "first_stage_model.x")
    names += ("conditioner.embedders.0.transformer.x", "conditioner.embedders.1.model.x")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.zeros(8, width) for name in names}, path)
    return path


def examined(places: Places) -> list[Finding]:
    return list(model_files(places))


def troubles(places: Places) -> list[Finding]:
    return [finding for finding in examined(places) if finding.level != "ok"]


def trouble(places: Places) -> Finding:
    """The only one that is found, with all that people need to know of it."""
    (found,) = troubles(places)
    assert found.why
    assert found.do
    return found


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)
