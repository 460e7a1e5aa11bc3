"""What commands print where: names and numbers that a terminal cannot show, progress, broken outputs, interrupts."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fast_instantid import cli, miniature
from fast_instantid.cli import main
from fast_instantid.cli.output import print_json, report_step, timed
from fast_instantid.errors import FastInstantIDError

MODELS = "Zoë-模型-100%-\udce9"  # letters that encodings lack, what argparse formats, a byte that is not UTF-8
STRANGE = f"{MODELS}\x1b[31m"  # and a sequence that controls terminals


class Terminal(io.TextIOWrapper):
    """Strict in an encoding, as a redirected stdout is."""

    def __init__(self, encoding: str = "utf-8", tty: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", newline="")
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a strange name, with a portrait of a strange name and models whose folder has one."""
    folder = tmp_path / STRANGE
    folder.mkdir()
    shutil.copy(miniature.files().portraits[0], folder / f"{STRANGE}.png")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FAST_INSTANTID_MODELS", str(tmp_path / MODELS))
    monkeypatch.delenv("FAST_INSTANTID_CACHE", raising=False)
    return folder


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp932", "utf-8"])
def test_names_that_the_encoding_lacks_are_shown_as_escapes(folder, encoding, monkeypatch):
    out, err = Terminal(encoding), Terminal(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    photo, missing = f"{STRANGE}.png", f"{STRANGE}-missing.png"
    for command in ("embed", "keypoints", "generate", "download"):
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0
    assert "100%" in out.text(), "the folder of the models, in the help"
    assert main(["embed", photo, missing, "--pack", "miniature"]) == 1
    assert "1 face(s)" in out.text()
    assert "no such file" in err.text()
    assert main(["embed", photo, "--pack", "miniature", "--json"]) == 0
    assert json.loads(out.text().splitlines()[-1])["photos"][0]["photo"] == photo, "exact in JSON"
    assert main(["keypoints", photo, "--pack", "miniature", "-o", f"{STRANGE}-hint.png"]) == 0
    assert (folder / f"{STRANGE}-hint.png").exists()
    assert main(["doctor"]) == 1
    assert main(["download", "--offline"]) == 1
    assert main(["profile", "-o", f"{STRANGE}.json", "--", "embed", photo, "--pack", "miniature"]) == 0
    assert main(["profile", "--show", f"{STRANGE}.json"]) == 0
    with pytest.raises(SystemExit, match="2"):
        main(["embed", photo, f"--{STRANGE}"])
    assert "\x1b" not in out.text() + err.text(), "names control no terminal"
    assert (out.errors, err.errors) == ("strict", "strict"), "the streams stay the host's"


@pytest.mark.parametrize("option", ["--prompt", "--negative-prompt"])
def test_text_that_is_not_utf_8_is_named_for_that(folder, option, capsys):
    texts = [text for each in {"--prompt": "a", option: "caf\udce9"}.items() for text in each]
    arguments = ["--base", "miniature", "--photo", f"{STRANGE}.png", "-o", "out.png"]
    assert main(["generate", *arguments, *texts]) == 1
    assert "prompt holds a lone surrogate" in capsys.readouterr().err
    assert not Path("out.png").exists()


def test_models_whose_path_is_not_utf_8_are_named_for_that(folder, capsys):
    files, models = miniature.files(), folder.parent / MODELS
    models.mkdir()
    for name, source in (("antelopev2", files.pack), ("instantid", files.instantid), ("base", files.base)):
        (models / name).symlink_to(source)
    assert main(["embed", f"{STRANGE}.png"]) == 0
    command = ["generate", "--photo", f"{STRANGE}.png", "--prompt", "x", "--steps", "1", "--size", "64x64"]
    assert main([*command, "-o", f"{STRANGE}-out.png"]) == 1
    assert "its path is not valid UTF-8" in capsys.readouterr().err


def test_an_error_or_a_warning_starts_a_line_of_its_own(monkeypatch, folder):
    err = Terminal(tty=True)
    monkeypatch.setattr(sys, "stderr", err)

    def fail(options):
        report_step(1, 30)
        logging.getLogger("fast_instantid").warning("something")
        try:
            raise KeyError("a name")
        except KeyError:
            logging.getLogger("fast_instantid").exception("it failed")
        report_step(2, 30)
        raise FastInstantIDError("bad")

    monkeypatch.setattr(cli.doctor, "run", fail)
    assert main(["doctor"]) == 1
    lines = [line.rpartition("\r\x1b[K")[2] for line in err.text().split("\n")]
    assert lines[:3] == ["warning: something", "error: it failed: KeyError: 'a name'", "error: bad"]
    monkeypatch.setattr(cli.doctor, "run", lambda options: timed("a", {}).__enter__() or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])
    assert err.text().endswith("\r\x1b[K"), "a traceback follows"


def test_numbers_that_json_lacks_are_an_error(capsys, monkeypatch):
    monkeypatch.setattr(cli.doctor, "run", lambda options: print_json({"score": float("nan")}))
    assert main(["doctor"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "NaN or infinite" in printed.err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["doctor", "--help"], ["doctor", "--json"], ["doctor"]]
)
def test_a_full_disk_under_stdout_is_an_error(arguments, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(arguments) == 1
    assert capsys.readouterr().err == "error: output: No space left on device\n"


@pytest.mark.parametrize("arguments", [["--help"], ["doctor"]])
def test_a_reader_that_has_enough_is_told_nothing(arguments, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(arguments) == 1
    assert capsys.readouterr().err == ""


def test_a_terminal_that_is_gone_does_not_end_the_command(monkeypatch, tmp_path):
    for stderr in (None, open("/dev/full", "w", buffering=1)):  # noqa: SIM115
        monkeypatch.setattr(sys, "stderr", stderr)
        assert (
            main(
                [
                    "embed",
                    str(miniature.files().portraits[0]),
                    "--pack",
                    "miniature",
                    "-o",
                    str(tmp_path / "a.safetensors"),
                ]
            )
            == 0
        )


def test_an_interrupt_is_130_from_the_first_moment_on(monkeypatch, capsys):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for target in ("fast_instantid.cli.make_parser", "fast_instantid.cli.doctor.run"):
        with monkeypatch.context() as patch:
            patch.setattr(target, interrupt)
            assert main(["doctor"]) == 130
            assert capsys.readouterr().err == "interrupted\n"


def test_in_a_shell_of_another_encoding(folder):
    """The interpreter's own streams: nothing is left to fail at its end."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parent.parent)}
    for line, code in (("embed --help", 0), ("--version > /dev/full", 1), ("--help | true", 1), ("--version >&-", 0)):
        command = f'set -o pipefail; "{sys.executable}" -m fast_instantid {line}'
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
        assert (done.returncode, "Traceback" in done.stderr, "ignored" in done.stderr) == (code, False, False), line
