"""What a file of weights is, from the names and shapes in its header: gigabytes are told apart in milliseconds."""

from __future__ import annotations

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
NAMES_OF_WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", SDXL_WIDTH: "SDXL"}


def files_below(folders: Iterable[Path], suffixes: tuple[str, ...]) -> Iterator[Path]:
    """All files with these suffixes, up to a depth; folders that cannot be read are left out. Links are followed."""
    for folder in folders:
        yield from _files_below(folder, suffixes, _MAX_DEPTH)


def _files_below(folder: Path, suffixes: tuple[str, ...], depth: int) -> Iterator[Path]:
    below: list[Path] = []
    with suppress(OSError):
        below = sorted(folder.iterdir())
    for path in below:
        if path.is_dir():
            if depth and not path.name.startswith("."):
                yield from _files_below(path, suffixes, depth - 1)
        elif path.suffix.lower() in suffixes:
            yield path


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
