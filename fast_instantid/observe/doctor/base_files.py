"""The base model: SDXL, as a folder in diffusers' layout or as one checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import ModelFileError
from .headers import NAMES_OF_WIDTHS, SDXL_WIDTH, files_below, shapes_of, text_width
from .places import Places
from .report import Finding

_SDXL_ONLY = "InstantID was trained for SDXL, and fits no other base model."
_SDXL_NEEDED = "It should be the base model, which draws the picture."
_DOWNLOAD = "fast-instantid download base"


def base(places: Places) -> Iterator[Finding]:
    """Nothing where there is nothing."""
    if places.host == "comfyui":
        yield from _checkpoints(places)
        return
    for path in places.bases:
        if path.is_file():
            yield from _checkpoint(path)
        elif path.is_dir() and any(path.iterdir()):
            yield from _folder(path)
        elif (cached := _in_hub_cache(path)) is not None:
            yield from _folder(cached)


def _checkpoints(places: Places) -> Iterator[Finding]:
    """The first SDXL checkpoint; ComfyUI's users have others beside it, which is no trouble."""
    others: list[str] = []
    files = sorted(files_below(places.bases, (".safetensors",)), key=lambda path: "xl" not in path.name.lower())
    for path in files:
        try:
            width = text_width(shapes_of(path))
        except ModelFileError as error:
            others.append(str(error))
            continue
        if width == SDXL_WIDTH:
            yield Finding("ok", f"base model: {path}{f', among {len(files)} checkpoints' if len(files) > 1 else ''}")
            return
        others.append(f"{path.name}: {NAMES_OF_WIDTHS.get(width or 0, 'not SDXL')}")
    if others:
        yield Finding(
            "warning",
            f"no SDXL checkpoint in {' and '.join(map(str, places.bases))}: {'; '.join(others[:3])}"
            + (f", and {len(others) - 3} more" if len(others) > 3 else ""),
            f"{_SDXL_ONLY} Diffusion models that lie elsewhere were not looked at.",
            f"put an SDXL checkpoint into {places.bases[0]}",
        )


def _checkpoint(path: Path) -> Iterator[Finding]:
    try:
        width = text_width(shapes_of(path))
    except ModelFileError as error:
        yield Finding("broken", str(error), _SDXL_NEEDED, "name another one with --base")
        return
    if width == SDXL_WIDTH:
        yield Finding("ok", f"base model: {path}")
    else:
        kind = NAMES_OF_WIDTHS.get(width or 0, "no SDXL model")
        yield Finding("broken", f"{path}: this is {kind}", _SDXL_ONLY, "name an SDXL checkpoint with --base")


def _folder(folder: Path) -> Iterator[Finding]:
    index = folder / "model_index.json"
    again = f"{_DOWNLOAD}, which fetches what is missing"
    if not index.is_file():
        yield Finding(
            "broken", f"{folder}: no model_index.json, so no base model in diffusers' layout", _SDXL_NEEDED, again
        )
        return
    try:
        content: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        kind = str(content.get("_class_name"))
        parts = [name for name, value in content.items() if isinstance(value, list) and value[0] is not None]
    except (OSError, ValueError, AttributeError) as error:
        yield Finding("broken", f"{index} is damaged ({error})", _SDXL_NEEDED, f"delete it, then: {again}")
        return
    if not kind.startswith("StableDiffusionXL"):
        yield Finding("broken", f"{folder} is for {kind}, which is not SDXL", _SDXL_ONLY, "name SDXL with --base")
        return
    problems = [problem for part in parts for problem in _problems(folder / part)]
    for problem in problems:
        yield Finding("broken", problem, "The base model is not complete.", f"delete what is damaged, then: {again}")
    if not problems:
        yield Finding("ok", f"base model: {folder} ({', '.join(parts)})")


def _problems(part: Path) -> Iterator[str]:
    """What is wrong with one network, tokenizer or scheduler of a folder."""
    if not part.is_dir() or not any(part.iterdir()):
        yield f"{part} is missing"
        return
    if not (part / "config.json").is_file():  # tokenizers and schedulers have configurations of other names
        if part.name.startswith(("unet", "vae", "text_encoder")):
            yield f"{part}: config.json is missing"
        elif not any(part.glob("*.json")):
            yield f"{part}: its configuration is missing"
        return
    weights = [path for path in part.iterdir() if path.suffix in (".safetensors", ".bin")]
    if not weights:
        yield f"{part}: its weights are missing"
    for path in weights:
        try:
            shapes_of(path)
        except ModelFileError as error:
            yield str(error)


def _in_hub_cache(path: Path) -> Path | None:
    """The folder of a hub id such as ``stabilityai/stable-diffusion-xl-base-1.0``, if it was fetched before."""
    if path.is_absolute() or len(path.parts) != 2:
        return None
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path.as_posix(), local_files_only=True))
    except Exception:  # not installed, no such id, nothing there: to a doctor it is missing in each case
        return None
