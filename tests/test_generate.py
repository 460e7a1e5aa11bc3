"""From model folders to pictures, without a network."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_sdxl import TOKEN_WIDTH, layer_channels, write_tiny_identitynet, write_tiny_sdxl
from fast_instantid.errors import FastInstantIDError, ModelFileError
from fast_instantid.identity import Adapter
from fast_instantid.pipelines import InstantIDFiles, Sampling, Subject, generate, load_pipeline
from tests.tiny_pipelines import SHALLOW

KEYPOINTS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 72, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """``(base, instantid)``, as downloads of both leave them."""
    folder = tmp_path_factory.mktemp("downloads")
    base, instantid = write_tiny_sdxl(folder / "sdxl", depth=SHALLOW), folder / "InstantID"
    write_tiny_identitynet(instantid / "ControlNetModel", depth=SHALLOW)
    write_tiny_adapter(instantid / "ip-adapter.bin", channels=layer_channels(SHALLOW), token_width=TOKEN_WIDTH)
    return base, instantid


@pytest.fixture(scope="session")
def pipe(folders):
    return load_pipeline(*folders, "cpu", torch.float32)


@pytest.fixture(scope="session")
def identity(folders):
    adapter = Adapter.load(InstantIDFiles.find(folders[1]).adapter, "cpu", torch.float32)
    return adapter.identity(torch.randn(1, 512, generator=torch.Generator().manual_seed(5)))


@pytest.fixture
def copies(folders, tmp_path):
    """Folders that a test may spoil."""
    return [shutil.copytree(folder, tmp_path / folder.name) for folder in folders]


def test_pictures_have_the_size_of_the_keypoints_and_start_from_seeds_in_a_row(pipe, identity):
    both = generate(
        pipe, identity, KEYPOINTS, "a man", Sampling(num_inference_steps=2, seed=4, num_images_per_prompt=2)
    )
    second = generate(pipe, identity, KEYPOINTS, "a man", Sampling(num_inference_steps=2, seed=5))
    assert [image.size for image in both] == [KEYPOINTS.size] * 2
    difference = np.asarray(both[1], np.int16) - np.asarray(second[0], np.int16)
    assert np.abs(difference).max() <= 1  # of 255: rounding
    assert both[0].tobytes() != both[1].tobytes()


def test_several_prompts_are_drawn_at_once_and_as_each_would_be_alone(pipe, identity):
    sampling, prompts = (
        Sampling(num_inference_steps=2, seed=4, num_images_per_prompt=2),
        ["a man", "a dog in a field of red flowers"],
    )
    at_once = generate(pipe, identity, KEYPOINTS, prompts, sampling)
    alone = [image for prompt in prompts for image in generate(pipe, identity, KEYPOINTS, prompt, sampling)]
    assert len(at_once) == 4
    for one, other in zip(at_once, alone, strict=True):
        assert np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max() <= 1  # of 255: rounding
    assert len({image.tobytes() for image in at_once}) == 4
    with pytest.raises(FastInstantIDError, match="no prompt"):
        generate(pipe, identity, KEYPOINTS, [], sampling)


@pytest.mark.parametrize(
    "other",
    [
        Sampling(num_inference_steps=3),
        Sampling(num_inference_steps=2, scale=0.2),
        Sampling(num_inference_steps=2, controlnet_conditioning_scale=0),
        Sampling(num_inference_steps=2, guidance_scale=1),
        Sampling(num_inference_steps=2, seed=1),
        Sampling(num_inference_steps=2, negative_prompt="blurry"),
    ],
)
def test_every_setting_has_an_effect(pipe, identity, other):
    usual, changed = (
        generate(pipe, identity, KEYPOINTS, "a man", sampling)[0]
        for sampling in (Sampling(num_inference_steps=2), other)
    )
    assert usual.tobytes() != changed.tobytes()


def test_progress_counts_the_steps(pipe, identity):
    seen = []
    generate(
        pipe,
        identity,
        KEYPOINTS,
        "a man",
        Sampling(num_inference_steps=3),
        lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 9},
        {"num_inference_steps": 0},
        {"guidance_scale": float("nan")},
        {"seed": -1},
        {"num_images_per_prompt": 0},
    ],
    ids=str,
)
def test_what_cannot_be_sampled_is_refused(options):
    with pytest.raises(FastInstantIDError, match="expected"):
        Sampling(**options)


def test_the_pipeline_is_left_as_it_was(pipe, identity):
    before = pipe.unet.attn_processors
    generate(pipe, [Subject(identity, region=torch.ones(3, 4))], KEYPOINTS, "a man", Sampling(num_inference_steps=1))

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(pipe, identity, KEYPOINTS, "a man", Sampling(num_inference_steps=1), interrupt)
    assert all(pipe.unet.attn_processors[name] is before[name] for name in before)
    assert not pipe.controlnet._forward_pre_hooks


def test_the_hub_id_of_a_cached_repository_is_found(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name, folder in zip(("sdxl", "InstantID"), folders, strict=True):
        repository = tmp_path / f"models--somebody--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0123")
        shutil.copytree(folder, repository / "snapshots" / "0123")
    pipe = load_pipeline("somebody/sdxl", "somebody/InstantID", "cpu", torch.float32)
    assert pipe.unet.config.cross_attention_dim == TOKEN_WIDTH
    with pytest.raises(
        ModelFileError, match=r"somebody/else: neither a file nor a folder.*hub's cache.*fast-instantid download"
    ):
        load_pipeline("somebody/sdxl", "somebody/else", "cpu", torch.float32)


@pytest.mark.parametrize("name", ["no/such/folder", "no such folder", "somebody/nothing"])
def test_what_is_neither_a_folder_nor_cached_is_named(folders, name):
    with pytest.raises(
        ModelFileError, match=rf"{name}: neither a file nor a folder.*an SDXL model.*fast-instantid download"
    ):
        load_pipeline(name, folders[1], "cpu", torch.float32)


@pytest.mark.parametrize("missing", ["ControlNetModel/diffusion_pytorch_model.safetensors", "ip-adapter.bin"])
def test_a_missing_part_of_instantid_is_named(copies, missing):
    (copies[1] / missing).unlink()
    with pytest.raises(ModelFileError, match=rf"{missing.split('/')[0]}.*fast-instantid download"):
        load_pipeline(*copies, "cpu", torch.float32)


def test_a_safetensors_adapter_is_preferred(copies):
    save_file({"tensor": torch.ones(1)}, copies[1] / "ip-adapter.safetensors")
    assert InstantIDFiles.find(copies[1]).adapter.name == "ip-adapter.safetensors"


@pytest.mark.parametrize("spoil", ["truncate", "remove"])
@pytest.mark.parametrize("which", [0, 1])
def test_damaged_weights_are_refused(copies, which, spoil):
    weights = copies[which] / ("unet", "ControlNetModel")[which] / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    if spoil == "remove":
        weights.unlink()
    said = "its weights are missing" if spoil == "remove" else "an incomplete download"
    with pytest.raises(ModelFileError, match=f"{copies[which].name}.*{said}"):
        load_pipeline(*copies, "cpu", torch.float32)


def test_models_of_other_kinds_are_refused(copies, tmp_path):
    shutil.rmtree(copies[0] / "text_encoder_2")  # SD 1.5 has one text encoder
    with pytest.raises(ModelFileError, match=r"no text_encoder_2/config.json; expected an SDXL base model"):
        load_pipeline(*copies, "cpu", torch.float32)
    save_file({"tensor": torch.ones(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ModelFileError, match=r"lora.safetensors: this is an unknown model .* not an SDXL checkpoint"):
        load_pipeline(tmp_path / "lora.safetensors", copies[1], "cpu", torch.float32)


def test_half_precision_files_are_preferred_for_float16_and_taken_if_there_are_no_others(copies):
    unet = copies[0] / "unet"
    full = UNet2DConditionModel.from_pretrained(unet)
    half = UNet2DConditionModel.from_pretrained(unet).half()
    torch.nn.init.zeros_(half.conv_out.bias)
    torch.nn.init.ones_(full.conv_out.bias)
    full.save_pretrained(unet)
    half.save_pretrained(unet, variant="fp16")

    def bias(dtype):
        return load_pipeline(*copies, "cpu", dtype).unet.conv_out.bias

    assert bias(torch.float16).eq(0).all()
    assert bias(torch.float32).eq(1).all()
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    assert bias(torch.float32).eq(0).all()
