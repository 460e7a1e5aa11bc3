"""Other packs with nodes of the same names. ComfyUI lets the one that it loads last win, without a word."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

import folder_paths

logger = logging.getLogger("fast_instantid")

_OURS = Path(__file__).resolve().parents[2]


def warn_of_clashes() -> None:
    """Say which folders in ``custom_nodes`` have to go."""
    nodes = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    # ComfyUI uses the nodes of the pack that it loads last.
    used = "Ours are used" if "ApplyInstantID" in nodes else "If it loads, it comes after us and its nodes are used"
    for folder in find_clashes():
        logger.warning(
            "%s has the same nodes as this pack in %s. %s. Remove one of the two folders, or rename it to end in "
            ".disabled, and restart ComfyUI",
            folder,
            _OURS,
            used,
        )


def find_clashes() -> list[Path]:
    """Folders of the old pack, and other copies of this one that were not loaded before and said so themselves."""
    clashes: list[Path] = []
    for folder in folder_paths.get_folder_paths("custom_nodes"):
        with suppress(OSError):  # where ComfyUI cannot look, it loads nothing either
            packs = sorted(Path(folder).iterdir())
            clashes += [pack for pack in packs if not pack.name.endswith(".disabled") and _clashes(pack)]
    return clashes


def _clashes(pack: Path) -> bool:
    real = os.path.realpath(pack)  # unlike Path's methods, what os.path has for this never raises
    if real == str(_OURS) or f"fast_instantid@{real}" in sys.modules:
        return False
    if os.path.isdir(os.path.join(real, "fast_instantid", "comfyui")):
        return True
    try:
        code = (pack / "InstantID.py").read_text(encoding="utf-8", errors="ignore")
    except OSError:
        return False
    return "class ApplyInstantID(" in code or "class ApplyInstantID:" in code
