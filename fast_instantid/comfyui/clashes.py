"""Other packs with nodes of the same names. ComfyUI lets the one that it loads last win, without a word."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType

import folder_paths

logger = logging.getLogger("fast_instantid")

_OURS = Path(__file__).resolve().parents[2]


def warn_of_clashes() -> None:
    """Say which folders in ``custom_nodes`` have to go."""
    for folder in find_clashes():
        logger.warning(
            "%s has the same InstantID nodes as Fast InstantID in %s. ComfyUI uses those of the pack it loads last. "
            "Remove one of the two folders, or rename it to end in .disabled, and restart ComfyUI; to get faster, "
            "remove %s",
            folder,
            _OURS,
            folder.name,
        )


def find_clashes() -> list[Path]:
    """Folders of the old pack, and other copies of this one that were not loaded before and said so themselves."""
    modules = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    loaded = {vars(module).get("_FAST_INSTANTID") for module in modules}
    folders = [Path(path) for path in folder_paths.get_folder_paths("custom_nodes")]
    packs = sorted(pack for folder in folders for pack in _entries(folder))
    return [
        pack
        for pack in packs
        if not pack.name.endswith(".disabled")
        and pack.resolve() != _OURS
        and str(pack / "__init__.py") not in loaded
        and _has_our_nodes(pack)
    ]


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # of a folder that is not there, ComfyUI loads nothing either
        return []


def _has_our_nodes(pack: Path) -> bool:
    if (pack / "fast_instantid" / "comfyui").is_dir():
        return True
    try:
        code = (pack / "InstantID.py").read_text(encoding="utf-8", errors="ignore")
        return "class ApplyInstantID(" in code or "class ApplyInstantID:" in code
    except OSError:
        return False
