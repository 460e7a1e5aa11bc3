"""``fast-instantid profile`` from the shell: what it prints where, and what it writes."""

from __future__ import annotations

import json
import logging
import shlex
import signal
from pathlib import Path

import pytest
from PIL import Image

from fast_instantid import miniature
from fast_instantid.cache import shared_cache
from fast_instantid.cli import main
from fast_instantid.observe.profile import Profile
from fast_instantid.observe.table import branches

ROOT = Path(__file__).resolve().parents[2]
STEPS = 2


@pytest.fixture
def drawing() -> str:
    return str(miniature.files().portraits[0])


def calls(profile: Profile) -> dict[str, int]:
    found: dict[str, int] = {}
    todo = [("", profile.whole)]
    while todo:
        path, total = todo.pop()
        found[path] = total.calls
        todo += [(f"{path} > {name}".removeprefix(" > "), inner) for name, inner in total.inner.items()]
    return found


def test_generate_is_profiled_from_photo_to_picture(drawing, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared_cache().clear()  # of what other tests of this process computed
    command = ["generate", "--base", "miniature", "--photo", drawing, "--prompt", "x", "--steps", str(STEPS), "--json"]
    assert main(["profile", "-o", "run", "--", *command, "-o", "out.png"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["size"] == [128, 128]  # nothing else is printed there
    assert Image.open("out.png").size == (128, 128)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.png", "run.json"]

    profile = Profile.load("run.json")
    assert profile.tree() in printed.err
    assert profile.title.startswith(f"fast-instantid generate --base miniature --photo {shlex.quote(drawing)}")
    assert profile.ended_early == ""
    assert profile.about["torch"]
    expected = {
        "detect > network": 1,
        "recognise > align": 1,
        "identity > resample": 1,
        "identity > project": 1,
        "load pipeline": 1,
        "sampling > IdentityNet": STEPS,
        "sampling > UNet": STEPS,
        "sampling > UNet > identity branch": STEPS * 70,
        "sampling > VAE decode": 1,
        "save": 1,
    }
    assert expected.items() <= calls(profile).items()
    assert sum(total.self_time for _, total in branches(profile.whole)) == profile.duration

    assert main(["profile", "--show", "run.json"]) == 0
    assert capsys.readouterr().out == profile.tree() + "\n"
    assert main(["profile", "-o", "run", "--", *command, "-o", "other.png"]) == 1
    assert "this file exists" in capsys.readouterr().err
    assert not Path("other.png").exists()


def test_a_command_that_fails_keeps_its_exit_code_and_output(drawing, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["profile", "--", "embed", drawing, "missing.jpg", "--pack", "miniature", "--json"]) == 1
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["photos"]) == 2
    assert "error: missing.jpg: no such file" in printed.err
    (file,) = tmp_path.iterdir()
    profile = Profile.load(file)
    assert profile.ended_early == "exit code 1"
    assert "recognise" in calls(profile)


def test_a_command_that_crashes_is_kept_as_far_as_it_came(drawing, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fast_instantid.faces.FaceAnalyzer.detect", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["profile", "-o", "run.json", "--", "keypoints", drawing, "-o", "x.png", "--pack", "miniature"])
    assert Profile.load("run.json").ended_early == "ZeroDivisionError: division by zero"
    assert "find networks" in capsys.readouterr().err


def test_an_interrupted_command_is_kept_as_far_as_it_came(drawing, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fast_instantid.cli.output.report_step", lambda *_: signal.raise_signal(signal.SIGINT))
    command = ["generate", "--base", "miniature", "--photo", drawing, "--prompt", "x", "-o", "out.png"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        assert main(["profile", "-o", "run", "--", *command]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted" in capsys.readouterr().err
    profile = Profile.load("run.json")
    assert profile.ended_early == "interrupted"
    assert "sampling > UNet" in calls(profile)
    assert not Path("out.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --show, or a command after --: one of generate, embed,"),
        (["--"], "give --show, or a command"),
        (["--", "script.py"], "'script.py' cannot be profiled, only generate, embed, keypoints"),
        (["--", "profile", "--", "embed"], "'profile' cannot be profiled"),
        (["--show", "a.json", "--", "embed", "x"], "give --show, or a command"),
        (["--", "embed"], "the following arguments are required: PHOTO"),
    ],
)
def test_wrong_usage_says_what_is_possible(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["profile", *arguments])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "nowhere/run", "--", "embed", "x"], "there is no folder nowhere"),
        (["-o", "run.html", "--", "embed", "x"], "run.html: the name of the output must end in one of .json"),
        (["--show", "missing.json"], "missing.json: No such file"),
        (["--show", "."], ".: this is a folder"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["profile", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_programs_logging_is_undone_on_return(tmp_path):
    logger, host = logging.getLogger("fast_instantid"), logging.NullHandler()
    logger.addHandler(host)
    try:
        before = logger.handlers[:], logger.propagate
        main(["embed", str(tmp_path / "missing.jpg"), "--pack", "miniature"])
        assert (logger.handlers, logger.propagate) == before
    finally:
        logger.removeHandler(host)
