"""A process or thread of the suite "growth", which makes identities of new photographs beside others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fast_instantid import Cache, FaceAnalyzer, miniature
from fast_instantid.identity import Adapter

_models: list[Any] = []


def photographs(count: int) -> list[np.ndarray]:
    """``(512, 512, 3)`` uint8 each, of one face and never the same twice."""
    portrait = Image.open(miniature.files().portraits[0]).convert("RGB").resize((512, 512))
    noise = np.random.default_rng().integers(2, size=(count, 512, 512, 3), dtype=np.uint8)
    return [*(np.minimum(portrait, 254) + noise)]


def begin(faces: str, adapter: str, ready: Any) -> None:
    """Load the models, warm up, and wait until all others have."""
    torch.set_num_threads(1)
    _models[:] = FaceAnalyzer.load(faces, device="cpu", cache=Cache()), Adapter.load(adapter, "cpu", cache=Cache())
    work(photographs(1)[0])
    ready.wait()


def work(photo: np.ndarray) -> None:
    """Make the identity of a photograph."""
    analyzer, adapter = _models
    adapter.identity(analyzer.embed(photo))


def proportional_bytes(process: int | None, path: Path) -> list[int]:
    """Proportional set size of a process: that of a mapped file, and all else (proc(5), smaps)."""
    nbytes, is_file = [0, 0], False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        name, *more = line.split()
        if not name.endswith(":"):
            is_file = line.endswith(str(path))
        elif name == "Pss:":
            nbytes[not is_file] += 1024 * int(more[0])
    return nbytes
