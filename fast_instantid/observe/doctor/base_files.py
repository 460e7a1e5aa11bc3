"""The base model: SDXL, as a folder in diffusers' layout or as one checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import ModelFileError
from .headers import NAMES_OF_WIDTHS, SDXL_WIDTH, files_below, shapes_of, text_width
from .places import Places
from .report import Finding

_SDXL_ONLY = "InstantID was trained for SDXL, and fits no other base model."
_SDXL_NEEDED = "It should be the base model, which draws the picture."
_NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
# What each library calls the weights of a network, in the order in which it takes them; {} is the variant.
_WEIGHTS = {
    "diffusers": (
        "diffusion_pytorch_model.safetensors.index{}.json",
        "diffusion_pytorch_model{}.safetensors",
        "diffusion_pytorch_model.bin.index{}.json",
        "diffusion_pytorch_model{}.bin",
    ),
    "transformers": (
        "model{}.safetensors",
        "model.safetensors.index{}.json",
        "pytorch_model{}.bin",
        "pytorch_model.bin.index{}.json",
    ),
}


def base(places: Places) -> Iterator[Finding]:
    """Nothing where there is nothing."""
    if places.host == "comfyui":
        yield from _checkpoints(places)
        return
    for path in places.bases:
        if os.path.isfile(path):
            yield from _checkpoint(path)
        elif _names_in(path):
            yield from _folder(path, places)
        elif (cached := _in_hub_cache(path)) is not None:
            yield from _folder(cached, places)


def _checkpoints(places: Places) -> Iterator[Finding]:
    """The first SDXL checkpoint; ComfyUI's users have others beside it, which is no trouble."""
    others: list[str] = []
    files = sorted(
        files_below(places.bases, (".safetensors", ".ckpt")),
        key=lambda path: ("xl" not in path.name.lower(), path.suffix == ".ckpt"),
    )
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


def _folder(folder: Path, places: Places) -> Iterator[Finding]:
    index = folder / "model_index.json"
    again = places.how_to_fetch("base", folder)
    if not os.path.isfile(index):
        yield Finding(
            "broken", f"{folder}: no model_index.json, so no base model in diffusers' layout", _SDXL_NEEDED, again
        )
        return
    try:
        content = _read(index)
        kind = str(content.get("_class_name"))
        libraries = {name: value[0] and str(value[0]) for name, value in content.items() if isinstance(value, list)}
    except (OSError, ValueError, IndexError) as error:
        yield Finding("broken", f"{index} is damaged ({error})", _SDXL_NEEDED, f"delete it, then: {again}")
        return
    if not kind.startswith("StableDiffusionXL"):
        yield Finding("broken", f"{folder} is for {kind}, which is not SDXL", _SDXL_ONLY, "name SDXL with --base")
        return
    width = _width(folder / "unet")
    if width != SDXL_WIDTH:
        model = NAMES_OF_WIDTHS.get(width, f"a model with tokens of width {width}")
        yield Finding("broken", f"{folder}: its UNet is of {model}", _SDXL_ONLY, "name SDXL with --base")
        return
    variants = _variants(folder / "unet")
    parts = {name: library for name, library in libraries.items() if library}  # null stands for one that it lacks
    problems = [f"{index} names no {name}" for name in _NETWORKS if name not in parts]
    problems += [text for part, library in parts.items() for text in _problems(folder / part, library, variants)]
    for problem in problems:
        yield Finding("broken", problem, "The base model is not complete.", f"delete what is damaged, then: {again}")
    if not problems:
        yield Finding("ok", f"base model: {folder} ({', '.join(parts)})")


def _problems(part: Path, library: str, variants: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with one network, tokenizer or scheduler of a folder."""
    names = _names_in(part)
    if not names:
        yield f"{part} is missing"
    elif part.name not in _NETWORKS:  # tokenizers and schedulers have configurations of other names
        if not any(name.endswith(".json") for name in names):
            yield f"{part}: its configuration is missing"
    elif "config.json" not in names:
        yield f"{part}: config.json is missing"
    else:
        try:
            _read(part / "config.json")
        except (OSError, ValueError) as error:
            yield f"{part / 'config.json'} is damaged ({error})"
        patterns = _WEIGHTS.get(library, ())
        possible = [pattern.format(variant) for variant in variants for pattern in patterns]
        used = next((name for name in possible if name in names), None)
        if used is not None:
            yield from _damages(part / used)
        elif patterns:
            yield f"{part}: its weights are missing ({' or '.join(possible[-4:])})"


def _damages(path: Path) -> Iterator[str]:
    """Of a file of weights, or of the files that an index names."""
    paths = [path]
    if path.suffix == ".json":
        try:
            paths = [path.parent / name for name in sorted(set(_read(path)["weight_map"].values()))]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            yield f"{path} is damaged ({error})"
            return
    for file in paths:
        try:
            shapes_of(file)
        except ModelFileError as error:
            yield str(error)


def _variants(unet: Path) -> tuple[str, ...]:
    """Which files our pipelines ask for: of the variant fp16 where fp16 is used, or where there are no others."""
    from ...placement import Placement

    weights = [name for name in _names_in(unet) if name.startswith("diffusion_pytorch_model")]
    half = [".fp16" in name for name in weights if name.endswith(".safetensors")]
    in_fp16 = str(Placement.resolve().dtype) == "torch.float16"
    return (".fp16", "") if any(half) and (in_fp16 or all(half)) else ("",)


def _width(unet: Path) -> int:
    """Of the tokens that it reads; SDXL's where it does not say, which is a trouble of its own."""
    try:
        width = _read(unet / "config.json").get("cross_attention_dim")
    except (OSError, ValueError):
        return SDXL_WIDTH
    return width if isinstance(width, int) else SDXL_WIDTH


def _read(path: Path) -> dict[str, Any]:
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def _names_in(folder: Path) -> list[str]:
    """Empty where there is no such folder."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _in_hub_cache(path: Path) -> Path | None:
    """The folder of a hub id such as ``stabilityai/stable-diffusion-xl-base-1.0``, if it was fetched before."""
    if path.is_absolute() or len(path.parts) != 2:
        return None
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path.as_posix(), local_files_only=True))
    except Exception:  # not installed, no such id, nothing there: to a doctor it is missing in each case
        return None
