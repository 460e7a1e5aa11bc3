"""The miniature: all of InstantID's networks in a few megabytes, trained on drawn portraits of invented people.

    from fast_instantid import miniature
    files = miniature.files()
    analyzer = FaceAnalyzer.load(files.pack)
    pipe = load_pipeline(files.base, files.instantid)

The architectures and file formats are those of the published models, so the same code works on both. ``CARD.md`` beside
this file describes the miniature's abilities and limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelFileError

SIZE = (128, 128)
"""``(width, height)`` of its training pictures, in pixels."""
STEPS = 20
"""Recommended number of sampling steps."""
GUIDANCE = 2.0
"""Recommended classifier-free guidance."""
DRAWN_ONLY = "the miniature knows drawn faces and no photographed ones"
"""Explanation for errors about a missing face."""

_WEIGHTS = Path(__file__).parent / "weights"
_NEEDED = (
    "antelopev2/scrfd_10g_bnkps.onnx",
    "antelopev2/glintr100.onnx",
    "base/model_index.json",
    "base/unet/diffusion_pytorch_model.safetensors",
    "base/vae/diffusion_pytorch_model.safetensors",
    "instantid/ControlNetModel/diffusion_pytorch_model.safetensors",
    "instantid/ip-adapter.safetensors",
)


@dataclass(frozen=True)
class MiniatureFiles:
    """Paths of the miniature on this disk."""

    pack: Path
    """For ``FaceAnalyzer.load``: a detector and a recogniser under antelopev2's file names."""
    base: Path
    """For ``load_pipeline``: SDXL's architecture in diffusers' folder layout, fp16."""
    instantid: Path
    """For ``load_pipeline`` and ``InstantIDFiles.find``: ``ControlNetModel`` and ``ip-adapter.safetensors``, fp16."""
    portraits: tuple[Path, ...]
    """Portraits of different people, ``SIZE`` each; none was trained on."""


def files() -> MiniatureFiles:
    """Find the files of the miniature; a ModelFileError if this copy of the package lacks some of them."""
    missing = [name for name in _NEEDED if not (_WEIGHTS / name).is_file()]
    portraits = tuple(sorted((_WEIGHTS / "portraits").glob("*.png")))
    if not portraits:
        missing.append("portraits/*.png")
    if missing:
        raise ModelFileError(
            f"the miniature in {_WEIGHTS} is not complete, without {', '.join(missing)}: "
            "install fast-instantid again, or clone its repository again"
        )
    return MiniatureFiles(_WEIGHTS / "antelopev2", _WEIGHTS / "base", _WEIGHTS / "instantid", portraits)
