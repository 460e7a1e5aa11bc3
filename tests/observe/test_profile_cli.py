"""``fast-instantid profile`` from the shell: what it prints where, and what it writes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_faces import write_tiny_pack
from examples.tiny_sdxl import LAYER_CHANNELS, TOKEN_WIDTH, write_tiny_identitynet, write_tiny_sdxl
from fast_instantid.observe.profile import Profile
from fast_instantid.observe.stages import StageTotal
from tests.observe.profile_command import names, shell, start, write_script

STEPS = 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder as ``download`` would fill it, with tiny networks."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_pack(folder / "antelopev2")
    write_tiny_sdxl(folder / "base")
    write_tiny_identitynet(folder / "instantid" / "ControlNetModel")
    write_tiny_adapter(folder / "instantid" / "ip-adapter.bin", channels=LAYER_CHANNELS, token_width=TOKEN_WIDTH)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory, astronaut: np.ndarray) -> str:
    path = tmp_path_factory.mktemp("photos") / "astronaut.png"
    Image.fromarray(astronaut).save(path)
    return str(path)


def by_path(profile: Profile) -> dict[str, StageTotal]:
    found: dict[str, StageTotal] = {}
    todo = [("", profile.totals.whole)]
    while todo:
        path, total = todo.pop()
        found[path] = total
        todo += [(f"{path} > {name}".removeprefix(" > "), inner) for name, inner in total.inner.items()]
    return found


# --- commands of ours ------------------------------------------------------------------------------------------------


def test_generate_is_profiled_from_photo_to_picture(models, photo, tmp_path):
    command = ["generate", "--photo", photo, photo, "--prompt", "x", "--steps", str(STEPS), "--size", "64x64", "--json"]
    environment = {"FAST_INSTANTID_MODELS": str(models), "HF_HUB_OFFLINE": "1"}
    result = shell(tmp_path, "-o", "run", "--", *command, "-o", "out.png", env=environment)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["size"] == [64, 64]  # nothing else is printed there
    assert Image.open(tmp_path / "out.png").size == (64, 64)
    assert names(tmp_path) == ["run.html", "run.json"]

    profile = Profile.load(tmp_path / "run.json")
    assert profile.tree() in result.stderr
    assert profile.title.startswith(f"fast-instantid generate --photo {photo}")
    assert profile.ended_early == ""
    assert profile.about["torch"]
    stages = by_path(profile)
    calls = {path: total.calls for path, total in stages.items()}
    assert (
        calls.items()
        >= {
            "decode": 2,
            "detect": 2,
            "detect > hash": 2,
            "detect > network": 1,
            "recognise": 1,
            "recognise > align": 1,
            "recognise > network": 1,
            "identity > resample": 1,
            "identity > project": 1,
            "load pipeline": 1,
            "sampling > IdentityNet": STEPS,
            "sampling > UNet": STEPS,
            "sampling > UNet > identity branch": STEPS * len(LAYER_CHANNELS),
            "sampling > VAE decode": 1,
            "save": 1,
        }.items()
    )
    whole = stages[""]
    assert sum(total.self_time for total in whole.walk()) == profile.duration
    assert (whole.facts["hits"], whole.facts["misses"]) == (1, 3)  # the first photo's faces are looked for twice
    assert stages["decode"].facts["nbytes"] == 2 * Path(photo).stat().st_size
    assert stages["sampling > UNet"].time < stages["sampling"].time < profile.duration
    page = (tmp_path / "run.html").read_text("utf-8")
    assert "identity branch" in page


def test_embed_keeps_its_exit_code_and_output(models, photo, tmp_path):
    pack = str(models / "antelopev2")
    result = shell(tmp_path, "--no-html", "--", "embed", photo, "missing.jpg", "--pack", pack, "--json")
    assert result.returncode == 1
    assert len(json.loads(result.stdout)["photos"]) == 2
    assert "error: missing.jpg: no such file" in result.stderr
    [file] = names(tmp_path)
    assert file.startswith("profile-")
    assert file.endswith(".json")
    profile = Profile.load(tmp_path / file)
    assert profile.ended_early == "exit code 1"
    assert "recognise" in by_path(profile)


def test_a_command_works_without_the_two_dashes(models, photo, tmp_path):
    pack = str(models / "antelopev2")
    result = shell(tmp_path, "-o", "run", "embed", photo, "--pack", pack, "-o", "out.safetensors")
    assert result.returncode == 0, result.stderr
    assert names(tmp_path) == ["out.safetensors", "run.html", "run.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a command after --, or --show, or --compare; a command is generate, embed,"),
        (["--"], "give a command after --"),
        (["--", "frobnicate"], "'frobnicate' cannot be profiled; a command is generate, embed, keypoints"),
        (["--", "profile", "--", "embed"], "'profile' cannot be profiled"),
        (["--show", "a.json", "--", "embed", "x"], "give a command after --, or --show, or --compare"),
        (["--compare", "a.json"], "expected 2 arguments"),
        (["--show", "a.json", "-o", "b", "--no-html"], "--no-html is for recording"),
        (["--compare", "a.json", "b.json", "--no-html"], "--no-html is for recording"),
        (["--", "embed"], "fast-instantid embed: error: the following arguments are required: PHOTO"),
    ],
)
def test_wrong_usage_says_what_is_possible(arguments, message, tmp_path):
    result = shell(tmp_path, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "missing.py"], "missing.py: there is no such Python script"),
        (["-o", "old", "--", "embed", "x"], "old.json: is there already; choose another name"),
        (["-o", "old.html", "--", "embed", "x"], "old.json: is there already"),
        (["-o", "nowhere/run", "--", "embed", "x"], "there is no folder nowhere"),
        (["-o", ".", "--", "embed", "x"], "this is a folder"),
        (["--show", "missing.json"], "missing.json: No such file"),
        (["--show", "."], ".: Is a directory"),
        (["--show", "old.json"], "old.json: JSON, but no trace"),
        (["--compare", "old.json", "missing.json"], "old.json: JSON, but no trace"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(arguments, message, tmp_path):
    (tmp_path / "old.json").write_text("{}")
    result = shell(tmp_path, *arguments)
    assert result.returncode == 1
    assert f"error: {message}" in result.stderr or message in result.stderr
    assert "no such file" not in result.stderr, "the command ran"
    assert "Traceback" not in result.stderr
    assert names(tmp_path) == ["old.json"]


@pytest.mark.slow
def test_our_commands_are_stopped_the_same_way(models, photo, tmp_path):
    command = ["generate", "--photo", photo, "--prompt", "x", "--steps", "1000", "--size", "64x64", "-o", "out.png"]
    process = start(tmp_path, "-o", "run", "--", *command, env={"FAST_INSTANTID_MODELS": str(models)})
    time.sleep(15)  # reading models takes some of it, and a thousand steps much more
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in err
    profile = Profile.load(tmp_path / "run.json")
    assert profile.ended_early == "interrupted"
    assert profile.spans


# --- saved ones ------------------------------------------------------------------------------------------------------


def test_saved_profiles_are_shown_and_compared(tmp_path):
    program = write_script(tmp_path, "for _ in range(int(sys.argv[1])):\n    with stage('step'): time.sleep(0.01)")
    for name, steps in (("before", "4"), ("after", "2")):
        assert shell(tmp_path, "-o", name, "--no-html", "--", program, steps).returncode == 0
    result = shell(tmp_path, "--show", "before.json")
    assert result.returncode == 0
    assert result.stdout == Profile.load(tmp_path / "before.json").tree() + "\n"
    result = shell(tmp_path, "-o", "both", "--compare", "before.json", "after.json")
    assert result.returncode == 0, result.stderr
    [line] = [line for line in result.stdout.splitlines() if "step" in line]
    assert "faster" in line
    assert "4 → 2" in line
    assert "warning: The commands differ: 'program.py 4' and 'program.py 2'." in result.stdout
    assert "written: both.html" in result.stderr
    assert "Before and after" in (tmp_path / "both.html").read_text("utf-8")
    result = shell(tmp_path, "-o", "both.html", "--compare", "before.json", "after.json")
    assert result.returncode == 1
    assert "both.html: is there already" in result.stderr


def test_a_terminal_without_unicode_gets_ascii(tmp_path):
    shell(tmp_path, "-o", "run", "--", write_script(tmp_path, "with stage('outer'), stage('inner'): pass"))
    result = shell(tmp_path, "--show", "run.json", env={"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
    assert "|  `- inner" in result.stdout


def test_help_does_not_wait_for_torch():
    code = (
        "import atexit, sys, fast_instantid.cli as cli\natexit.register(lambda: print('torch' in sys.modules))\n"
        "cli.main(['profile', '--help'])"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed.endswith("False\n")
    assert "example:\n  fast-instantid profile -- generate" in printed
