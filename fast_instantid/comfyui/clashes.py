"""A warning about other packs that register our node ids. ComfyUI keeps those of the pack it loads last, silently."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import folder_paths

logger = logging.getLogger("fast_instantid")

Nodes = Mapping[str, Any]
"""Classes by id."""
_ONE = "Remove one of the two folders, or rename it to end in .disabled, and restart ComfyUI"
_BOTH = (
    "It has other nodes too: keep it if you use them. Our nodes take its INSTANTID and FACEANALYSIS. To have ours "
    "alone, rename its folder to end in .disabled, and restart ComfyUI"
)


def watch_for_clashes(ours: Nodes) -> None:
    """Look for clashes when the server starts; ComfyUI has loaded all packs by then."""

    async def look(_: Any) -> None:
        with suppress(Exception):  # a server does not start after an error here
            warn_of_clashes(ours)

    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and not server.app.frozen:
        server.app.on_startup.append(look)


def warn_of_clashes(ours: Nodes) -> None:
    """Log each pack that registers ids of ours, whose nodes ComfyUI runs, and what to do."""
    used: Nodes = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    if used.get("InstantIDMiniature", ours["InstantIDMiniature"]) is not ours["InstantIDMiniature"]:
        return  # a copy of this pack was loaded later, and logs it
    for pack, theirs in _packs():
        ids = [id for id, node in theirs.items() if id in ours and ours[id] not in getattr(node, "__mro__", ())]
        lost = ", ".join(id for id in ids if used.get(id) is theirs[id])
        kept = "ours" if all(used.get(id) is ours[id] for id in ids) else "those of a third pack"
        if ids:
            logger.warning(
                "%s and this pack in %s both have the nodes %s. ComfyUI runs %s: it keeps those of the pack that it "
                "loads last. %s",
                pack,
                Path(__file__).resolve().parents[2],
                ", ".join(ids),
                f"the other pack's {lost}" if lost else kept,
                _BOTH if len(theirs) > len(ids) else _ONE,
            )


def _packs() -> Iterator[tuple[Path, Nodes]]:
    """Yield the path and the nodes of each pack, under the name that ComfyUI gives its module."""
    for folder in folder_paths.get_folder_paths("custom_nodes"):
        with suppress(OSError):
            for path in sorted(Path(folder).iterdir()):
                name = str(path.with_suffix("")) if path.is_file() else str(path).replace(".", "_x_")
                nodes: Nodes = getattr(sys.modules.get(name), "__dict__", {}).get("NODE_CLASS_MAPPINGS") or {}
                yield path, nodes
