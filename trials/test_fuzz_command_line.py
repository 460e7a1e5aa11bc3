"""Odd arguments of the command line: an exit code and one message, and never a traceback."""

from __future__ import annotations

import contextlib
import io
import os
from itertools import pairwise
from pathlib import Path

import pytest

from fast_instantid import cli, load_image
from fast_instantid.miniature import files
from trials.bounded import run_forked
from trials.conftest import Trial

WORDS = (
    *(
        "",
        "-",
        "--",
        ".",
        "..",
        "/",
        "~",
        "~nobody-here/x",
        "\0",
        "a\0b",
        "\ud800",
        "\N{GRINNING FACE}",
        "%s%n",
        "x" * 5000,
    ),
    *("0", "-1", "1", "2", "7", "64", "320", "9" * 20, "1e400", "nan", "-inf", "0x10", "1_000", "\u0663"),
    *("64x64", "8x8", "0x0", "-8x8", "99999999999999999992x8", "16384x8", "64x", "x", "8x8x8"),
    *("cpu", "cpu:0", "cpu:7", "meta", "cuda", "cuda:99", "mps", "hpu", "lazy", "float16", "bfloat16", "int8"),
    *("photo.png", "out.png", "out.jpg", "out.gif", "none/out.png", "folder", "folder.png", "pipe", "pipe.png"),
    *("/dev/null", "/dev/zero", "/dev/full", "broken.png", "adapter.bin", "run.json", "watch.csv", "miniature"),
    *("up_blocks", "down_blocks.0", "nowhere", "true", "generate", "embed", "torch", "onnxruntime", "averages"),
)
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "embed": (
        ["--pack", "miniature", "photo.png"],
        ["-o", "--json", "--pack", "--device", "--cache", "--face-dtype", "--face-sizes", "--backend"],
    ),
    "keypoints": (["--pack", "miniature", "photo.png", "-o", "out.png"], ["--all", "--device", "--pack", "--cache"]),
    "generate": (
        ["--base", "miniature", "--photo", "photo.png", "--prompt", "a", "-o", "out.png", "--steps", "1"],
        ["--size", "--seed", "--scale", "--noise", "--guidance", "--device", "--dtype", "--layers", "--identity-range",
         "--identity-net-range", "--identity-net-every", "--negative-prompt", "--controlnet-strength", "--instantid"],
    ),
    "convert": (["adapter.bin"], ["-o", "--dtype", "--json"]),
    "profile": (["--show", "run.json"], ["-o", "--show", "--"]),
    "watch": (["--replay", "watch.csv"], ["--replay", "--interval"]),
    "download": (["--offline", "--to", "folder"], ["--to", "--offline"]),
    "doctor": (["--models", "folder", "--device", "cpu"], ["--models", "--pack", "--base", "--instantid", "--json"]),
}  # fmt: skip
COMMON = ("embed", "keypoints", "generate", "generate", "convert", "profile", "watch", "download")


@pytest.mark.parametrize("commands", [COMMON, ("doctor",)], ids=["most", "doctor"])
def test_odd_arguments_end_in_an_exit_code(trials, tmp_path, monkeypatch, commands):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAST_INSTANTID_MODELS", "models")
    portrait = load_image(files().portraits[0])

    def prepare() -> None:
        for name in ("folder", "folder.png"):
            Path(name).mkdir(exist_ok=True)
        for name in ("pipe", "pipe.png"):
            if not Path(name).exists():
                os.mkfifo(name)
        Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        portrait.save("photo.png")
        for name in ("adapter.bin", "run.json", "watch.csv"):
            Path(name).write_text("{}")
        Path("out.png").unlink(missing_ok=True)

    def trial(source: Trial) -> None:
        prepare()
        command = source.choice(commands)
        arguments, options = COMMANDS[command]
        arguments = [*arguments]
        for _ in range(source.choice((1, 1, 2, 4))):
            kind = source.randrange(3)
            if kind == 0 and arguments:
                arguments[source.randrange(len(arguments))] = source.choice(WORDS)
            elif kind == 1:
                arguments += [source.choice(options), *source.choices(WORDS, k=source.choice((0, 1, 1, 1, 2)))]
            elif arguments:
                del arguments[source.randrange(len(arguments))]
        # A pipe as the output is written when it has a reader, and /dev/full is full: both are the caller's choice.
        if any(word.startswith(("pipe", "/dev/full")) for option, word in pairwise(arguments) if option == "-o"):
            return
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                code = cli.main([command, *arguments])
            except SystemExit as error:
                code = error.code
            except BaseException as error:
                raise RuntimeError(f"{command} {arguments}"[:2000]) from error
        if code not in (0, 1, 2) or len(said.getvalue()) > 100_000 or (code and not said.getvalue()):
            raise RuntimeError(f"{command} {arguments}: {code}, {said.getvalue()[:2000]!r}")

    run_forked(trials, trial, 30)
