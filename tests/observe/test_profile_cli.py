"""``fast-instantid profile`` from the shell: what it prints where, what it writes, and what is left when a run dies."""

from __future__ import annotations

import json
import os
import resource
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

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.fixture
def script(tmp_path: Path):
    """Text of a Python program -> its file, with a recorded stage before the text."""

    def write(text: str) -> str:
        begin = "import os, signal, sys, time\nfrom fast_instantid.recorder import stage\nwith stage('first'): pass\n"
        (tmp_path / "program.py").write_text(begin + text)
        return "program.py"

    return write


def start(folder: Path, *arguments: str, env: dict[str, str] | None = None, **options) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fast_instantid", "profile", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace", **options
    )


def shell(folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    process = start(folder, *arguments, **options)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".py", ".png"))


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


def test_two_runs_at_the_same_time_do_not_replace_each_other(tmp_path, script):
    program = script("")
    processes = [start(tmp_path, "--", program) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(names(tmp_path)) == 4


# --- scripts ---------------------------------------------------------------------------------------------------------


def test_a_script_runs_as_python_runs_it(tmp_path, script):
    (tmp_path / "beside.py").write_text("value = 5")
    program = script(
        "import beside\nif __name__ == '__main__':\n"
        "    with stage('main', nbytes=beside.value): print(sys.argv)\n    sys.exit(3)"
    )
    result = shell(tmp_path, "-o", "run", "--", program, "--option", "-o", "x")
    assert result.returncode == 3
    assert result.stdout == "['program.py', '--option', '-o', 'x']\n"
    profile = Profile.load(tmp_path / "run.json")
    assert [span.name for span in profile.spans] == ["first", "main"]
    assert profile.title == "program.py --option -o x"
    assert profile.ended_early == "exit code 3"


def test_a_script_that_raises_leaves_its_traceback_and_the_profile(tmp_path, script):
    result = shell(tmp_path, "-o", "run", "--", script("with stage('bad'): raise KeyError('boo')"))
    assert result.returncode == 1
    assert result.stderr.startswith('Traceback (most recent call last):\n  File "program.py", line 4')
    assert "KeyError: 'boo'" in result.stderr
    profile = Profile.load(tmp_path / "run.json")
    assert [span.name for span in profile.spans] == ["first", "bad"]
    assert profile.ended_early == "KeyError: 'boo'"
    assert "did not end as it should (KeyError: 'boo')" in result.stderr


def test_a_message_given_to_exit_is_shown(tmp_path, script):
    result = shell(tmp_path, "-o", "run", "--", script("sys.exit('that was it')"))
    assert result.returncode == 1
    assert "that was it" in result.stderr
    assert names(tmp_path) == ["run.html", "run.json"]


@pytest.mark.parametrize(
    ("number", "code", "why"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "ended from outside (SIGTERM)"),
        (signal.SIGHUP, 129, "ended from outside (SIGHUP)"),
    ],
)
def test_a_run_that_is_stopped_keeps_what_was_recorded(number, code, why, tmp_path, script):
    program = script(
        "with stage('outer'):\n    with stage('waits'):\n        print('ready', flush=True)\n        time.sleep(60)\n"
        "with stage('never'): pass"
    )
    began = time.monotonic()
    process = start(tmp_path, "-o", "run", "--", program)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 50
    assert process.returncode == code
    assert "Traceback" not in err
    profile = Profile.load(tmp_path / "run.json")
    assert profile.ended_early == why
    assert [span.name for span in profile.spans] == ["first", "outer", "waits"]
    assert names(tmp_path) == ["run.html", "run.json"]
    assert why in (tmp_path / "run.html").read_text("utf-8")


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


def test_a_full_disk_costs_the_profile_and_leaves_nothing_half_written(tmp_path, script):
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    result = shell(tmp_path, "-o", "run", "--", script("print('done')"), preexec_fn=small_files)
    assert result.returncode == 1
    assert result.stdout == "done\n"
    assert "run.json: the profile could not be written (File too large)" in result.stderr
    assert "whole run" in result.stderr
    assert names(tmp_path) == []


# --- saved ones ------------------------------------------------------------------------------------------------------


def test_saved_profiles_are_shown_and_compared(tmp_path, script):
    program = script("for _ in range(int(sys.argv[1])):\n    with stage('step'): time.sleep(0.01)")
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


def test_a_terminal_without_unicode_gets_ascii(tmp_path, script):
    shell(tmp_path, "-o", "run", "--", script("with stage('outer'), stage('inner'): pass"))
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
