"""The further folders that ComfyUI's ``extra_model_paths.yaml`` names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fast_instantid.observe.doctor import Places, machine
from tests.observe.doctor_models import examined, troubles


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


@pytest.mark.parametrize(("options", "said"), [("--disable-dynamic-vram", True), ("--lowvram", False), (None, False)])
def test_a_comfyui_with_dynamic_vram_is_known_by_its_start_options(comfyui: Path, options: str | None, said: bool):
    if options is not None:
        (comfyui / "comfy").mkdir()
        (comfyui / "comfy" / "cli_args.py").write_text(f'parser.add_argument("{options}", action="store_true")')
    notes = [*machine.dynamic_vram(Places.of_comfyui(comfyui))]
    assert [finding.level for finding in notes] == ["note"] * said
    assert all("--disable-dynamic-vram" in finding.do for finding in notes)


@pytest.mark.parametrize("text", ["mine: [1", "mine: 3", "- a"])
def test_further_folders_that_cannot_be_read_are_said(comfyui: Path, text: str):
    (comfyui / "extra_model_paths.yaml").write_text(text)
    (found,) = troubles(Places.of_comfyui(comfyui))
    assert found.level == "note"
    assert "extra_model_paths.yaml" in found.found
