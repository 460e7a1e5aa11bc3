"""Other packs with nodes of the same names. ComfyUI lets the one that it loads last win, without a word."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import folder_paths

from ..observe.node_packs import find_packs

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
    packs = find_packs(folder_paths.get_folder_paths("custom_nodes"))
    return [pack.folder for pack in packs if not _is_loaded(os.path.realpath(pack.folder))]


def _is_loaded(folder: str) -> bool:
    """This copy of the pack, or one that was loaded before it."""
    return folder == str(_OURS) or f"fast_instantid@{folder}" in sys.modules
