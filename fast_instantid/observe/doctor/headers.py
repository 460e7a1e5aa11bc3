"""What a file of weights is, from the names and shapes in its header: gigabytes are told apart in milliseconds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

Shapes = Mapping[str, tuple[int, ...]]

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_MAX_DEPTH = 5
_SAMPLE = 64 << 10  # bytes; three of them are read of a file that may be a copy of another


def shapes_of(path: Path) -> Shapes:
    """Name -> shape of all tensors in a file, which is memory-mapped.

    Raises:
        ModelFileError: missing, empty, incomplete, or no weights; the message says what it is.
    """
    from ...weights import read_tensors

    return {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()}


def is_controlnet(shapes: Shapes) -> bool:
    """In diffusers' layout, which InstantID's has."""
    return "controlnet_cond_embedding.conv_in.weight" in shapes


def text_width(shapes: Shapes) -> int | None:
    """Of the tokens that cross-attention reads, see ``NAMES_OF_WIDTHS``; None where there is none."""
    widths = (shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight") and len(shape) == 2)
    return next(widths, None)


SDXL_WIDTH = 2048
NAMES_OF_WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 1280: "SDXL's refiner", SDXL_WIDTH: "SDXL"}


def files_below(folders: Iterable[Path], suffixes: tuple[str, ...]) -> Iterator[Path]:
    """All files with these suffixes, up to a depth; what cannot be read is left out. Links are followed."""
    for folder in folders:
        for path in _below(folder, _MAX_DEPTH):
            if path.suffix.lower() in suffixes and os.path.isfile(path):
                yield path


def unreadable(folders: Iterable[Path]) -> Iterator[Path]:
    """Of these folders, and of the folders and model files below them, those that this process may not read."""
    for folder in folders:
        try:
            os.stat(folder)
        except PermissionError:
            closed = (above for above in reversed(folder.absolute().parents) if not os.access(above, os.X_OK))
            yield next(closed, folder)
        except OSError:
            continue
        else:
            yield from (path for path in (folder, *_below(folder, _MAX_DEPTH)) if not _may_read(path))


def _may_read(path: Path) -> bool:
    """Always true of files that are no model files."""
    if not os.path.isdir(path):
        other = path.suffix.lower() not in (*WEIGHTS, ".onnx", ".json")
        return other or not os.path.isfile(path) or os.access(path, os.R_OK)
    try:
        os.scandir(path).close()
    except OSError:
        return False
    return os.access(path, os.X_OK)  # else there are names in it, and nothing behind them


def _below(folder: Path, depth: int, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Files and folders; hidden folders are left out, and links to a folder in which they lie lead nowhere."""
    try:
        stat, entries = os.stat(folder), sorted(folder.iterdir())
    except OSError:
        return
    here = (stat.st_dev, stat.st_ino)
    for path in entries if here not in above else ():
        if not os.path.isdir(path):  # which never raises, unlike Path's own
            yield path
        elif depth and not path.name.startswith("."):
            yield path
            yield from _below(path, depth - 1, above | {here})


def copies(paths: Iterable[Path]) -> list[list[Path]]:
    """Groups of files with the same size and the same start, middle and end; links to one file are one."""
    by_file: dict[tuple[int, int], Path] = {}
    for path in paths:
        with suppress(OSError):
            stat = path.stat()
            # Windows' older Pythons give no inode.
            by_file.setdefault((stat.st_dev, stat.st_ino) if stat.st_ino else (0, hash(path.resolve())), path)
    groups: dict[tuple[int, str], list[Path]] = {}
    sizes: dict[int, list[Path]] = {}
    for path in by_file.values():
        sizes.setdefault(path.stat().st_size, []).append(path)
    for size, same in sizes.items():
        for path in same if size and len(same) > 1 else ():
            with suppress(OSError):
                groups.setdefault((size, _sample(path, size)), []).append(path)
    return [group for group in groups.values() if len(group) > 1]


def _sample(path: Path, size: int) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        for start in (0, size // 2, max(size - _SAMPLE, 0)):
            file.seek(start)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
