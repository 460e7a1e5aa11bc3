"""The command ``fast-instantid profile`` in a process of its own, for the tests of what it does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


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


def write_script(folder: Path, text: str) -> str:
    """The name of a Python program there, with a recorded stage before the text."""
    begin = "import os, signal, sys, time\nfrom fast_instantid.recorder import stage\nwith stage('first'): pass\n"
    (folder / "program.py").write_text(begin + text)
    return "program.py"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".py", ".png"))
