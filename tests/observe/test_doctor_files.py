"""The model files: each trouble that people have with them is a finding, and one way out of it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel
from safetensors.torch import load_file, save_file

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_faces import IRESNET_100, write_iresnet, write_landmark_net, write_scrfd
from examples.tiny_sdxl import _BLOCKS, write_tiny_sdxl
from fast_instantid.observe.doctor import Finding, Places, instantid_files
from fast_instantid.observe.doctor.files import CHECKS, duplicates
from fast_instantid.observe.doctor.headers import files_below
from fast_instantid.pipelines.generate import _ADAPTER_NAMES

ROOT = Path(__file__).resolve().parents[2]
IRESNET_50 = (3, 4, 14, 3)
SMALL = (4, 4, 4, 4)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 260665334\n"
PAGE = b"<!DOCTYPE html><html><title>Sign in</title></html>"


@pytest.fixture(scope="module")
def _good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("good") / "models"
    (models / "antelopev2").mkdir(parents=True)
    write_scrfd(models / "antelopev2" / "scrfd_10g_bnkps.onnx")
    write_iresnet(models / "antelopev2" / "glintr100.onnx", SMALL, IRESNET_100["blocks"])
    (models / "instantid").mkdir()
    write_tiny_adapter(models / "instantid" / "ip-adapter.bin", channels=[4] * 70, token_width=2048)
    write_controlnet(models / "instantid" / "ControlNetModel", 2048)
    write_tiny_sdxl(models / "base")
    set_width(models / "base", 2048)
    return models


@pytest.fixture
def models(_good: Path, tmp_path: Path) -> Path:
    """A models folder of the command line in which all is well."""
    return Path(shutil.copytree(_good, tmp_path / "models"))


@pytest.fixture
def comfyui(models: Path, tmp_path: Path) -> Path:
    """A ComfyUI in which all is well."""
    folder = tmp_path / "ComfyUI"
    (folder / "custom_nodes").mkdir(parents=True)
    for source, target in (
        ("antelopev2", "insightface/models/antelopev2"),
        ("instantid/ip-adapter.bin", "instantid/ip-adapter.bin"),
        (
            "instantid/ControlNetModel/diffusion_pytorch_model.safetensors",
            "controlnet/instantid/diffusion_pytorch_model.safetensors",
        ),
    ):
        (folder / "models" / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(models / source, folder / "models" / target)
    write_checkpoint(folder / "models" / "checkpoints" / "sd_xl_base_1.0.safetensors", 2048)
    return folder


def set_width(base: Path, width: int) -> None:
    """What the UNet's configuration says of its tokens; the weights stay tiny."""
    path = base / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cross_attention_dim": width}))


def write_controlnet(folder: Path, width: int) -> None:
    ControlNetModel(
        conditioning_embedding_out_channels=(8, 8, 16, 16), **{**_BLOCKS, "cross_attention_dim": width}
    ).save_pretrained(folder)


def write_checkpoint(path: Path, width: int) -> Path:
    """The one layer of a single-file checkpoint that says for which tokens it is."""
    name = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.zeros(8, width)}, path)
    return path


def examined(places: Places) -> list[Finding]:
    return [finding for check in CHECKS for finding in check(places)]


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


def test_where_all_is_well_each_file_is_named(models: Path):
    findings = examined(Places.of_shell(models))
    assert [finding.level for finding in findings] == ["ok"] * 4
    for finding, name in zip(findings, ("antelopev2", "ip-adapter.bin", "ControlNetModel", "base"), strict=True):
        assert str(models) in finding.found
        assert name in finding.found


def test_a_newcomer_gets_one_instruction(tmp_path: Path):
    found = trouble(Places.of_shell(tmp_path / "nothing here"))
    assert found.level == "broken"
    assert "fast-instantid download --to" in found.do.splitlines()[0]
    assert f'"{tmp_path / "nothing here"}"' in found.do
    assert str(tmp_path) in found.why


def test_a_newcomer_to_comfyui_is_told_what_goes_where(tmp_path: Path):
    (tmp_path / "custom_nodes").mkdir()
    found = trouble(Places.of_comfyui(tmp_path))
    assert found.level == "broken"
    for name in ("ip-adapter.bin", "glintr100.onnx", "diffusion_pytorch_model.safetensors", "checkpoints"):
        assert name in found.do
    assert str(tmp_path / "models") in found.do


def test_only_what_is_missing_is_asked_for(models: Path):
    shutil.rmtree(models / "antelopev2")
    found = trouble(Places.of_shell(models))
    assert found.level == "broken"
    assert "the face models" in found.found
    assert "download antelopev2 " in found.do
    assert str(models / "antelopev2") in found.why


