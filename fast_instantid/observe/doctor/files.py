"""Every model file: found, complete, of the right kind.

A newcomer has none of them. That is one finding with one way out, and not a finding for each file.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...download import MODELS, models_folder
from . import base_files, face_files, instantid_files
from .headers import WEIGHTS, copies, files_below, unreadable
from .named import misnamed
from .places import Places, download, pip, quoted
from .report import Finding
from .versions import installed


@dataclass(frozen=True)
class _Kind:
    """A kind of model file, and how to come by it."""

    name: str
    model: str
    """Its name for ``fast-instantid download``."""
    size: float
    """GB, to be downloaded."""
    by_hand: str
    """What to put where, below ComfyUI's models."""


def _hub(model: str) -> str:
    return f"huggingface.co/{MODELS[model].repository}"


_FACES = _Kind(
    "the face models",
    "antelopev2",
    0.3,
    f"insightface/models/antelopev2: scrfd_10g_bnkps.onnx and glintr100.onnx of {_hub('antelopev2')}",
)
_ADAPTER = _Kind("InstantID's adapter", "instantid", 1.7, f"instantid: ip-adapter.bin of {_hub('instantid')}")
_IDENTITYNET = _Kind(
    "the IdentityNet",
    "instantid",
    2.5,
    f"controlnet/instantid: ControlNetModel/diffusion_pytorch_model.safetensors of {_hub('instantid')}",
)
_BASE = _Kind(
    "an SDXL base model",
    "base",
    6.9,
    f"checkpoints: an SDXL checkpoint, such as sd_xl_base_1.0.safetensors of {_hub('base')}",
)


def model_files(places: Places) -> Iterator[Finding]:
    missing: list[tuple[_Kind, tuple[Path, ...]]] = []
    parts = (
        (_FACES, places.faces, face_files.faces),
        (_ADAPTER, places.adapters, instantid_files.adapter),
        (_IDENTITYNET, places.identitynets, instantid_files.identitynet),
        (_BASE, places.bases, base_files.base),
    )
    closed: dict[Path, list[str]] = {}
    wrong = dict(misnamed(places))
    yield from wrong.values()
    for kind, folders, look in parts:
        if any(folder.is_relative_to(path) for folder in folders for path in wrong):
            continue
        findings, not_seen = list(look(places)), list(unreadable(folders))
        found = any(finding.level == "ok" for finding in findings)
        if found or not not_seen:
            yield from findings
        if not findings and not not_seen:
            missing.append((kind, folders))
        for path in not_seen:
            closed.setdefault(path, []).extend([] if found else [kind.name])
    for path, not_found in closed.items():
        yield Finding(
            "broken" if not_found else "note",
            f"{path} cannot be read" + (f"; not found elsewhere: {', '.join(not_found)}" if not_found else ""),
            "This process may not see what is there, and so cannot load it.",
            f"let the user that runs this read it (on Linux and macOS, its owner can: chmod -R a+rX {quoted(path)})",
        )
    if missing:
        yield _missing(missing, places, len(missing) == len(parts))


def duplicates(places: Places) -> Iterator[Finding]:
    """Room on the disk, and the question of which one is used."""
    folders = [*places.faces, *places.adapters, *places.identitynets]
    for group in copies(files_below(dict.fromkeys(folders), (*WEIGHTS, ".onnx"))):
        size = group[0].stat().st_size
        yield Finding(
            "note",
            f"{len(group)} files have the same content: {', '.join(map(str, group))}",
            f"{size_text(size * (len(group) - 1))} of disk space could be free. (Sizes and samples of the content are "
            "equal; they were not compared whole.)",
            "keep the one that is used, and replace the others by links, or delete them",
        )


def unread_places(places: Places) -> Iterator[Finding]:
    for text in places.notes:
        yield Finding("note", text, "Not all folders of models that it names were looked into.")


CHECKS = (model_files, duplicates, unread_places)


def size_text(size: float) -> str:
    """``1.69 GB``, in units of a thousand as disks and downloads have them."""
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _missing(missing: list[tuple[_Kind, tuple[Path, ...]]], places: Places, everything: bool) -> Finding:
    looked = "; ".join(f"{kind.name} in {' and '.join(map(str, folders))}" for kind, folders in missing)
    found = (
        "the model files are not here yet" if everything else f"not here yet: {', '.join(k.name for k, _ in missing)}"
    )
    usual = all(folder.is_relative_to(places.models) for _, folders in missing for folder in folders)
    why = f"Looked in {places.models}." if everything and usual else f"Looked for: {looked}."
    room = _free(places.models)
    size = sum(kind.size for kind, _ in missing)
    if room is not None and room < size * 1e9:
        why += f" There are {size_text(room)} free on that disk; about {size:.1f} GB are needed."
    # A UNet without its checkpoint is usual in ComfyUI.
    only_base = places.host == "comfyui" and [kind for kind, _ in missing] == [_BASE]
    return Finding(
        "warning" if only_base else "broken",
        found,
        why,
        _how_to_get([kind for kind, _ in missing], places, everything, usual, size),
    )


def _how_to_get(kinds: list[_Kind], places: Places, everything: bool, usual: bool, size: float) -> str:
    if places.host == "comfyui":
        lines = [f"put into {places.models}, and press R in the browser:"]
        return "\n".join([*lines, *(f"{kind.by_hand} (about {kind.size} GB)" for kind in kinds)])
    models = [name for name in MODELS if any(kind.model == name for kind in kinds)]
    command = download(places.models, *(() if everything else models))
    first = "" if "huggingface-hub" in installed() else f"{pip('install huggingface-hub')}, then: "
    then = "" if usual else "; then leave out the options that name other folders"
    have = f"or, if you have them already, say where: --models, --pack, --instantid, --base{_or_variable(places)}"
    return f"{first}{command} (about {size:.1f} GB){then}\n{have}"


def _or_variable(places: Places) -> str:
    return " (for good: the environment variable FAST_INSTANTID_MODELS)" if places.models == models_folder() else ""


def _free(folder: Path) -> int | None:
    """Bytes free where a folder is, or will be made."""
    for existing in (folder, *folder.absolute().parents):
        try:
            return shutil.disk_usage(existing).free
        except OSError:
            continue
    return None
