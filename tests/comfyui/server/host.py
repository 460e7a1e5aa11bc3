"""A ComfyUI server of our own: its checkout is only read, everything it writes lies in one folder of ours."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
PACK_FOLDER = "Fast-InstantID-main"
"""Under this name the pack is cloned: no Python module could be called that. It has no space, because aiohttp, and with
it ComfyUI, serves no help pages from such a folder. The folders around it may have one."""
SHIPPED = ("__init__.py", "pyproject.toml", "fast_instantid", "example_workflows", "locales", "subgraphs", "web")


class ComfyServer:
    """``python main.py --cpu`` with ``base`` for models, input, output, user and custom nodes. A context manager.

    Args:
        comfyui: the checkout.
        base: a folder, filled by the caller with ``models`` and ``input``.
        packs: further folders to put into ``custom_nodes``, beside copies of this repository's pack and of the tiny
            models.
    """

    def __init__(self, comfyui: Path, base: Path, packs: list[Path]) -> None:
        self.comfyui, self.base = comfyui, base
        nodes = base / "custom_nodes"
        for part in SHIPPED:
            copy(ROOT / part, nodes / PACK_FOLDER / part)
        copy(HERE / "tiny_models", nodes / "tiny_models")
        copy(HERE.parent / "tiny.py", nodes / "tiny_models" / "tiny.py")
        copy(ROOT / "examples", base / "python" / "examples")  # apart, so that the pack cannot import itself by name
        for pack in packs:
            copy(pack, nodes / pack.name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ComfyServer:
        (self.base / "user").mkdir(exist_ok=True)
        command = [sys.executable, "main.py", "--cpu", "--port", str(self.port), "--base-directory", str(self.base)]
        command += ["--database-url", f"sqlite:///{self.base / 'user' / 'comfyui.db'}", "--disable-api-nodes"]
        if front_end := os.environ.get("FRONT_END_ROOT"):
            command += ["--front-end-root", front_end]
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONDONTWRITEBYTECODE": "1"}
        path = [str(self.base / "python"), os.environ.get("PYTHONPATH")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        with (self.base / "server.log").open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=self.comfyui, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + 180
        while True:
            try:
                self.get("/system_stats")
                return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.process.kill()
                    raise RuntimeError(f"ComfyUI did not start:\n{self.log()[-4000:]}") from None
                time.sleep(0.3)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)

    def log(self) -> str:
        return (self.base / "server.log").read_text(errors="replace")

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Raise ``RuntimeError`` with ComfyUI's message where it refuses."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path} is refused: {error.read().decode()}") from None
        return json.loads(text) if text else None

    def run(self, prompt: dict[str, Any], timeout_s: float = 600) -> list[Path]:
        """Run a prompt in API format and return the pictures that it saved."""
        entry = self.wait(self.queue(prompt), timeout_s)
        if entry["status"]["status_str"] != "success":
            raise RuntimeError(f"a node failed:\n{self.log()[-4000:]}")
        images = [image for output in entry["outputs"].values() for image in output.get("images", [])]
        return [self.base / image["type"] / image["subfolder"] / image["filename"] for image in images]

    def queue(self, prompt: dict[str, Any]) -> str:
        """Post a prompt in API format; returns its id."""
        return self.post("/prompt", {"prompt": prompt})["prompt_id"]

    def wait(self, prompt_id: str, timeout_s: float = 600) -> dict[str, Any]:
        """Return the history's entry of a prompt that has ended, with success or not."""
        deadline = time.monotonic() + timeout_s
        while not (history := self.get_json(f"/history/{prompt_id}")):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no result after {timeout_s} s:\n{self.log()[-4000:]}")
            time.sleep(0.2)
        return history[prompt_id]


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".git"))
    else:
        shutil.copy(source, target)
