"""Checks of the base model: SDXL, as a folder in diffusers' layout or as one checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ...errors import ModelFileError
from ...kinds import NAMES_OF_WIDTHS, SDXL_WIDTH, text_width, why_not_sdxl
from ...sources import local_path, tokenizer_folder
from ...weights import network_files, read_tensors
from ..report import Finding
from .headers import files_below, read_json
from .places import Places

_SDXL_ONLY = "InstantID was trained for SDXL, and works with no other base model."
_INCOMPLETE = "The base model draws the picture, and is not complete."
_NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


def base(places: Places) -> Iterator[Finding]:
    """Check the base model. Yields nothing if there is no file of one."""
    if places.host == "comfyui":  # the first SDXL checkpoint; others beside it are fine
        files = files_below(places.bases, (".safetensors", ".ckpt"))
        others: list[str] = []
        for path in sorted(files, key=lambda path: ("xl" not in path.name.lower(), path.suffix == ".ckpt")):
            finding = _checkpoint(path, whole=False)
            if finding.level == "ok":
                yield finding
                return
            others.append(finding.found)
        if others:
            text = f"no SDXL checkpoint in {' and '.join(map(str, places.bases))}: {'; '.join(others[:3])}"
            why = f"{_SDXL_ONLY} Diffusion models in other folders were not looked at."
            yield Finding("warning", text, why, f"put an SDXL checkpoint into {places.bases[0]}")
        return
    for path in places.bases:
        with suppress(ModelFileError, OSError):  # the model is missing, or its folder cannot be read
            path = local_path(path, "SDXL")
        if os.path.isfile(path):
            yield _checkpoint(path, whole=True)
        elif _names_in(path):
            yield from _folder(path, places)


def _checkpoint(path: Path, whole: bool) -> Finding:
    """Examine a single file; ComfyUI can take from elsewhere what it lacks, diffusers needs the ``whole``."""
    do = "name an SDXL checkpoint with --base"
    try:
        tensors = read_tensors(path)
        width = text_width(tensors)
        problem = "" if width == SDXL_WIDTH else f"this is {NAMES_OF_WIDTHS.get(width or 0, 'not an SDXL model')}"
        if whole and (problem := why_not_sdxl(tensors)) == "":
            do = "fetch it"
            tokenizer_folder(path)
        if not problem:
            return Finding("ok", f"base model: {path}")
        problem = f"{path}: {problem}"
    except ModelFileError as error:
        problem = str(error)
    return Finding("broken", problem, _SDXL_ONLY, do)


def _folder(folder: Path, places: Places) -> Iterator[Finding]:
    index, again = folder / "model_index.json", places.how_to_fetch("base", folder)
    try:
        content = read_json(index)
        kind = str(content.get("_class_name"))
        parts = {name: str(value[0]) for name, value in content.items() if isinstance(value, list) and value[0]}
        unet = read_json(folder / "unet" / "config.json") if (folder / "unet" / "config.json").is_file() else {}
    except FileNotFoundError:
        yield Finding("broken", f"{index} is missing", _INCOMPLETE, again)
        return
    except (OSError, ValueError, IndexError) as error:
        yield Finding(
            "broken", f"{folder}: a configuration is damaged ({error})", _INCOMPLETE, f"delete it, then: {again}"
        )
        return
    width = unet.get("cross_attention_dim", SDXL_WIDTH)
    if not kind.startswith("StableDiffusionXL") or width != SDXL_WIDTH:
        width = width if isinstance(width, int) else 0
        model = NAMES_OF_WIDTHS.get(width, f"a model with tokens of width {width}") if width != SDXL_WIDTH else kind
        yield Finding("broken", f"{folder} is {model}, not SDXL", _SDXL_ONLY, "name SDXL with --base")
        return
    problems = [f"{index} names no {name}" for name in _NETWORKS if name not in parts]
    problems += [text for part in parts for text in _problems(folder / part)]
    for problem in problems:
        yield Finding("broken", problem, _INCOMPLETE, f"delete damaged files, then: {again}")
    if not problems:
        yield Finding("ok", f"base model: {folder} ({', '.join(parts)})")


def _problems(part: Path) -> Iterator[str]:
    """Yield the problems of one network, tokenizer or scheduler."""
    names = _names_in(part)
    if part.name not in _NETWORKS:  # the configurations of tokenizers and schedulers have other names
        if not any(name.endswith(".json") for name in names):
            yield f"{part} is missing"
        return
    try:
        read_json(part / "config.json")
    except FileNotFoundError:
        yield f"{part}: config.json is missing"
    except (OSError, ValueError) as error:
        yield f"{part / 'config.json'} is damaged ({error})"
    try:
        _, files = network_files(part)
        for file in files:
            read_tensors(file)
        if not files:
            yield f"{part}: its weights are missing"
    except ModelFileError as error:
        yield str(error)


def _names_in(folder: Path) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) and os.access(folder, os.R_OK) else []
