"""A warning about other packs with the same nodes, when ComfyUI starts. ComfyUI replaces nodes silently."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import folder_paths

from ..observe.node_packs import find_node_packs

logger = logging.getLogger("fast_instantid")


def warn_of_clashes() -> None:
    """Log the folders of packs with the same nodes: the old pack, and other copies of this one."""
    ours = Path(__file__).resolve().parents[2]
    nodes = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    # ComfyUI uses the nodes of the pack that it loads last.
    used = "Ours are used" if "ApplyInstantID" in nodes else "If it loads, its nodes are used, as it loads last"
    for pack in find_node_packs(folder_paths.get_folder_paths("custom_nodes")):
        folder = os.path.realpath(pack)
        # A copy that was loaded earlier has logged its warning.
        if folder != str(ours) and f"fast_instantid@{folder}" not in sys.modules:
            logger.warning(
                "%s has the same nodes as this pack in %s. %s. Remove one of the two folders, or rename it to end in "
                ".disabled, and restart ComfyUI",
                pack,
                ours,
                used,
            )
