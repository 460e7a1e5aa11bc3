"""Nodes that load InstantID's adapter and the face networks."""

from __future__ import annotations

import logging
from pathlib import PureWindowsPath
from typing import Any

from ..faces import FaceAnalyzer
from ..identity import Adapter
from . import sockets
from .derived import Derivable
from .memory import ManagedAdapter
from .models import PROVIDERS, adapter_names, adapter_path, analyzer_of, find_face_pack
from .settings import follow_settings

logger = logging.getLogger("fast_instantid")


class InstantIDModelLoader:
    """Opens InstantID's adapter (ip-adapter.bin) from models/instantid. Nothing is moved to the GPU."""

    RETURN_TYPES = ("INSTANTID",)
    FUNCTION = "load_model"
    CATEGORY = "InstantID"
    SEARCH_ALIASES = ("instantid adapter", "ip-adapter.bin", "face id model")

    @classmethod
    def INPUT_TYPES(cls) -> sockets.Inputs:
        tooltip = "ip-adapter.bin of InstantX/InstantID, in models/instantid."
        return {"required": {"instantid_file": sockets.entry(adapter_names(), tooltip)}}

    @classmethod
    def VALIDATE_INPUTS(cls, instantid_file: str | None = None) -> bool | str:
        if cls.load_model is not InstantIDModelLoader.load_model:  # another pack's, which may have files elsewhere
            return True
        return sockets.checked(adapter_path, instantid_file)

    @classmethod
    def IS_CHANGED(cls, instantid_file: str | None = None, **_: Any) -> str:
        """Return the file's size and time, so that the node runs again for a new file."""
        if instantid_file is None or cls.load_model is not InstantIDModelLoader.load_model:
            return ""
        stat = adapter_path(instantid_file).stat()
        return f"{stat.st_size} bytes of {stat.st_mtime_ns}"

    def load_model(self, instantid_file: str) -> tuple[Adapter]:
        follow_settings()
        path = adapter_path(instantid_file)
        if path.name != PureWindowsPath(instantid_file).name:
            logger.info("no adapter is called %s: %s is used, as it is the only one", instantid_file, path)
        return (ManagedAdapter.load(path, device="cpu"),)


class InstantIDFaceAnalysis(Derivable):
    """Loads the face detector and recogniser (antelopev2) from models/insightface. insightface is not needed."""

    RETURN_TYPES = ("FACEANALYSIS",)
    FUNCTION = "load_insight_face"
    CATEGORY = "InstantID"
    SEARCH_ALIASES = ("insightface", "antelopev2", "face detection", "face recognition", "arcface")
    INPUT_TYPES = sockets.FACE_ANALYSIS_NODE

    @classmethod
    def VALIDATE_INPUTS(cls, provider: str | None = None) -> bool | str:
        if cls.load_insight_face is not InstantIDFaceAnalysis.load_insight_face:
            return True
        if provider is not None and provider not in PROVIDERS:
            return f"there is no provider {provider!r}: choose one of {', '.join(PROVIDERS)}"
        return sockets.checked(find_face_pack)

    def load_insight_face(
        self, provider: str, det_threshold: float = 0.5, det_size: str = sockets.DETECTION_SIZES[0]
    ) -> tuple[FaceAnalyzer]:
        sizes = None if det_size == sockets.DETECTION_SIZES[0] else [int(det_size)]
        return (analyzer_of(find_face_pack(), provider, det_threshold, sizes),)
