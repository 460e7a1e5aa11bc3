"""Model files as people have them: single checkpoints, shards, half precision, and files of other kinds."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_sdxl import LAYER_CHANNELS, TOKEN_WIDTH, write_tiny_identitynet
from fast_instantid.errors import ModelFileError
from fast_instantid.pipelines import InstantID, load, load_pipeline
from tests.ldm_checkpoint import checkpoint_of, write_tiny_checkpoint

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
CONFIGURATIONS = Path(load.__file__).parent / "sdxl"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """``(folder in diffusers' layout, the same as a single file)``"""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def instantid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instantid")
    write_tiny_identitynet(folder / "ControlNetModel")
    write_tiny_adapter(folder / "ip-adapter.bin", channels=LAYER_CHANNELS, token_width=TOKEN_WIDTH)
    return folder


@pytest.fixture
def copies(tiny, instantid, tmp_path):
    return [Path(shutil.copytree(folder, tmp_path / name)) for folder, name in ((tiny[0], "b"), (instantid, "i"))]


@pytest.fixture
def tiny_configurations(tiny, tmp_path, monkeypatch):
    """In place of those that are shipped: the tiny SDXL's, and no tokenizers."""
    folder = tmp_path / "configurations"
    shutil.copytree(tiny[0], folder, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
    write_tiny_identitynet(folder / "controlnet")
    monkeypatch.setattr(load, "_CONFIGURATIONS", folder)
    monkeypatch.setenv("FAST_INSTANTID_MODELS", str(tmp_path / "models"))
    return folder


def assert_same(pipe, other, names=NETWORKS):
    for name in names:
        state, wanted = getattr(pipe, name).state_dict(), getattr(other, name).state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[key], wanted[key]) for key in wanted), name


# Single files


def test_a_single_file_is_the_pipeline_of_its_folder(tiny, instantid):
    pipe = load_pipeline(tiny[1], instantid, "cpu", config=tiny[0])
    wanted = load_pipeline(tiny[0], instantid, "cpu")
    assert_same(pipe, wanted)
    assert pipe.scheduler.config == wanted.scheduler.config
    assert InstantID(pipe, identity_net=0).pipe is pipe


@pytest.mark.parametrize("form", ["ckpt", "mixed", "half"])
def test_single_files_in_any_precision_and_form(tiny, tmp_path, form):
    tensors, path = load_file(tiny[1]), tmp_path / "sdxl.safetensors"
    if form == "ckpt":
        path = path.with_suffix(".ckpt")
        torch.save({"state_dict": tensors, "epoch": 3}, path)
    else:
        kinds = {"mixed": [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn], "half": [torch.float16]}
        dtypes = [kinds[form][number % len(kinds[form])] for number in range(len(tensors))]
        tensors = {name: tensor.to(dtype) for (name, tensor), dtype in zip(tensors.items(), dtypes, strict=True)}
        save_file(tensors, path)
    unet = load_pipeline(path, None, "cpu", torch.float32, config=tiny[0]).unet
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}
    name = "input_blocks.0.0.weight"
    assert torch.equal(unet.conv_in.weight, tensors[f"model.diffusion_model.{name}"].float())


