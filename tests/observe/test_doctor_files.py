"""The model files: each trouble that people have with them is a finding, and one way out of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_faces import write_iresnet, write_landmark_net
from fast_instantid.observe.doctor import Places
from fast_instantid.observe.doctor.headers import files_below
from tests.observe.doctor_models import (
    IRESNET_50,
    LFS,
    PAGE,
    SMALL,
    examined,
    replace,
    trouble,
    troubles,
    write_controlnet,
)


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


def test_a_nested_pack_is_found(models: Path):
    pack = models / "antelopev2"
    (pack / "antelopev2").mkdir()
    for path in pack.glob("*.onnx"):
        path.rename(pack / "antelopev2" / path.name)
    assert not troubles(Places.of_shell(models))


@pytest.mark.parametrize("name", ["w600k_r50.onnx", "glintr100.onnx"])
def test_buffalo_is_another_person_under_any_name(models: Path, name: str):
    pack = models / "antelopev2"
    (pack / "glintr100.onnx").unlink()
    write_iresnet(pack / name, SMALL, IRESNET_50)
    found = trouble(Places.of_shell(models))
    assert found.level == "broken"
    assert name in found.found
    assert "another person" in found.why


def test_a_known_recogniser_of_another_pack_is_named(models: Path, monkeypatch: pytest.MonkeyPatch):
    path = models / "antelopev2" / "glintr100.onnx"
    known = {path.stat().st_size: (hashlib.sha256(path.read_bytes()).hexdigest(), "AuraFace's recogniser")}
    monkeypatch.setattr("fast_instantid.faces.pack._OTHER_RECOGNIZERS", known)
    found = trouble(Places.of_shell(models))
    assert found.level == "warning"
    assert f"{path} is AuraFace's recogniser, not antelopev2's" in found.found
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
    found = trouble(Places.of_shell(models))
    assert found.level == "broken"
    assert word in found.found
    assert found.found.count(str(path)) == 1
    assert str(path) in found.do
    assert "fast-instantid download antelopev2" in found.do


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
    path = models / "antelopev2" / "glintr100.onnx"
    assert do.startswith(f"delete {path}, then: fast-instantid download antelopev2")


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
        ("config.json", b"{", "not a configuration"),
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


# Folders


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
