"""The base model, judged as diffusers and ComfyUI would load it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from fast_instantid.observe.doctor import Places
from tests.observe.doctor_models import LFS, examined, replace, set_width, trouble, troubles, write_checkpoint


def test_a_base_model_without_a_part(models: Path):
    shutil.rmtree(models / "base" / "vae")
    (models / "base" / "unet" / "config.json").unlink()
    path = models / "base" / "text_encoder" / "model.safetensors"
    replace(path, path.read_bytes()[:-100])
    found = troubles(Places.of_shell(models))
    assert {finding.level for finding in found} == {"broken"}
    assert [word for word in ("vae", "unet", "incomplete") if any(word in f.found for f in found)] == [
        "vae",
        "unet",
        "incomplete",
    ]
    assert all("download base" in finding.do for finding in found)


@pytest.mark.parametrize(
    "change",
    [
        "nothing",
        "others beside",
        "damaged .bin beside",
        "damaged",
        "shards",
        "shards and a shard is missing",
        "shards and a shard is damaged",
        "shards without their index",
        "fp16 alone",
        "damaged fp16 beside",
        "no weights",
        "no configuration",
    ],
)
def test_weights_are_judged_as_diffusers_does(models: Path, change: str):
    """The doctor finds them fit if and only if they are loaded, on a machine that computes in fp32."""
    unet, vae = models / "base" / "unet", models / "base" / "vae"
    weights = vae / "diffusion_pytorch_model.safetensors"
    if change.startswith("shards"):
        net = AutoencoderKL.from_pretrained(vae)
        weights.unlink()
        net.save_pretrained(vae, max_shard_size="40KB")
        first = sorted(vae.glob("*-of-*"))[0]
        if change.endswith("missing"):
            first.unlink()
        elif change.endswith("damaged"):
            first.write_bytes(first.read_bytes()[:-50])
        elif change.endswith("index"):
            weights.with_name(f"{weights.name}.index.json").unlink()
    elif change == "others beside":
        (vae / "openvino_model.bin").write_bytes(b"what OpenVINO reads")
    elif change == "damaged .bin beside":
        weights.with_suffix(".bin").write_bytes(LFS)
    elif change == "damaged fp16 beside":
        weights.with_suffix(".fp16.safetensors").write_bytes(LFS)
    elif change == "fp16 alone":
        for part in (unet, vae):
            (part / weights.name).rename(part / weights.with_suffix(".fp16.safetensors").name)
    elif change == "damaged":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif change == "no weights":
        weights.unlink()
    elif change == "no configuration":
        (vae / "config.json").write_text("{")
    variant = "fp16" if change == "fp16 alone" else None
    try:
        AutoencoderKL.from_pretrained(vae, variant=variant, local_files_only=True)
        loads = True
    except Exception:  # diffusers fails in all kinds of ways
        loads = False
    levels = {finding.level for finding in troubles(Places.of_shell(models))}
    assert levels == (set() if loads else {"broken"})
    assert loads == (change in AS_IT_SHOULD_BE)


AS_IT_SHOULD_BE = {
    "nothing",
    "others beside",
    "damaged .bin beside",
    "shards",
    "fp16 alone",
    "damaged fp16 beside",
}


@pytest.mark.parametrize(("width", "name"), [(768, "SD 1.x"), (1024, "SD 2.x"), (1280, "refiner"), (64, "width 64")])
def test_a_base_model_for_other_tokens(models: Path, width: int, name: str):
    """Whatever its model_index.json says."""
    set_width(models / "base", width)
    found = trouble(Places.of_shell(models))
    assert found.level == "broken"
    assert name in found.found


@pytest.mark.parametrize(("value", "word"), [([None, None], "names no text_encoder"), ([], "damaged")])
def test_a_base_model_that_lacks_a_network(models: Path, value: list[None], word: str):
    index = models / "base" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "text_encoder": value}))
    found = trouble(Places.of_shell(models))
    assert found.level == "broken"
    assert word in found.found


@pytest.mark.parametrize("part", ["base", "instantid", "antelopev2"])
def test_what_to_do_leads_to_where_it_was_looked_for(models: Path, tmp_path: Path, part: str):
    damaged = {
        "base": "vae/config.json",
        "instantid": "ControlNetModel/diffusion_pytorch_model.safetensors",
        "antelopev2": "glintr100.onnx",
    }
    (models / part / damaged[part]).unlink()
    assert trouble(Places.of_shell(models)).do.endswith(f"fast-instantid download {part} --to {models}")
    named = (models / part).rename(tmp_path / "elsewhere")
    field = {"base": "bases", "instantid": "identitynets", "antelopev2": "faces"}[part]
    places = dataclasses.replace(Places.of_shell(models), **{field: (named,)})
    if part == "instantid":
        places = dataclasses.replace(places, adapters=(named,))
    assert f"download {part} --to {models}, and name {models / part} in place of {named}" in trouble(places).do


@pytest.mark.parametrize(
    ("content", "word"), [({"_class_name": "StableDiffusionPipeline"}, "not SDXL"), (None, "damaged")]
)
def test_another_base_model(models: Path, content: dict[str, str] | None, word: str):
    (models / "base" / "model_index.json").write_text("{" if content is None else json.dumps(content))
    (found,) = troubles(Places.of_shell(models))
    assert found.level == "broken"
    assert word in found.found


def test_a_single_checkpoint(models: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAST_INSTANTID_MODELS", str(models))
    shutil.rmtree(models / "base")
    write_checkpoint(models / "base", 768)  # a file of that name
    assert "SD 1.x" in trouble(Places.of_shell(models)).found
    path = write_checkpoint(models / "base", 2048)
    assert "fast-instantid download tokenizer" in trouble(Places.of_shell(models)).found
    (models / "tokenizer" / "tokenizer").mkdir(parents=True)
    for name in ("vocab.json", "merges.txt"):
        (models / "tokenizer" / "tokenizer" / name).touch()
    assert troubles(Places.of_shell(models)) == []
    save_file({n: t for n, t in load_file(path).items() if not n.startswith("first_stage")}, path)
    assert "lacks its VAE" in trouble(Places.of_shell(models)).found


def test_no_sdxl_among_comfyuis_checkpoints(comfyui: Path):
    checkpoints = comfyui / "models" / "checkpoints"
    (checkpoints / "sd_xl_base_1.0.safetensors").unlink()
    write_checkpoint(checkpoints / "v1-5.safetensors", 768)
    (checkpoints / "half.safetensors").write_bytes(LFS)
    found = trouble(Places.of_comfyui(comfyui))
    assert found.level == "warning"
    assert "SD 1.x" in found.found
    assert "Git LFS" in found.found


def test_a_checkpoint_in_the_older_format(comfyui: Path):
    path = comfyui / "models" / "checkpoints" / "sd_xl_base_1.0.safetensors"
    torch.save({"state_dict": load_file(path)}, path.with_suffix(".ckpt"))
    path.unlink()
    assert [finding.level for finding in examined(Places.of_comfyui(comfyui))] == ["ok"] * 4


def test_no_checkpoint_at_all_may_be_a_unet_elsewhere(comfyui: Path):
    shutil.rmtree(comfyui / "models" / "checkpoints")
    assert trouble(Places.of_comfyui(comfyui)).level == "warning"