# Face models


def test_a_nested_pack_is_found_and_said(models: Path):
    pack = models / "antelopev2"
    (pack / "antelopev2").mkdir()
    for path in pack.glob("*.onnx"):
        path.rename(pack / "antelopev2" / path.name)
    found = trouble(Places.of_shell(models))
    assert found.level == "note"
    assert str(pack / "antelopev2") in found.found
    assert "insightface" in found.why


@pytest.mark.parametrize("name", ["w600k_r50.onnx", "glintr100.onnx"])
def test_buffalo_is_another_person_under_any_name(models: Path, name: str):
    pack = models / "antelopev2"
    (pack / "glintr100.onnx").unlink()
    write_iresnet(pack / name, SMALL, IRESNET_50)
    found = trouble(Places.of_shell(models))
    assert found.level == "broken"
    assert name in found.found
    assert "another person" in found.why


def test_only_buffalo_in_comfyui(comfyui: Path):
    pack = comfyui / "models" / "insightface" / "models"
    (pack / "antelopev2").rename(pack / "buffalo_l")
    (pack / "buffalo_l" / "glintr100.onnx").rename(pack / "buffalo_l" / "w600k_r50.onnx")
    found = trouble(Places.of_comfyui(comfyui))
    assert found.level == "broken"
    assert "buffalo" in found.found
    assert str(pack / "antelopev2") in found.do


def test_a_recogniser_of_no_known_size(models: Path):
    write_iresnet(models / "antelopev2" / "glintr100.onnx")
    assert trouble(Places.of_shell(models)).level == "warning"


def test_still_zipped(models: Path):
    pack = models / "antelopev2"
    with zipfile.ZipFile(models / "antelopev2.zip", "w") as archive:
        for path in sorted(pack.glob("*.onnx")):
            archive.write(path, path.name)
    shutil.rmtree(pack)
    found = trouble(Places.of_shell(models))
    assert found.level == "broken"
    assert str(models / "antelopev2.zip") in found.found
    assert "unpack" in found.do


@pytest.mark.parametrize("missing", ["glintr100.onnx", "scrfd_10g_bnkps.onnx"])
def test_half_a_pack(models: Path, missing: str):
    (models / "antelopev2" / missing).unlink()
    found = trouble(Places.of_shell(models))
    assert found.level == "broken"
    assert missing in found.found


def test_networks_for_other_purposes_are_no_pack(models: Path):
    for path in (models / "antelopev2").glob("*.onnx"):
        path.unlink()
    write_landmark_net(models / "antelopev2" / "2d106det.onnx", 212)
    found = trouble(Places.of_shell(models))
    assert found.level == "broken"
    assert "scrfd_10g_bnkps.onnx" in found.found


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "empty"), (LFS, "Git LFS"), (PAGE, "web page"), (None, "not a complete ONNX file"), (b"PK" * 99, "ONNX")],
    ids=["empty", "lfs", "page", "truncated", "garbage"],
)
def test_damaged_face_models(models: Path, content: bytes | None, word: str):
    path = models / "antelopev2" / "glintr100.onnx"
    replace(path, path.read_bytes()[:-5000] if content is None else content)
    found = [finding for finding in troubles(Places.of_shell(models)) if finding.level == "broken"]
    assert word in found[0].found
    assert str(path) in found[0].found
    assert found[0].do


def test_a_damaged_file_beside_a_whole_pack(models: Path):
    """It is looked at first, and passed over."""
    (models / "antelopev2" / "det_10g.onnx").write_bytes(PAGE)
    (models / "antelopev2" / "glintr100.onnx").rename(models / "antelopev2" / "w600k_mbf.onnx")
    levels = {finding.level for finding in troubles(Places.of_shell(models))}
    assert levels == {"broken", "warning"}  # a buffalo, and the page


def test_what_has_the_name_of_a_download_is_to_be_deleted_first(models: Path):
    """A download leaves alone what is there."""
    write_iresnet(models / "antelopev2" / "glintr100.onnx", SMALL, IRESNET_50)
    do = trouble(Places.of_shell(models)).do
    assert do.startswith(f"delete {models / 'antelopev2' / 'glintr100.onnx'}, then: fast-instantid download antelopev2")


def test_a_zip_that_is_damaged(models: Path):
    shutil.rmtree(models / "antelopev2")
    (models / "antelopev2.zip").write_bytes(b"PK")
    found = trouble(Places.of_shell(models))
    assert found.level == "broken"
    assert "antelopev2.zip is damaged" in found.found
    assert found.do.startswith("delete it")


# The adapter


