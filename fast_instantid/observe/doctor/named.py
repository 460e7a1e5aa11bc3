"""Folders that somebody named: there, folders at all, and not one level off."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ...download import MODELS
from .places import Places, download
from .report import Finding

_WHY = "Files of models are looked for there."
_OPTIONS = {"antelopev2": "--pack", "instantid": "--instantid", "base": "--base"}


def misnamed(places: Places) -> Iterator[tuple[Path, Finding]]:
    """What is wrong with a name, and the path for which nothing else need be said."""
    for name, path in places.named:
        if not any(folder.is_relative_to(path) for folder in places.model_folders):
            continue  # other options say where to look instead
        kind = "file or folder" if name == "--base" else "folder"
        if not _exists(path) and not (name == "--base" and _may_be_of_hub(path)):
            do = "check the spelling"
            if places.host == "diffusers" and path == places.models:
                do += f"; if it is yet to be made: {download(path)} (about 11.4 GB)"
            yield path, Finding("broken", f"there is no {kind} {path}, which {name} names", _WHY, do)
        elif name != "--base" and os.path.isfile(path):
            text = f"{path}, which {name} names, is a file, and a folder is needed"
            yield path, Finding("broken", text, _WHY, f"give the folder of the model files{_not_a_photo(name)}")
    model = _held_directly(places.models) if places.host == "diffusers" else None
    if model is not None and any(folder.is_relative_to(places.models) for folder in places.model_folders):
        yield places.models, _too_deep(places, model)


def _too_deep(places: Places, model: str) -> Finding:
    folder = places.models
    name = next((name for name, path in places.named if path == folder), "")
    if folder.name == model:
        do = f"give the folder around it: {folder.absolute().parent}"
    else:
        do = f"move its content into {folder / model}, or name it with {_OPTIONS[model]}"
    return Finding(
        "broken",
        f"{folder} is {model} itself{f', and {name} should name the folder around it' if name else ''}",
        f"Looked for in a folder of models: {', '.join(MODELS)}, each in a folder of that name.",
        do,
    )


def _held_directly(folder: Path) -> str | None:
    """The one of ``MODELS`` whose files lie in a folder that should hold folders of models."""
    try:
        names = set(os.listdir(folder))
    except OSError:
        return None
    if names & MODELS.keys():
        return None
    if any(name.lower().endswith(".onnx") for name in names):
        return "antelopev2"
    if names & {"ip-adapter.bin", "ip-adapter.safetensors", "ControlNetModel"}:
        return "instantid"
    return "base" if "model_index.json" in names else None


def _exists(path: Path) -> bool:
    """Also where this process may not look, which is said elsewhere."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def _may_be_of_hub(path: Path) -> bool:
    return not path.is_absolute() and len(path.parts) == 2


def _not_a_photo(name: str) -> str:
    return " (antelopev2), and not a photo" if name == "--pack" else ""
