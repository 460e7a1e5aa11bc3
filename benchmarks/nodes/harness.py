"""What the suites of nodes share: pictures, and sessions in processes of their own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
from torch import Tensor

from benchmarks.common import ROOT
from benchmarks.networks import ADAPTER, write_models
from benchmarks.sizes import SIZES, Size

LAYERS_ONLY = replace(SIZES["full"], channels=32, head_channels=8, pooled_width=64)
"""A size for suites that patch the UNet and never evaluate it. Its own channels do not matter."""
_noise = torch.Generator().manual_seed(0)


@dataclass(frozen=True)
class Bench:
    """Models in a folder, a ComfyUI, and the size that sessions use.

    Args:
        comfyui: a checkout.
        base: the folder that has ``models`` in it.
        adapter: name of its file.
    """

    comfyui: Path
    base: Path
    size: Size
    adapter: str = ADAPTER

    def session(self, job: str, pack: Path | None, pictures: Path, **options: Any) -> dict[str, Any]:
        """The result of one session of ``benchmarks.nodes.session`` in a new process.

        Raises:
            SystemExit: the session failed; the message has the end of its standard error.
        """
        options = {"job": job, "adapter": self.adapter, "device": "cpu", "compile": False, "detailed": False} | options
        options |= {"comfyui": str(self.comfyui), "base": str(self.base), "size": asdict(self.size)}
        options |= {"pack": None if pack is None else str(pack), "pictures": str(pictures)}
        with tempfile.TemporaryDirectory() as compiled:
            command = [sys.executable, "-m", "benchmarks.nodes.session", json.dumps(options)]
            # Python may keep what it compiled, as it does in a user's ComfyUI.
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": compiled, "PYTHONDONTWRITEBYTECODE": ""}
            finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if finished.returncode:
            name = "the limit" if pack is None else pack.name
            raise SystemExit(f"the session of {name} failed; nothing is reported. It said:\n{finished.stderr[-2000:]}")
        return json.loads(finished.stdout.splitlines()[-1])


@contextmanager
def bench(comfyui: Path, work: Path | None, size: Size = LAYERS_ONLY) -> Iterator[Bench]:
    """A folder with all models, kept in ``work`` if it is given."""
    full = size is LAYERS_ONLY or size.channels == SIZES["full"].channels
    adapter = ADAPTER if full else f"ip-adapter-{size.channels}.bin"
    with tempfile.TemporaryDirectory() as temporary:
        base = (work or Path(temporary)).resolve()
        print("making networks with random weights (up to 2.1 GB) ...", flush=True)
        write_models(base, adapter, SIZES["full"] if full else size)
        yield Bench(comfyui.resolve(), base, size, adapter)


def portrait() -> np.ndarray:
    """``(1024, 1024, 3)`` uint8 RGB: one face."""
    return cv2.resize(skimage.data.astronaut(), (1024, 1024), interpolation=cv2.INTER_CUBIC)


def group_photo() -> np.ndarray:
    """``(860, 1290, 3)`` uint8 RGB: the astronaut six times, once closer than the others."""
    far, near = (slice(20, 260), slice(100, 340)), (slice(60, 200), slice(160, 300))
    photos = [cv2.resize(skimage.data.astronaut()[place], (430, 430)) for place in (near, *[far] * 5)]
    return np.vstack([np.hstack(photos[:3]), np.hstack(photos[3:])])


def unseen(picture: np.ndarray, count: int = 1) -> Tensor:
    """``(count, H, W, 3)`` float32 in 0..1: the picture with noise of one level in 255, never the same twice.

    The noise is everywhere, because a face seen before costs us little whatever else the picture shows. The tensor
    lies in numpy's memory, as those of ComfyUI's LoadImage do (nodes.py).
    """
    noise = torch.randint(2, (count, *picture.shape), generator=_noise)
    eight_bit = (torch.from_numpy(picture) + noise).clamp(max=255).numpy()
    return torch.from_numpy(eight_bit.astype(np.float32) / np.float32(255))


def version_of(pack: Path) -> str:
    """The reference pack's version, with a hash of its code, since its commits share one number."""
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(pack.glob("*.py"))))
    [number] = re.findall(r'^version = "(.+)"', (pack / "pyproject.toml").read_text(), re.MULTILINE)
    return f"{number}, code {code.hexdigest()[:16]}"