def write_kind(path: Path, kind: str) -> None:
    """Small files with the keys of the adapters that people take for InstantID's."""
    layer = "ip_adapter.1.to_k_ip.weight"
    tensors = {
        "SD 1.5": {"image_proj.proj.weight": torch.zeros(8, 1024), layer: torch.zeros(8, 768)},
        "FaceID": {"image_proj.proj.0.weight": torch.zeros(8, 512), layer: torch.zeros(8, 2048)},
        "ControlNet": {"controlnet_cond_embedding.conv_in.weight": torch.zeros(8, 3)},
    }
    nested: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors[kind].items():
        part, _, rest = name.partition(".")
        nested.setdefault(part, {})[rest] = tensor
    torch.save(nested, path)


@pytest.mark.parametrize("kind", ["SD 1.5", "FaceID", "ControlNet"])
def test_another_adapter_is_named(models: Path, kind: str):
    write_kind(models / "instantid" / "ip-adapter.bin", kind)
    found = trouble(Places.of_shell(models))
    assert found.level == "broken"
    assert kind in found.found
    assert "ip-adapter.bin" in found.do


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "empty"), (LFS, "Git LFS"), (PAGE, "web page"), (None, "incomplete download")],
    ids=["empty", "lfs", "page", "truncated"],
)
def test_damaged_adapters(models: Path, content: bytes | None, word: str):
    path = models / "instantid" / "ip-adapter.bin"
    replace(path, path.read_bytes()[:-5000] if content is None else content)
    found = trouble(Places.of_shell(models))
    assert found.level == "broken"
    assert word in found.found


def test_the_names_of_adapters_are_those_that_our_pipelines_look_for():
    assert instantid_files._ADAPTER_NAMES == _ADAPTER_NAMES


def test_an_adapter_that_does_not_fit_sdxl(models: Path):
    write_tiny_adapter(models / "instantid" / "ip-adapter.bin", channels=[8] * 4)
    found = trouble(Places.of_shell(models))
    assert found.level == "warning"
    assert "4 layers" in found.found


def test_an_adapter_under_another_name_is_no_adapter_of_the_shell(models: Path):
    (models / "instantid" / "ip-adapter.bin").rename(models / "instantid" / "ip-adapter (1).bin")
    found = trouble(Places.of_shell(models))
    assert found.level == "broken"
    assert "ip-adapter (1).bin" in found.found
    assert "ip-adapter.bin" in found.do


def test_a_wrong_adapter_beside_the_right_one_is_a_note(comfyui: Path):
    write_kind(comfyui / "models" / "instantid" / "ip-adapter_sd15.bin", "SD 1.5")
    found = trouble(Places.of_comfyui(comfyui))
    assert found.level == "note"
    assert "ip-adapter_sd15.bin" in found.found


# The IdentityNet


def test_an_identitynet_of_another_width(models: Path):
    write_controlnet(models / "instantid" / "ControlNetModel", 768)
    found = trouble(Places.of_shell(models))
    assert found.level == "broken"
    assert "SD 1.x" in found.found


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("config.json", None, "config.json"),
        ("config.json", b"{", "no configuration"),
        ("config.json", json.dumps({"_class_name": "UNet2DConditionModel"}).encode(), "UNet2DConditionModel"),
        ("diffusion_pytorch_model.safetensors", None, "weights"),
        ("diffusion_pytorch_model.safetensors", LFS, "Git LFS"),
        ("diffusion_pytorch_model.safetensors", b"", "empty"),
    ],
)
def test_an_incomplete_identitynet(models: Path, name: str, content: bytes | None, word: str):
    path = models / "instantid" / "ControlNetModel" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    found = trouble(Places.of_shell(models))
    assert found.level == "broken"
    assert word in found.found


def test_in_comfyui_all_is_well(comfyui: Path):
    assert [finding.level for finding in examined(Places.of_comfyui(comfyui))] == ["ok"] * 4


def test_a_controlnet_of_no_name_may_be_instantids(comfyui: Path):
    folder = comfyui / "models" / "controlnet"
    (folder / "instantid").rename(folder / "other")
    found = trouble(Places.of_comfyui(comfyui))
    assert found.level == "note"
    assert "other" in found.found


def test_a_wrong_file_called_instantid(comfyui: Path):
    folder = comfyui / "models" / "controlnet" / "instantid"
    write_kind(folder / "diffusion_pytorch_model.bin", "SD 1.5")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    found = trouble(Places.of_comfyui(comfyui))
    assert found.level == "broken"
    assert "IP-Adapter for SD 1.5" in found.found


