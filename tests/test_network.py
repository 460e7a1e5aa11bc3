"""No network but in ``download``: every command in one process, watched by a hook and by a tracer of system calls."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fast_instantid import miniature
from tests.ldm_checkpoint import write_tiny_checkpoint

ROOT = Path(__file__).resolve().parent.parent
ALL_COMMANDS = """
import json, socket, sys
asked = []
quiet = ("socket.__new__", "socket.bind")  # urllib3 binds one to ::1 to see whether there is IPv6
sys.addaudithook(lambda event, _: asked.append(event) if event.startswith("socket.") and event not in quiet else None)
from fast_instantid.cli import main
checkpoint, base, photo, to = sys.argv[1:]
generate = ["generate", "--photo", photo, "--prompt", "x", "--steps", "1", "-o", to + "/out.png", "--base"]
codes = [main(command) for command in (
    ["embed", photo, "--pack", "miniature", "--backend", "onnxruntime", "--device", "cpu", "--cache", to + "/cache"],
    ["keypoints", photo, "-o", to + "/hint.png", "--pack", "miniature"],
    ["batch", "embed", photo, "-o", to + "/batch", "--pack", "miniature", "--device", "cpu"],
    [*generate, "somebody/something"],
    [*generate, "miniature"],
    ["demo", "--steps", "1", "--prompt", "x", "-o", to + "/demo.png"],
    ["download", "--offline", "--to", to + "/nothing"],
    ["convert", to + "/ip-adapter.safetensors"],
    ["doctor", "--base", checkpoint],
    ["watch", "-o", to + "/watch.csv", "--", sys.executable, "-c", ""],
    ["profile", "-o", to + "/profile.json", "--", "keypoints", photo, "-o", to + "/hint.png", "--pack", "miniature"],
)]
from fast_instantid.pipelines import load_pipeline
try:
    load_pipeline(checkpoint, None, "cpu")  # as SDXL's, which it is not
except Exception as error:
    codes.append(str(error))
load_pipeline(checkpoint, None, "cpu", config=base)
print(json.dumps([codes, asked, "onnxruntime" in sys.modules]))
sys.stdout.flush()
with socket.socket() as control:  # which both watchers must see
    control.connect_ex(("127.0.0.9", 9))
assert asked == ["socket.connect"]
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """``(exit codes, what Python's sockets were asked for, onnxruntime was imported, trace or None, home)``"""
    folder = tmp_path_factory.mktemp("network")
    base, checkpoint = write_tiny_checkpoint(folder)
    shutil.copy(miniature.files().instantid / "ip-adapter.safetensors", folder)
    home, trace = folder / "home", folder / "trace"
    home.mkdir()
    command = [sys.executable, "-c", ALL_COMMANDS]
    command += map(str, (checkpoint, base, miniature.files().portraits[0], folder))
    if shutil.which("strace"):
        command = [
            "strace",
            "-f",
            "-qq",
            "--seccomp-bpf",
            "-e",
            "trace=connect,sendto,sendmsg,sendmmsg",
            "-o",
            str(trace),
            *command,
        ]
    quiet = re.compile("HF_|ORT_|XDG_|TRANSFORMERS_")  # the machine's own settings would keep it silent
    environment = {name: value for name, value in os.environ.items() if not quiet.match(name)}
    environment |= {"HOME": str(home), "FAST_INSTANTID_MODELS": str(folder / "nothing"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return *json.loads(done.stdout.splitlines()[-1]), trace.read_text() if trace.exists() else None, home


def test_no_command_asks_for_a_connection(watched):
    codes, asked, has_onnxruntime, *_ = watched
    assert asked == []
    assert has_onnxruntime
    gpu = codes.pop(9)  # watch: 1 where there is none
    assert (codes, gpu in (0, 1)) == ([0, 0, 0, 1, 0, 0, 1, 0, 1, 0, codes[-1]], True)
    assert "another architecture, not of SDXL" in codes[-1]


def test_no_library_opens_a_socket_by_itself(watched):
    trace = watched[3]
    if trace is None:
        pytest.skip("strace is not installed: libraries outside Python were not watched")
    opened = [line for line in trace.splitlines() if "sa_family=AF_INET" in line]
    assert len(opened) == 1, "the control's connection alone:\n" + "\n".join(opened)
    assert "127.0.0.9" in opened[0]


def test_no_library_leaves_the_id_of_a_device(watched):
    written = [path for path in watched[4].rglob("*") if path.is_file()]
    assert [path for path in written if re.search("device|telemetry|microsoft", str(path), re.IGNORECASE)] == []
