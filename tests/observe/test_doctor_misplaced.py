"""Files in the wrong folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fast_instantid.observe.doctor import Places
from tests.observe.doctor_models import trouble, troubles


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


def test_an_identitynet_without_its_folder_is_found(models: Path):
    folder = models / "instantid"
    for path in sorted((folder / "ControlNetModel").iterdir()):
        shutil.move(path, folder)
    (folder / "ControlNetModel").rmdir()
    assert troubles(Places.of_shell(models)) == []


@pytest.mark.parametrize("where", [".", "instantid/ControlNetModel"])
def test_an_adapter_one_folder_off(models: Path, where: str):
    shutil.move(models / "instantid" / "ip-adapter.bin", models / where)
    found = trouble(Places.of_shell(models))
    assert found.do == f"move {models / where / 'ip-adapter.bin'} into {models / 'instantid'}"
