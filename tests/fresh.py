"""Python processes that start in milliseconds: forks of one that has imported torch and numpy, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHELL = "import runpy; runpy.run_module('{}', run_name='__main__', alter_sys=True)"
"""Code that runs a module as ``python -m`` does."""
_SERVER = """
import json, os, signal, sys, numpy, torch
for line in sys.stdin:
    job = json.loads(line)
    if (child := os.fork()) == 0:
        signal.alarm(600)  # nothing takes so long
        for number, name in enumerate((os.devnull, *job["outputs"])):
            os.dup2(os.open(name, os.O_RDWR), number)
        os.chdir(job["cwd"])
        os.environ.clear()
        os.environ.update(job["env"])
        sys.argv[1:] = job["arguments"]
        exec(compile(job["code"], "<string>", "exec"), {"__name__": "__main__"})
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@cache
def _server() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def fresh_python(
    code: str, *arguments: str, cwd: Path = ROOT, env: Mapping[str, str] = os.environ, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run ``python -c code arguments``; ``check`` asserts that the exit code is 0."""
    server = _server()
    assert server.stdin
    assert server.stdout
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        for output in outputs:
            output.touch()
        job = {"code": code, "arguments": arguments, "cwd": str(cwd), "env": dict(env)}
        print(json.dumps({**job, "outputs": [str(output) for output in outputs]}), file=server.stdin, flush=True)
        code_of_exit = int(server.stdout.readline())
        printed, errors = (output.read_text() for output in outputs)
    assert not (check and code_of_exit), f"exit code {code_of_exit}: {errors}"
    return subprocess.CompletedProcess([sys.executable, "-c", code, *arguments], code_of_exit, printed, errors)
