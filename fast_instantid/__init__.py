"""Fast InstantID: a photograph becomes an identity, and an identity becomes a picture, each computed once."""

from __future__ import annotations

from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from . import miniature as miniature
    from .attention import identity_attention as identity_attention
    from .cache import Cache as Cache
    from .errors import (
        BackendError as BackendError,
        FastInstantIDError as FastInstantIDError,
        ImageError as ImageError,
        ModelFileError as ModelFileError,
        NoFaceError as NoFaceError,
        NotFiniteError as NotFiniteError,
        OfflineError as OfflineError,
    )
    from .faces import (
        Face as Face,
        FaceAnalyzer as FaceAnalyzer,
        draw_keypoints as draw_keypoints,
        keypoint_picture as keypoint_picture,
        largest as largest,
    )
    from .identity import Adapter as Adapter, Identity as Identity
    from .images import load_image as load_image
    from .people import Crop as Crop, Person as Person, Pose as Pose, Scene as Scene, Subject as Subject
    from .pipelines import (
        Approximations as Approximations,
        InstantID as InstantID,
        Sampling as Sampling,
        detail as detail,
        generate as generate,
        load_pipeline as load_pipeline,
        until_alike as until_alike,
    )

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

__all__ = sorted(["__version__", "miniature", *chain(*_HOMES.values())])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    home = "miniature" if name == "miniature" else next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{home}", __name__)
    value = globals()[name] = module if name == home else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