def test_the_adapter_beside_the_identitynet_as_the_hub_has_them(comfyui: Path):
    adapter = comfyui / "models" / "controlnet" / "instantid" / "ip-adapter.bin"
    os.link(comfyui / "models" / "instantid" / "ip-adapter.bin", adapter)
    found = trouble(Places.of_comfyui(comfyui))
    assert found.level == "note"
    assert "this is InstantID's adapter" in found.found
    (adapter.parent / "diffusion_pytorch_model.safetensors").unlink()
    found = trouble(Places.of_comfyui(comfyui))
    assert found.level == "broken"
    assert "this is InstantID's adapter" in found.found


# The base model


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
        "an index without shards",
        "an index that is none",
        "fp16 alone",
        "fp16 alone in this network",
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
    elif change.startswith("an index"):
        names = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
        weights.with_name(f"{weights.name}.index.json").write_text("[]" if "none" in change else json.dumps(names))
    elif change == "others beside":
        (vae / "openvino_model.bin").write_bytes(b"what OpenVINO reads")
    elif change == "damaged .bin beside":
        weights.with_suffix(".bin").write_bytes(LFS)
    elif change == "damaged fp16 beside":
        weights.with_suffix(".fp16.safetensors").write_bytes(LFS)
    elif change.startswith("fp16 alone"):
        for part in (vae,) if change.endswith("network") else (unet, vae):
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
    damaged = {"base": "vae/config.json", "instantid": "ControlNetModel/config.json", "antelopev2": "glintr100.onnx"}
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


@pytest.mark.parametrize(("width", "level"), [(2048, "ok"), (768, "broken")])
def test_a_single_checkpoint(models: Path, width: int, level: str):
    shutil.rmtree(models / "base")
    write_checkpoint(models / "base", width)  # a file of that name
    assert [finding.level for finding in examined(Places.of_shell(models))][3] == level


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


# Copies and places


def test_copies_cost_room(comfyui: Path, tmp_path: Path):
    extra = tmp_path / "shared"
    extra.mkdir()
    shutil.copy(comfyui / "models" / "instantid" / "ip-adapter.bin", extra / "ip-adapter (2).bin")
    (extra / "link.bin").symlink_to(extra / "ip-adapter (2).bin")
    (comfyui / "extra_model_paths.yaml").write_text(f"mine:\n  base_path: {tmp_path}\n  instantid: shared\n")
    found = trouble(Places.of_comfyui(comfyui))
    assert found.level == "note"
    assert found.found.startswith("2 files")
    assert "ip-adapter (2).bin" in found.found
    assert "MB" in found.why


def test_files_of_one_size_are_no_copies(models: Path):
    path = models / "instantid" / "ip-adapter.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    (models / "instantid" / "other.onnx").write_bytes(content)
    assert not troubles(Places.of_shell(models))


@pytest.mark.parametrize("where", [0, 150_000, 299_999])
def test_files_that_differ_somewhere_are_no_copies(comfyui: Path, where: int):
    for place in (None, where):
        content = bytearray(300_000)
        if place is not None:
            content[place] = 1
        (comfyui / "models" / "insightface" / f"{place}.bin").write_bytes(content)
    assert not list(duplicates(Places.of_comfyui(comfyui)))


def test_hidden_folders_are_left_out(models: Path):
    (models / "instantid" / ".cache").mkdir()
    shutil.copy(models / "instantid" / "ip-adapter.bin", models / "instantid" / ".cache")
    assert not troubles(Places.of_shell(models))


def test_links_in_a_circle(comfyui: Path):
    folder = comfyui / "models" / "controlnet"
    for number in range(6):
        (folder / "instantid" / f"link{number}").symlink_to(folder, target_is_directory=True)
    (folder / "another").symlink_to(folder / "instantid", target_is_directory=True)  # no circle
    names = [str(path.relative_to(folder)) for path in files_below([folder], (".safetensors",))]
    assert sorted(names) == [f"{name}/diffusion_pytorch_model.safetensors" for name in ("another", "instantid")]


def test_too_little_room_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for free, said in ((5 * 10**9, True), (50 * 10**9, False)):
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, usage=usage: usage)
        assert ("There are 5.00 GB free" in trouble(Places.of_shell(tmp_path)).why) == said


# What this process may not read. Root may read everything, unless it gives up that right.

LOOK = """
import json, os, sys
from pathlib import Path
from fast_instantid.observe.doctor import Places
from fast_instantid.observe.doctor.files import CHECKS

host, root, closed = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
made = []
for path, mode in closed:
    before = (root / path).stat().st_mode
    (root / path).chmod(mode)
    try:
        places = Places.of_shell(root) if host == "shell" else Places.of_comfyui(root)
        made.append([[finding.level, finding.found] for check in CHECKS for finding in check(places)])
    finally:
        (root / path).chmod(before)
print(json.dumps(made))
"""


