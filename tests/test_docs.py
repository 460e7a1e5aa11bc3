"""The examples of README and documentation run as they stand there, on the miniature; and the site builds strictly."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fast_instantid import cli, miniature
from fast_instantid.pipelines import instantid
from fast_instantid.pipelines.profiles import PROFILES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
STEPS = 1
LORA = {"A": (1, 4, 3, 3), "B": (64, 1, 1, 1)}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def pages_with(language: str, *words: str) -> list:
    found = [page for page in PAGES if any(word in block for block in blocks(page, language) for word in words or [""])]
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in found]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: Path) -> Path:
    """Where a reader runs them: photos of two people, and ``models/`` as ``download`` fills it, with the miniature."""
    files = miniature.files()
    for name, source in (("base", files.base), ("instantid", files.instantid), ("antelopev2", files.pack)):
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / name).symlink_to(source)
    lora = {f"unet.conv_in.lora_{part}.weight": torch.zeros(*size) for part, size in LORA.items()}
    path = tmp_path / "models" / PROFILES["lcm"].repository / PROFILES["lcm"].lora
    path.parent.mkdir(parents=True)
    save_file(lora, path)
    ada, bob = (Image.open(portrait).convert("RGB") for portrait in (files.portraits[0], files.portraits[4]))
    for name in ("anna.jpg", "anna2.jpg", "drawing.png"):
        ada.save(tmp_path / name)
    bob.save(tmp_path / "bob.jpg")
    group = Image.new("RGB", (256, 128))
    group.paste(ada, (0, 0))
    group.paste(bob, (128, 0))
    group.save(tmp_path / "group.jpg")
    (tmp_path / "photos").mkdir()
    group.save(tmp_path / "photos" / "group.jpg")
    (tmp_path / "jobs.csv").write_text("person,prompt,seed\nanna.jpg,a portrait,1\nbob.jpg,film noir,\n")
    for scene in blocks(page, "json") if page.stem == "scenes" else ():
        (tmp_path / "bar.json").write_text(small(scene))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAST_INSTANTID_MODELS", str(tmp_path / "models"))
    monkeypatch.setitem(instantid.DEFAULTS, "num_inference_steps", steps_for(page))
    monkeypatch.setattr(miniature, "STEPS", STEPS)
    monkeypatch.setattr("fast_instantid.faces.keypoints.sdxl_size", lambda photo, side=128: (128, 128))
    if page.stem == "scale":
        cli.main(["batch", "embed", "photos", "-o", "embeddings"])
    return tmp_path


def steps_for(page: Path) -> int:
    return 2 if page.stem == "small_faces" else STEPS  # a strength of 0.5 leaves half of them


def small(code: str, steps: int = STEPS) -> str:
    """An example at the miniature's size, with few steps: the words stay, SDXL's sizes go."""
    code = re.sub(r"num_inference_steps=\d+", f"num_inference_steps={steps}", code)
    return code.replace("1024", "256").replace("512", "128")


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_examples(page: Path, folder: Path):
    names: dict[str, object] = {"__name__": "example"}
    for block in blocks(page, "python"):
        exec(compile(small(block, steps_for(page)), page.name, "exec"), names)  # noqa: S102
    for picture in folder.glob("anna.png"):
        assert Image.open(picture).size == (128, 128)


@pytest.mark.slow
@pytest.mark.usefixtures("loaded_once")
@pytest.mark.parametrize("page", pages_with("sh", "fast-instantid"))
def test_the_shell_examples(page: Path, folder: Path):
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ").replace("*.jpg", "anna.jpg bob.jpg")
    for line in text.splitlines():
        command, *arguments = shlex.split(line, comments=True) or [""]
        if (
            command != "fast-instantid"
            or arguments[0] in ("watch", "serve")
            or "--show" in arguments
            or "--comfyui" in arguments
        ):
            continue  # watch needs a GPU, serve does not end; the others need a file or a ComfyUI of the reader's
        less = ["--steps", "1"] if "generate" in arguments or "demo" in arguments else []
        size = ["--size", "128x128"] if "generate" in arguments else []
        if arguments[0] == "detail":
            less = ["--steps", str(steps_for(page))]
        if arguments[0] == "download":
            arguments = [*arguments, "--offline"]
            less, expected = [], (1,)  # the miniature is no complete SDXL; nothing may be fetched in a test
        else:
            expected = (0, 1) if arguments[0] == "doctor" else (0,)
        assert cli.main([*arguments, *less, *size]) in expected, line


def test_there_are_examples():
    assert len(pages_with("python")) >= 5
    assert len(pages_with("sh", "fast-instantid")) >= 5


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_the_links_lead_somewhere(page: Path):
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text()):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}, heading


def test_the_messages_in_troubleshooting_are_those_of_the_code():
    sources = "\n".join(path.read_text() for path in (ROOT / "fast_instantid").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", sources)  # strings over several lines
    cells = re.findall(r"^\| ([^|]*`[^|]*) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    messages = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 20
    for message in messages:
        for part in filter(None, (part.strip() for part in message.split("…"))):
            assert part in code, message


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed: the site was not built")
def test_the_site_builds_strictly(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    front_door = (tmp_path / "reference" / "front_door" / "index.html").read_text()
    assert "from_pretrained" in front_door
    assert ":meth:" not in front_door
    outside = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', front_door)
    assert not outside, "the site loads something from another host"