def test_tokenizers_are_looked_for_and_the_error_says_what_to_fetch(tiny, tiny_configurations, tmp_path):
    checkpoint = tmp_path / "ComfyUI" / "models" / "checkpoints" / "sdxl.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.symlink_to(tiny[1])
    with pytest.raises(ModelFileError, match=r"no tokenizer.*'fast-instantid download tokenizer' gets it"):
        load_pipeline(checkpoint, None, "cpu")
    wanted = CLIPTokenizer.from_pretrained(tiny[0] / "tokenizer")("A cat, drawn!").input_ids
    for place in ("models/base/tokenizer", "models/tokenizer/tokenizer", "ComfyUI/comfy/sd1_tokenizer"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        shutil.copy(tiny[0] / "tokenizer" / "merges.txt", folder)
        tokens = CLIPTokenizer.from_pretrained(tiny[0] / "tokenizer").get_vocab()
        (folder / "vocab.json").write_text(json.dumps(tokens))
        pipe = load_pipeline(checkpoint, None, "cpu")
        assert pipe.tokenizer("A cat, drawn!").input_ids == wanted
        assert (pipe.tokenizer.pad_token, pipe.tokenizer_2.pad_token) == ("<|endoftext|>", "!")
        assert pipe.tokenizer.model_max_length == pipe.tokenizer_2.model_max_length == 77
        shutil.rmtree(folder)


PREFIXES = {
    "UNet": "model.diffusion_model.",
    "VAE": "first_stage_model.",
    "text encoder 1": "conditioner.embedders.0.",
    "text encoder 2": "conditioner.embedders.1.",
}


@pytest.mark.parametrize("missing", [["VAE"], ["text encoder 2"], ["text encoder 1", "text encoder 2"], ["UNet"]])
def test_the_parts_that_a_single_file_lacks_are_named(tiny, tmp_path, missing):
    prefixes = tuple(PREFIXES[part] for part in missing)
    kept = {name: tensor for name, tensor in load_file(tiny[1]).items() if not name.startswith(prefixes)}
    save_file(kept, tmp_path / "part.safetensors")
    said = "not an SDXL checkpoint" if missing == ["UNet"] else f"lacks its {' and its '.join(missing)}"
    with pytest.raises(ModelFileError, match=said):
        load_pipeline(tmp_path / "part.safetensors", None, "cpu", config=tiny[0])


@pytest.mark.parametrize("prefix", PREFIXES.values())
def test_a_single_tensor_that_a_file_lacks_is_named(tiny, tmp_path, prefix):
    tensors = load_file(tiny[1])
    del tensors[next(name for name in tensors if name.startswith(prefix) and re.search("norm|ln_", name))]
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(ModelFileError, match=r"part.safetensors: .*lacks "):
        load_pipeline(tmp_path / "part.safetensors", None, "cpu", config=tiny[0])


def changed(**tensors):
    return lambda state: state | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


CONV_IN = "model__diffusion_model__input_blocks__0__0__weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed(**{CONV_IN: torch.zeros(8, 9, 3, 3)}), "reads 9 channels, as for inpainting"),
        (changed(edm_mean=torch.zeros(4)), "another noise schedule"),
        (changed(scaled_fp8=torch.zeros(1)), "quantised"),
        (lambda state: {name: t for name, t in state.items() if not name.startswith("model.")}, "not an SDXL"),
        (lambda state: {"lora_unet_down.lora_up.weight": torch.zeros(4, 4)}, "this is a LoRA, not an SDXL checkpoint"),
        (lambda state: {"lora_unet_down.hada_w1_a": torch.zeros(4, 4)}, "this is a LoRA, not an SDXL checkpoint"),
        (lambda state: {"decoder.conv_in.weight": torch.zeros(4, 4)}, "this is a VAE, not an SDXL checkpoint"),
        (lambda state: {"emb_params": torch.zeros(4, 4)}, "this is a textual inversion"),
    ],
)
def test_another_model_as_a_checkpoint_is_named(tiny, tmp_path, change, said):
    save_file(change(load_file(tiny[1])), tmp_path / "other.safetensors")
    with pytest.raises(ModelFileError, match=f"other.safetensors: .*{said}"):
        load_pipeline(tmp_path / "other.safetensors", None, "cpu", config=tiny[0])


def test_a_checkpoint_that_predicts_v_is_sampled_so(tiny, tmp_path):
    save_file(load_file(tiny[1]) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "v.safetensors")
    config = load_pipeline(tmp_path / "v.safetensors", None, "cpu", config=tiny[0]).scheduler.config
    assert config.prediction_type == "v_prediction"
    assert config.rescale_betas_zero_snr


