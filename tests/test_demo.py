"""``make demo``: the first thing that a newcomer sees."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_faces import write_tiny_pack
from examples.tiny_sdxl import LAYER_CHANNELS, TOKEN_WIDTH, write_tiny_identitynet, write_tiny_sdxl

ROOT = Path(__file__).parent.parent


def demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / "portrait.py"), "--output", "out", "--steps", "1", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_runs_without_any_models_and_says_so(tmp_path):
    result = demo(tmp_path, "--size", "96", "64")
    assert result.returncode == 0, result.stderr
    assert "tiny, untrained" in result.stdout
    for stage in ("find the face", "recognise it", "make the identity", "sample 1 steps"):
        assert re.search(rf"{stage} +[\d.]+ ms +[\d.]+ ms", result.stdout), stage
    for name in ("keypoints", "portrait"):
        assert Image.open(tmp_path / "out" / f"{name}.png").size == (96, 64)
    assert Image.open(tmp_path / "out" / "keypoints.png").getextrema() != ((0, 0),) * 3
    assert (tmp_path / "out" / "demo.png").is_file()


def test_runs_on_models_that_are_given(tmp_path, astronaut):
    Image.fromarray(astronaut).save(tmp_path / "photo.png")
    write_tiny_pack(tmp_path / "pack")
    write_tiny_sdxl(tmp_path / "base")
    write_tiny_identitynet(tmp_path / "instantid" / "ControlNetModel")
    write_tiny_adapter(tmp_path / "instantid/ip-adapter.bin", channels=LAYER_CHANNELS, token_width=TOKEN_WIDTH)
    models = ["--pack", "pack", "--base", "base", "--instantid", "instantid"]
    result = demo(tmp_path, *models, "--photo", "photo.png", "--size", "64", "64")
    assert result.returncode == 0, result.stderr
    assert "untrained" not in result.stdout


def test_a_photo_without_a_face_is_an_error_in_one_line(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "blank.png")
    result = demo(tmp_path, "--photo", "blank.png")
    assert result.returncode == 1
    assert result.stderr.startswith("error: no face found")


@pytest.mark.parametrize("options", [["--pack", "x"], ["--base", "x", "--instantid", "y"]])
def test_models_come_together(tmp_path, options):
    result = demo(tmp_path, *options)
    assert result.returncode == 2
    assert "give all three or none" in result.stderr
