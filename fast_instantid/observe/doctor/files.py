"""Checks of the model files: found, complete, and of the right kind. All that is missing is one finding."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...sources import MODELS
from ..report import Finding
from . import base_files, face_files, instantid_files
from .places import Places, download, pip
from .versions import installed


@dataclass(frozen=True)
class _Kind:
    """A kind of model file."""

    name: str
    model: str  # its name for ``fast-instantid download``
    size: float  # GB to download
    look: Callable[[Places], Iterator[Finding]]  # yields nothing if there is no file of this kind
    by_hand: str  # the folder below ComfyUI's models, and the files for it


_FACE_FILES = "insightface/models/antelopev2: scrfd_10g_bnkps.onnx and glintr100.onnx"
_IDENTITYNET_FILE = "controlnet/instantid: ControlNetModel/diffusion_pytorch_model.safetensors"
_BASE_FILE = "checkpoints: an SDXL checkpoint, such as sd_xl_base_1.0.safetensors"
_KINDS = (
    _Kind("the face models", "antelopev2", 0.3, face_files.faces, _FACE_FILES),
    _Kind("InstantID's adapter", "instantid", 1.7, instantid_files.adapter, "instantid: ip-adapter.bin"),
    _Kind("the IdentityNet", "instantid", 2.5, instantid_files.identitynet, _IDENTITYNET_FILE),
    _Kind("an SDXL base model", "base", 6.9, base_files.base, _BASE_FILE),
)


def model_files(places: Places) -> Iterator[Finding]:
    """Check all kinds of model files."""
    missing: list[_Kind] = []
    for kind in _KINDS:
        findings = list(kind.look(places))
        yield from findings
        missing += [] if findings else [kind]
    if missing:
        everything = len(missing) == len(_KINDS)
        names, size = ", ".join(kind.name for kind in missing), sum(kind.size for kind in missing)
        folders = dict.fromkeys((*places.faces, *places.adapters, *places.identitynets, *places.bases))
        why = "Looked in "
        for folder in folders:
            may_not = os.path.exists(folder) and not os.access(folder, os.R_OK | os.X_OK)
            is_not = "" if os.path.exists(folder) else " (which does not exist)"
            why += f"{folder}{' (no permission to read it)' if may_not else is_not}, "
        why = f"{why[:-2]}."
        if places.host == "comfyui":
            lines = [f"{kind.by_hand} of huggingface.co/{MODELS[kind.model].repository}" for kind in missing]
            do = "\n".join([f"put into {places.models}, and press R in the browser:", *lines])
        else:
            models = () if everything else tuple(dict.fromkeys(kind.model for kind in missing))
            first = "" if "huggingface-hub" in installed() else f"{pip('install huggingface-hub')}, then: "
            do = f"{first}{download(places.models, *models)} (about {size:.1f} GB)\n"
            do += "or, if you have them, say where: --models, --pack, --instantid, --base, or $FAST_INSTANTID_MODELS"
        # In ComfyUI, a UNet without its checkpoint is usual.
        only_base = places.host == "comfyui" and missing == [_KINDS[-1]]
        text = "the model files are not here yet" if everything else f"not here yet: {names}"
        yield Finding("warning" if only_base else "broken", text, why, do)
    for text in places.notes:
        yield Finding("note", text, "Some folders that it names were not looked into.")
