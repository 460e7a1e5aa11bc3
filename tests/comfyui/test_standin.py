"""The stand-in against a real ComfyUI, so that results of the other tests hold for both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.comfyui.host_trace import trace

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def both(real_host: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    """The traces of the stand-in and of the real host."""
    file = tmp_path_factory.mktemp("trace") / "standin.pt"
    path = os.pathsep.join([str(ROOT / "tests" / "comfyui" / "standin"), str(ROOT)])
    command = [sys.executable, "-m", "tests.comfyui.host_trace", str(file)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, cwd=file.parent, check=True)
    return torch.load(file), trace()


def test_the_same_weights_give_the_same_latents(both):
    standin, real = both
    assert standin["parameters"] == real["parameters"]
    for name, latent in real["latents"].items():
        difference = (standin["latents"][name] - latent).abs().max() / latent.abs().max()
        assert difference < 1e-5, f"{name}: {difference:.1e}"


def test_wrappers_and_callbacks_are_called_in_the_same_order(both):
    standin, real = both
    assert standin["calls"] == real["calls"]
    assert len(set(real["calls"])) == 10


def test_patches_see_the_same_options_in_the_same_layers(both):
    standin, real = both
    assert standin["options"] == real["options"]
    assert len(real["options"]) == 3 * (10 + 1 + 2)
    for names, real_names in zip(standin["names"], real["names"], strict=True):
        assert set(names) <= set(real_names)  # newer hosts have more


def test_models_are_loaded_and_unloaded_alike(both):
    standin, real = both
    assert standin["management"] == real["management"]


def test_nodes_are_told_and_files_are_named_alike(both):
    standin, real = both
    assert standin["progress"] == real["progress"]
    assert len(real["progress"]) == 6
    assert standin["files"] == real["files"]
    assert real["files"][-1] == "refused"
