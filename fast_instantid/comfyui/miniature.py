"""The node that lets anybody try InstantID without downloads."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import miniature
from ..errors import ModelFileError
from ..faces.pack import find_pack
from ..images import load_image
from . import sockets
from .memory import ManagedAdapter
from .models import analyzer_of


class InstantIDMiniature:
    """Every model that InstantID needs, and somebody to draw."""

    DESCRIPTION = (
        "All models that InstantID needs, in a few megabytes that come with this pack, and a portrait: to try "
        "InstantID without a download. They know drawn portraits of 128 x 128 pixels and nothing else."
    )
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", "CONTROL_NET", "INSTANTID", "FACEANALYSIS", "IMAGE")
    RETURN_NAMES = (*RETURN_TYPES[:-1], "portrait")
    FUNCTION = "load"
    CATEGORY = "InstantID"

    @classmethod
    def INPUT_TYPES(cls) -> sockets.Inputs:
        try:
            return sockets.miniature(list(_people()))
        except ModelFileError:  # VALIDATE_INPUTS tells it to whoever uses the node
            return sockets.miniature([])

    @classmethod
    def VALIDATE_INPUTS(cls, portrait: str | None) -> bool | str:
        try:
            people = _people()
        except ModelFileError as error:
            return str(error)
        if portrait is not None and portrait not in people:  # None: a link, whose value is not known yet
            return f"there is no portrait {portrait!r}: choose one of {', '.join(people)}"
        return True

    @cached_property
    def _models(self) -> tuple[Any, ...]:
        """For as long as the host keeps this node, whichever portrait is chosen."""
        from . import from_diffusers  # see there why here

        files = miniature.files()
        return (
            from_diffusers.load_model(files.base),
            from_diffusers.load_clip(files.base),
            from_diffusers.load_vae(files.base / "vae"),
            from_diffusers.load_control_net(files.instantid / "ControlNetModel"),
            ManagedAdapter.load(files.instantid / "ip-adapter.safetensors", device="cpu"),
            analyzer_of(find_pack(files.pack), "auto"),
        )

    def load(self, portrait: str) -> tuple[Any, ...]:
        pixels = np.array(load_image(_people()[portrait]))
        return (*self._models, torch.from_numpy(pixels).float().div(255).unsqueeze(0))


def _people() -> dict[str, Path]:
    """Portraits by names that stay, whatever the files are called."""
    return {f"person {i}": path for i, path in enumerate(miniature.files().portraits, start=1)}
