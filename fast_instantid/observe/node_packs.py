"""Node packs with InstantID's nodes. If several have the same nodes, ComfyUI uses those of the one it loads last."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .report import Finding

if TYPE_CHECKING:
    from .doctor.places import Places

_NAME = "ComfyUI_InstantID"


def _is_ours(path: Path) -> bool | None:
    """Return True for this pack, False for the old one, None for any other."""
    real = os.path.realpath(path)  # os.path's functions do not raise here, unlike Path's
    if os.path.isdir(os.path.join(real, "fast_instantid", "comfyui")):
        return True
    try:
        code = (path / "InstantID.py").read_text(encoding="utf-8", errors="ignore")
    except OSError:
        return None
    return False if "class ApplyInstantID(" in code or "class ApplyInstantID:" in code else None


def node_packs(places: Places) -> Iterator[Finding]:
    """Check that one pack has InstantID's nodes, under the name by which other packs import it."""
    if not places.custom_nodes:
        return
    ours, old = list[Path](), list[Path]()
    for folder in dict.fromkeys(places.custom_nodes):
        with suppress(OSError):  # ComfyUI loads nothing from a folder that it cannot read
            for path in sorted(folder.iterdir()):
                if not path.name.endswith(".disabled") and (is_ours := _is_ours(path)) is not None:
                    (ours if is_ours else old).append(path)
    if not ours:
        there = f", but the old one is, in {old[0]}" if old else ""
        yield Finding(
            "note",
            f"this pack is not in {' and '.join(map(str, places.custom_nodes))}{there}",
            "That ComfyUI does not use our nodes.",
            f"clone this repository into {places.custom_nodes[0] / _NAME} if you want them; the README says how",
        )
        return
    for folder in (*ours[1:], *old):
        yield Finding(
            "warning",
            f"{folder} has the same nodes as this pack in {ours[0]}",
            "ComfyUI uses the nodes of the pack that it loads last, so ours may not be used.",
            f"rename {folder.name} to {folder.name}.disabled, and restart ComfyUI",
        )
    if len(ours) + len(old) == 1:
        yield Finding("ok", f"one pack has InstantID's nodes: {ours[0]}")
