"""Fast InstantID: a photograph becomes an identity, and an identity becomes a picture, each computed once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from . import miniature
    from .attention import identity_attention
    from .cache import Cache
    from .errors import (
        BackendError,
        FastInstantIDError,
        ImageError,
        ModelFileError,
        NoFaceError,
        NotFiniteError,
        OfflineError,
    )
    from .faces import Face, FaceAnalyzer, draw_keypoints, keypoint_picture, largest
    from .identity import Adapter, Identity
    from .images import load_image
    from .people import Crop, Person, Pose, Scene, Subject
    from .pipelines import Approximations, InstantID, Sampling, detail, generate, load_pipeline, until_alike

# Imported on first use: importing the package costs nothing, and only pipelines needs diffusers.
_HOMES = {
    "attention": ("identity_attention",),
    "cache": ("Cache",),
    "errors": (
        *("BackendError", "FastInstantIDError", "ImageError", "ModelFileError"),
        *("NoFaceError", "NotFiniteError", "OfflineError"),
    ),
    "faces": ("Face", "FaceAnalyzer", "draw_keypoints", "keypoint_picture", "largest"),
    "identity": ("Adapter", "Identity"),
    "images": ("load_image",),
    "people": ("Crop", "Person", "Pose", "Scene", "Subject"),
    "pipelines": ("Approximations", "InstantID", "Sampling", "detail", "generate", "load_pipeline", "until_alike"),
}

__all__ = [
    "Adapter",
    "Approximations",
    "BackendError",
    "Cache",
    "Crop",
    "Face",
    "FaceAnalyzer",
    "FastInstantIDError",
    "Identity",
    "ImageError",
    "InstantID",
    "ModelFileError",
    "NoFaceError",
    "NotFiniteError",
    "OfflineError",
    "Person",
    "Pose",
    "Sampling",
    "Scene",
    "Subject",
    "__version__",
    "detail",
    "draw_keypoints",
    "generate",
    "identity_attention",
    "keypoint_picture",
    "largest",
    "load_image",
    "load_pipeline",
    "miniature",
    "until_alike",
]


def __getattr__(name: str) -> Any:
    home = "miniature" if name == "miniature" else next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{home}", __name__)
    value = globals()[name] = module if name == home else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
