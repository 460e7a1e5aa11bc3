"""Fast InstantID: a photograph becomes an identity, and an identity becomes a picture, each paid for once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .attention import identity_attention as identity_attention
    from .cache import Cache as Cache
    from .errors import FastInstantIDError as FastInstantIDError
    from .errors import NoFaceError as NoFaceError
    from .faces import Face as Face
    from .faces import FaceAnalyzer as FaceAnalyzer
    from .faces import draw_keypoints as draw_keypoints
    from .identity import Adapter as Adapter
    from .identity import Identity as Identity

# Loaded on first use, so that importing the package costs nothing that is not needed.
_HOME_OF = {
    "Adapter": "identity",
    "Cache": "cache",
    "Face": "faces",
    "FaceAnalyzer": "faces",
    "FastInstantIDError": "errors",
    "Identity": "identity",
    "NoFaceError": "errors",
    "draw_keypoints": "faces",
    "identity_attention": "attention",
}

__all__ = [
    "Adapter",
    "Cache",
    "Face",
    "FaceAnalyzer",
    "FastInstantIDError",
    "Identity",
    "NoFaceError",
    "__version__",
    "draw_keypoints",
    "identity_attention",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value
