"""Folders that somebody named wrongly, and files that lie beside where they belong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from fast_instantid import cli
from fast_instantid.observe.doctor import Places
from tests.observe.doctor_models import trouble, troubles, write_checkpoint


def broken_model_file(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, str]:
    """The one finding about model files that is not "ok"."""
    assert cli.main(["doctor", "--json", *options]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    (found,) = [f for f in findings if f["topic"] == "Model files" and f["level"] != "ok"]
    assert found["level"] == "broken"
    assert found["why"]
    assert found["do"]
    return found


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = broken_model_file(capsys, "--models", str(tmp_path / "modles"))
    assert found["found"] == f"--models names {tmp_path / 'modles'}, which is not a folder"
    assert found["do"].startswith("check the spelling")


def test_a_variable_that_names_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAST_INSTANTID_MODELS", str(tmp_path / "gone"))
    assert "FAST_INSTANTID_MODELS" in broken_model_file(capsys)["found"]


def test_the_usual_folder_need_not_be_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("FAST_INSTANTID_MODELS", raising=False)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    assert broken_model_file(capsys)["found"] == "the model files are not here yet"


def test_an_option_that_makes_another_unneeded(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    parts = [("--pack", "antelopev2"), ("--instantid", "instantid"), ("--base", "base")]
    options = [text for option, name in parts for text in (option, str(models / name))]
    assert cli.main(["doctor", "--models", str(tmp_path / "gone"), *options]) == 0
    assert "no folder" not in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--models", "--pack", "--instantid"])
def test_a_file_is_no_folder(models: Path, option: str, capsys: pytest.CaptureFixture[str]):
    photo = models / "anna.jpg"
    photo.write_bytes(b"\xff\xd8")
    others = [] if option == "--models" else ["--models", str(models)]
    found = broken_model_file(capsys, *others, option, str(photo))
    assert found["found"] == f"{option} names {photo}, which is not a folder"


def test_a_base_model_that_is_not_there(models: Path, capsys: pytest.CaptureFixture[str]):
    found = broken_model_file(capsys, "--models", str(models), "--base", str(models / "xl.safetensors"))
    assert found["found"] == f"--base names {models / 'xl.safetensors'}, which is not a file or folder"
    checkpoint = write_checkpoint(models / "xl.safetensors", 2048)
    assert cli.main(["doctor", "--models", str(models), "--base", str(checkpoint)]) == 0


@pytest.mark.parametrize("where", ["ipadapter/ip-adapter.bin", "controlnet/ip-adapter.bin", "ipadapter/InstantID.bin"])
def test_an_adapter_elsewhere_in_comfyui(comfyui: Path, where: str):
    models = comfyui / "models"
    (models / where).parent.mkdir(exist_ok=True)
    (models / "instantid" / "ip-adapter.bin").rename(models / where)
    found = trouble(Places.of_comfyui(comfyui))
    assert found.level == "broken"
    assert str(models / where) in found.found
    assert found.do == f"move {models / where} into {models / 'instantid'}"


def test_another_adapter_elsewhere_is_none(comfyui: Path):
    models = comfyui / "models"
    (models / "ipadapter").mkdir()
    (models / "instantid" / "ip-adapter.bin").unlink()
    (models / "ipadapter" / "ip-adapter.bin").write_bytes(b"PK")
    assert "huggingface.co" in trouble(Places.of_comfyui(comfyui)).do


def test_the_identitynet_in_the_folder_of_the_adapter(comfyui: Path):
    models = comfyui / "models"
    (models / "controlnet" / "instantid").rename(models / "instantid" / "ControlNetModel")
    found = troubles(Places.of_comfyui(comfyui))
    weights = models / "instantid" / "ControlNetModel" / "diffusion_pytorch_model.safetensors"
    assert [finding.level for finding in found] == ["note", "broken"]  # the first: the nodes offer it as an adapter
    assert found[1].do == f"move {weights} into {models / 'controlnet' / 'instantid'}, a new folder"


def test_the_two_in_each_others_place(comfyui: Path):
    models = comfyui / "models"
    adapter = models / "instantid" / "ip-adapter.bin"
    weights = models / "controlnet" / "instantid" / "diffusion_pytorch_model.safetensors"
    os.replace(adapter, weights.with_name(adapter.name))
    os.replace(weights, adapter.with_name(weights.name))
    do = [finding.do for finding in troubles(Places.of_comfyui(comfyui)) if finding.level == "broken"]
    assert do == [
        f"move {weights.with_name(adapter.name)} into {adapter.parent}",
        f"move {adapter.with_name(weights.name)} into {weights.parent}",
    ]


def test_an_identitynet_without_its_folder(models: Path):
    folder = models / "instantid"
    for path in sorted((folder / "ControlNetModel").iterdir()):
        shutil.move(path, folder)
    (folder / "ControlNetModel").rmdir()
    found = trouble(Places.of_shell(models))
    assert found.level == "broken"
    assert found.do == (
        f"move {folder / 'diffusion_pytorch_model.safetensors'} and {folder / 'config.json'} "
        f"into {folder / 'ControlNetModel'}, a new folder"
    )


@pytest.mark.parametrize("where", [".", "instantid/ControlNetModel"])
def test_an_adapter_one_folder_off(models: Path, where: str):
    shutil.move(models / "instantid" / "ip-adapter.bin", models / where)
    found = trouble(Places.of_shell(models))
    assert found.do == f"move {models / where / 'ip-adapter.bin'} into {models / 'instantid'}"
