"""Model folders in which all is well."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def _good_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.observe.doctor_models import write_models  # which loads diffusers, and most tests here do not

    return write_models(tmp_path_factory.mktemp("good") / "models")


@pytest.fixture
def models(_good_models: Path, tmp_path: Path) -> Path:
    """A models folder of the command line."""
    return Path(shutil.copytree(_good_models, tmp_path / "models"))


@pytest.fixture
def comfyui(models: Path, tmp_path: Path) -> Path:
    """A ComfyUI."""
    from tests.observe.doctor_models import write_checkpoint

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
