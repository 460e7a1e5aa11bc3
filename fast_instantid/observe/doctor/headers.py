"""Reading of configurations, and of the headers of weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...files import special_file
from ...weights import StateDict

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_MAX_DEPTH = 5

SDXL_WIDTH = 2048
NAMES_OF_WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 1280: "SDXL's refiner", SDXL_WIDTH: "SDXL"}


def text_width(tensors: StateDict) -> int | None:
    """Return the width of the tokens that cross-attention reads (see ``NAMES_OF_WIDTHS``); None without one."""
    keys = (tensor for name, tensor in tensors.items() if name.endswith("attn2.to_k.weight") and tensor.ndim == 2)
    return next((key.shape[1] for key in keys), None)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError if the file holds anything else."""
    if special := special_file(path):
        raise ValueError(special)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def files_below(folders: Iterable[Path], suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files with these suffixes, up to five folders deep. Links are followed, hidden folders left out."""
    for folder in folders:
        for path in _below(folder, _MAX_DEPTH):
            if path.suffix.lower() in suffixes and os.path.isfile(path):
                yield path


def _below(folder: Path, depth: int, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Yield files. A link to a folder around it is not followed."""
    try:
        stat, entries = os.stat(folder), sorted(folder.iterdir())
    except OSError:
        return
    here = (stat.st_dev, stat.st_ino)
    for path in entries if here not in above else ():
        if not os.path.isdir(path):  # which does not raise, unlike Path's
            yield path
        elif depth and not path.name.startswith("."):
            yield from _below(path, depth - 1, above | {here})