def looked_at_without_rights(host: str, root: Path, closed: list[tuple[str, int]]) -> list[list[list[str]]]:
    """For each path, closed alone: level and text of all findings."""
    rights = "-dac_override,-dac_read_search"
    if os.name == "nt":
        pytest.skip("needs the permissions of POSIX")
    if os.geteuid():
        prefix = []
    elif shutil.which("setpriv"):
        prefix = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]
    else:
        pytest.skip("root may read everything, and there is no setpriv to give that up")
    command = [*prefix, sys.executable, "-c", LOOK, host, str(root), json.dumps(closed)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_what_may_not_be_read_is_broken_and_keeps_nothing_else_from_being_looked_at(models: Path):
    closed = [
        (path, mode)
        for path in ("antelopev2", "base", "base/unet", "instantid", "instantid/ControlNetModel")
        for mode in (0, 0o444, 0o111)
    ]
    closed += [("antelopev2/glintr100.onnx", 0), ("base/vae/config.json", 0), ("instantid/ip-adapter.bin", 0)]
    for (path, mode), findings in zip(closed, looked_at_without_rights("shell", models, closed), strict=True):
        broken = [text for level, text in findings if level != "ok"]
        assert len(broken) == 1, (path, oct(mode), findings)
        assert broken[0].startswith(f"{models / path} cannot be read"), (path, oct(mode))
        wanted = 4 - (2 if path == "instantid" and mode != 0o111 else 1)
        assert len(findings) - 1 >= wanted, (path, oct(mode), findings)


def test_closed_above_all(models: Path):
    ((*findings,),) = looked_at_without_rights("shell", models, [(".", 0)])
    ((level, text),) = findings
    assert level == "broken"
    assert text.startswith(f"{models} cannot be read")


def test_a_closed_folder_beside_what_is_used_is_a_note(comfyui: Path):
    (comfyui / "models" / "controlnet" / "private").mkdir()
    closed = [("models/controlnet/private", 0), ("models/controlnet/private", 0o444)]
    for findings in looked_at_without_rights("comfyui", comfyui, closed):
        assert sorted(level for level, _ in findings) == ["note", *["ok"] * 4]


# Further folders of ComfyUI


def test_further_folders_of_comfyui(comfyui: Path, tmp_path: Path):
    shutil.move(comfyui / "models" / "insightface", tmp_path / "elsewhere" / "insightface")
    base = f"mine:\n  base_path: {tmp_path / 'elsewhere'}\n  is_default: true\n"
    (comfyui / "extra_model_paths.yaml").write_text(f"{base}  insightface: |\n    nothing\n    insightface\n")
    assert [finding.level for finding in examined(Places.of_comfyui(comfyui))] == ["ok"] * 4


def test_the_order_of_further_folders(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """ComfyUI appends them, or puts them first where the section says so; the pack puts its own folder last."""
    monkeypatch.setenv("MY_MODELS", str(tmp_path))
    (comfyui / "extra_model_paths.yaml").write_text(
        "one:\n  base_path: $MY_MODELS\n  instantid: a\n  insightface: a\n  controlnet: a\n"
        "two:\n  base_path: ${MY_MODELS}\n  instantid: b\n  insightface: b\n  controlnet: |\n    b\n    a\n"
        "three:\n  is_default: true\n  base_path: ..\n  instantid: c\n  controlnet: c\n"
    )
    places, models = Places.of_comfyui(comfyui), comfyui / "models"
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    assert places.adapters == (c, a, b, models / "instantid")
    assert places.faces == (models / "insightface", b, a)
    assert places.identitynets == (c, models / "controlnet", a, b)


def test_a_kind_without_folders_loses_no_other(comfyui: Path, tmp_path: Path):
    (comfyui / "extra_model_paths.yaml").write_text(f"mine:\n  base_path: {tmp_path}\n  loras:\n  instantid: a\n")
    (found,) = troubles(Places.of_comfyui(comfyui))
    assert "loras in mine" in found.found
    assert "does not start" in found.found
    assert Places.of_comfyui(comfyui).adapters[0] == tmp_path / "a"


@pytest.mark.parametrize("text", ["mine: [1", "mine: 3", "- a"])
def test_further_folders_that_cannot_be_read_are_said(comfyui: Path, text: str):
    (comfyui / "extra_model_paths.yaml").write_text(text)
    (found,) = troubles(Places.of_comfyui(comfyui))
    assert found.level == "note"
    assert "extra_model_paths.yaml" in found.found
