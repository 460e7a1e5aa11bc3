"""The README's examples run as they stand there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_faces import write_tiny_pack
from examples.tiny_sdxl import LAYER_CHANNELS, TOKEN_WIDTH, write_tiny_identitynet, write_tiny_sdxl
from fast_instantid import Adapter, cli, miniature
from fast_instantid.pipelines import InstantID, Subject, load_pipeline

README_FOLDER = Path(__file__).parent.parent
README = (README_FOLDER / "README.md").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, astronaut: np.ndarray) -> Path:
    """Where a reader would run them: ``anna.jpg`` and ``models/``, as ``download`` fills it."""
    Image.fromarray(astronaut).resize((256, 256)).save(tmp_path / "anna.jpg")
    models = tmp_path / "models"
    write_tiny_pack(models / "antelopev2")
    write_tiny_sdxl(models / "base")
    write_tiny_identitynet(models / "instantid" / "ControlNetModel")
    write_tiny_adapter(models / "instantid" / "ip-adapter.bin", channels=LAYER_CHANNELS, token_width=TOKEN_WIDTH)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAST_INSTANTID_MODELS", str(models))
    return tmp_path


def test_the_python_example(folder, monkeypatch):
    # What it draws is a megapixel; the tiny networks take a tenth of the time at a tenth of the size.
    monkeypatch.setattr("fast_instantid.faces.keypoints.sdxl_size", lambda photo: (256, 192))
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {})  # noqa: S102
    assert Image.open(folder / "anna.png").size == (256, 192)


def test_the_regions_example(folder):
    [code] = re.findall(r"```py\n(.*?)```", README, re.DOTALL)
    pipe = load_pipeline("models/base", "models/instantid")
    adapter = Adapter.load("models/instantid/ip-adapter.bin")
    anna, bob = (adapter.identity(np.full(512, value, np.float32)) for value in (1, -1))
    names = {"torch": torch, "InstantID": InstantID, "Subject": Subject, "pipe": pipe, "anna": anna, "bob": bob}
    exec(code.replace("...", "attached = pipe.unet.attn_processors"), names)  # noqa: S102
    assert {type(processor).__name__ for processor in names["attached"].values()} > {"IdentityAttnProcessor"}


def test_the_shell_examples(folder):
    [block] = re.findall(r"## From the shell\n\n```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines():
        command, *arguments = shlex.split(line.replace("*.jpg", "anna.jpg"), comments=True)
        assert command == "fast-instantid"
        small = ["--size", "64x64", "--steps", "1"] if arguments[0] == "generate" else []
        assert cli.main([*arguments, *small]) == 0, line
    assert {"people.safetensors", "hint.png", "anna.png"} <= {path.name for path in folder.iterdir()}


def test_the_examples_of_the_miniature(tmp_path, monkeypatch):
    [block] = re.findall(r"## The miniature\n.*?```sh\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAST_INSTANTID_MODELS", "nowhere")
    shutil.copy(miniature.files().portraits[0], "drawing.png")
    for line in block.splitlines():
        command, *arguments = shlex.split(line)
        assert command == "fast-instantid"
        assert cli.main([*arguments, "--steps", "1"]) == 0, line
    assert {path.name for path in tmp_path.iterdir()} == {"drawing.png", "fast-instantid-demo.png", "out.png"}


def test_the_links_lead_somewhere():
    for target, heading in re.findall(r"\]\((?!https:)([^)#]+)(?:#([^)]+))?\)", README):
        path = Path(__file__).parent.parent / target
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            assert heading in {text.lower().replace(" ", "-") for text in headings}, f"{target} has no {heading}"


def test_the_tests_that_the_documents_name_are_there():
    root = Path(__file__).parent.parent
    files = {path.name: path.read_text() for path in (root / "tests").rglob("test_*.py")}
    named = 0
    docs = root / "docs"
    for document in [docs / "fidelity.md", docs / "findings.md", *(docs / "adr").glob("*.md")]:
        file = ""
        for name, test in re.findall(
            r"`(?:tests/)?(?:comfyui/)?(test_\w+\.py|…)?(?:::(test_\w+))?`", document.read_text()
        ):
            file = name if name.endswith(".py") else file
            if name or test:
                assert file in files, f"{document.name} names {name}"
                assert not test or f"def {test}(" in files[file], f"{document.name} names {file}::{test}"
                named += 1
    assert named > 30


def test_the_make_targets_exist():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_the_stages_in_the_documentation_are_those_of_the_code():
    table = re.findall(r"^\| (`.+?) \|", (README_FOLDER / "docs" / "observe.md").read_text(), re.MULTILINE)
    named = {name for cell in table for name in re.findall(r"`([^`]+)`", cell)}
    sources = "\n".join(path.read_text() for path in (README_FOLDER / "fast_instantid").rglob("*.py"))
    told = set(re.findall(r"\bstage\(\"([^\"]+)\"", sources))
    hooked = {"IdentityNet", "ControlNet", "UNet", "VAE encode", "VAE decode", "text encoder"}
    assert named == told | hooked
