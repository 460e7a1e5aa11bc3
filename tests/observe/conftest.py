"""Fixtures of several files here."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Generator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _a_terminal_that_can_interrupt_and_hang_up() -> Generator[None]:
    """Processes that a test starts would inherit what is ignored: SIGHUP under nohup, SIGINT behind a shell's ``&``."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if before[signal.SIGINT] == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def _good_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.observe.doctor_models import write_models  # which loads diffusers, and most tests here do not

    return write_models(tmp_path_factory.mktemp("good") / "models")


@pytest.fixture
def models(_good_models: Path, tmp_path: Path) -> Path:
    """A models folder of the command line in which all is well."""
    return Path(shutil.copytree(_good_models, tmp_path / "models"))


@pytest.fixture
def comfyui(models: Path, tmp_path: Path) -> Path:
    """A ComfyUI in which all is well."""
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