def test_the_shipped_configurations_are_those_of_sdxl():
    """By the published numbers of parameters, and by each name of a checkpoint of real size."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGURATIONS / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(CONFIGURATIONS / "vae"))
        net = ControlNetModel.from_config(ControlNetModel.load_config(CONFIGURATIONS / "controlnet"))
        one = CLIPTextModel(CLIPTextConfig.from_pretrained(CONFIGURATIONS / "text_encoder"))
        two = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(CONFIGURATIONS / "text_encoder_2"))
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (unet, vae, one, two)]
    assert counts == [2_567_463_684, 83_653_863, 123_060_480, 694_659_840]
    # In fp16 the published IdentityNet is a file of 2,502,139,136 bytes, and its header takes some.
    assert 0 < 2_502_139_136 - 2 * sum(parameter.numel() for parameter in net.parameters()) < 200_000
    networks = {"unet": unet, "vae": vae, "text_encoder": one, "text_encoder_2": two}
    checkpoint = checkpoint_of(networks)
    assert len(checkpoint) == 2515 - 2  # sd_xl_base_1.0 has position_ids and a logit_scale as well
    read = single_file_utils.convert_ldm_unet_checkpoint(checkpoint, unet.config)
    assert {name: tensor.shape for name, tensor in read.items()} == {n: t.shape for n, t in unet.state_dict().items()}
    read = single_file_utils.convert_ldm_vae_checkpoint(checkpoint, vae.config)
    assert {name: tensor.shape for name, tensor in read.items()} == {n: t.shape for n, t in vae.state_dict().items()}


# Folders


HALF, SHARDS = {"variant": "fp16"}, {"max_shard_size": "300KB"}


@pytest.mark.parametrize(
    ("saved", "precise"),
    [([HALF], False), ([HALF | SHARDS], False), ([SHARDS], True), ([SHARDS, HALF | SHARDS], True)],
    ids=["half alone", "shards of half alone", "shards", "both in shards"],
)
def test_each_network_is_read_in_the_precision_that_is_there(copies, saved, precise):
    """Those that are not saved again here are there in full precision alone, beside others in half alone."""
    base, instantid = copies
    for path, network in {
        base / "text_encoder_2": CLIPTextModelWithProjection,
        instantid / "ControlNetModel": ControlNetModel,
    }.items():
        model = network.from_pretrained(path)
        for weights in path.glob("*.safetensors"):
            weights.unlink()
        for options in saved:
            model = model.half() if "variant" in options else model
            model.save_pretrained(path, **options)
        (path / "LICENSE").write_text("a file without a dot, as repositories have them")
    assert (SHARDS.items() <= saved[0].items()) == bool(list((instantid / "ControlNetModel").glob("*-of-*")))
    full = load_pipeline(*copies, "cpu", torch.float32)
    assert {
        parameter.dtype for name in (*NETWORKS, "controlnet") for parameter in getattr(full, name).parameters()
    } == {torch.float32}
    for name in ("text_encoder_2", "controlnet"):
        assert any((p != p.half().float()).any() for p in getattr(full, name).parameters()) == precise
    assert any((p != p.half().float()).any() for p in full.unet.parameters()), "which is there in full precision"
    half = load_pipeline(*copies, "cpu", torch.float16)
    assert torch.equal(half.controlnet.conv_in.weight, full.controlnet.conv_in.weight.half())


@pytest.mark.parametrize(
    "name", ["ControlNetModel/diffusion_pytorch_model", "diffusion_pytorch_model", "instantid-controlnet"]
)
def test_an_identity_net_is_one_file_without_a_configuration(copies, tiny_configurations, name):
    base, instantid = copies
    weights = instantid / "ControlNetModel" / "diffusion_pytorch_model.safetensors"
    wanted = load_file(weights)
    (instantid / "ControlNetModel" / "config.json").unlink()
    weights.rename(instantid / f"{name}.safetensors")
    if "/" not in name:
        (instantid / "ControlNetModel").rmdir()
    net = load_pipeline(base, instantid, "cpu").controlnet
    state = net.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    assert net.config._name_or_path.startswith(str(instantid)), "by which InstantID(pipe) tells its ControlNet"


def other_networks(copies):
    base, instantid = copies
    return {
        "a UNet": base / "unet" / "diffusion_pytorch_model.safetensors",
        "a VAE": base / "vae" / "diffusion_pytorch_model.safetensors",
        "a CLIP model": base / "text_encoder" / "model.safetensors",
        "a ControlNet": instantid / "ControlNetModel" / "diffusion_pytorch_model.safetensors",
        "InstantID's adapter": instantid / "ip-adapter.safetensors",
    }


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("a UNet", "a ControlNet"),
        ("a ControlNet", "a UNet"),
        ("InstantID's adapter", "a ControlNet"),
        ("a VAE", "a CLIP model"),
        ("a CLIP model", "a VAE"),
    ],
)
def test_a_network_in_the_place_of_another_is_named(copies, kind, place):
    write_tiny_adapter(copies[1] / "ip-adapter.safetensors", channels=LAYER_CHANNELS, token_width=TOKEN_WIDTH)
    files = other_networks(copies)
    content = files[kind].read_bytes()
    files[place].write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        load_pipeline(*copies, "cpu")
    assert str(files[place]) in str(caught.value)
    assert f"this is {kind}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 16\n", "a Git LFS pointer"),
        (b"", "empty"),
        (None, "an incomplete download"),
    ],
)
@pytest.mark.parametrize("place", ["a CLIP model", "a ControlNet", "single file"])
def test_what_is_no_network_is_named(copies, tiny, place, content, said):
    path = copies[0] / "single.safetensors" if place == "single file" else other_networks(copies)[place]
    if place == "single file":
        shutil.copy(tiny[1], path)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ModelFileError) as caught:
        load_pipeline(path if place == "single file" else copies[0], copies[1], "cpu", config=tiny[0])
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_shards_that_are_missing_are_named(copies):
    vae = copies[0] / "vae"
    model = AutoencoderKL.from_pretrained(vae)
    (vae / "diffusion_pytorch_model.safetensors").unlink()
    model.save_pretrained(vae, max_shard_size="60KB")
    shard = sorted(vae.glob("*-of-*"))[1]
    shard.unlink()
    with pytest.raises(ModelFileError, match=f"{shard.name}: no such file"):
        load_pipeline(copies[0], None, "cpu")
    for damaged in ("{}", "[" * 100_000):
        (vae / "diffusion_pytorch_model.safetensors.index.json").write_text(damaged)
        with pytest.raises(ModelFileError, match="a damaged index of shards"):
            load_pipeline(copies[0], None, "cpu")
    if hasattr(os, "mkfifo"):  # not on Windows; reading it would wait for ever
        (vae / "diffusion_pytorch_model.safetensors.index.json").unlink()
        os.mkfifo(vae / "diffusion_pytorch_model.safetensors.index.json")
        with pytest.raises(ModelFileError, match="a pipe or a device"):
            load_pipeline(copies[0], None, "cpu")


def test_a_pipeline_without_an_identity_net_is_plain(tiny):
    assert type(load_pipeline(tiny[0], None, "cpu")) is StableDiffusionXLPipeline
