"""The node InstantID Miniature: all models and a portrait, without a download."""

from __future__ import annotations

from contextlib import suppress
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
    """Try InstantID without a download: all its models in a few megabytes, and a portrait.

    They only know drawn portraits of 128 x 128 pixels.
    """

    RETURN_TYPES = ("MODEL", "CLIP", "VAE", "CONTROL_NET", "INSTANTID", "FACEANALYSIS", "IMAGE")
    RETURN_NAMES = (*RETURN_TYPES[:-1], "portrait")
    FUNCTION = "load"
    CATEGORY = "InstantID"
    SEARCH_ALIASES = ("face id demo", "try instantid")

    @classmethod
    def INPUT_TYPES(cls) -> sockets.Inputs:
        portraits: list[str] = []
        with suppress(ModelFileError):  # VALIDATE_INPUTS reports it
            portraits = [*_people()]
        tooltip = "The portrait to output. All are drawn people who do not exist, and none was trained on."
        return {"required": {"portrait": sockets.entry(portraits, tooltip)}}

    @classmethod
    def VALIDATE_INPUTS(cls, portrait: str | None) -> bool | str:
        if (problem := sockets.checked(_people)) is not True or portrait is None or portrait in _people():
            return problem
        return f"there is no portrait {portrait!r}: choose one of {', '.join(_people())}"

    @cached_property
    def _models(self) -> tuple[Any, ...]:
        """The outputs but the portrait, loaded once per instance of the node."""
        from . import from_diffusers  # imports host modules that other versions may lack

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
    """Portraits by stable names, which do not depend on the file names."""
    return {f"person {i}": path for i, path in enumerate(miniature.files().portraits, start=1)}
