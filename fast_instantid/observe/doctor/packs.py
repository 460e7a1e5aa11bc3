"""Node packs with the same nodes. ComfyUI lets the one that it loads last win, without a word."""

from __future__ import annotations

from collections.abc import Iterator

from ..node_packs import find_packs
from .places import Places
from .report import Finding

_NAME = "ComfyUI_InstantID"


def clashes(places: Places) -> Iterator[Finding]:
    if not places.custom_nodes:
        return
    packs = find_packs(places.custom_nodes)
    ours, old = [pack.folder for pack in packs if pack.ours], [pack.folder for pack in packs if not pack.ours]
    if len(ours) > 1:
        yield Finding(
            "warning",
            f"there are {len(ours)} copies of this pack: {', '.join(map(str, ours))}",
            "They have the same nodes. ComfyUI uses those of the pack that it loads last, and an update of the other "
            "copy changes nothing.",
            "remove all but one, or rename them to end in .disabled, and restart ComfyUI",
        )
    for folder in old:
        if ours:
            yield Finding(
                "warning",
                f"the old pack in {folder} has the same nodes as this one in {ours[0]}",
                "ComfyUI uses those of the pack that it loads last. If that is the old one, pictures take as long as "
                "they did without this pack.",
                f"rename {folder.name} to {folder.name}.disabled, and restart ComfyUI",
            )
    if not ours:
        there = f", but the old one is, in {old[0]}" if old else ""
        yield Finding(
            "note",
            f"this pack is not among the node packs of {' and '.join(map(str, places.custom_nodes))}{there}",
            "The nodes of that ComfyUI are not ours.",
            f"clone this repository into {places.custom_nodes[0] / _NAME} (the README says how), if you want them",
        )
    elif len(packs) == 1:
        yield Finding("ok", f"one pack has InstantID's nodes: {ours[0]}")


def name_of_folder(places: Places) -> Iterator[Finding]:
    """Other packs import the old one as ``custom_nodes.ComfyUI_InstantID.InstantID``."""
    for pack in find_packs(places.custom_nodes):
        if pack.ours and pack.folder.name != _NAME:
            yield Finding(
                "note",
                f"the folder of this pack is called {pack.folder.name!r}, and not {_NAME!r}",
                "ComfyUI does not mind. Packs that build on InstantID's import it by that name and do not find it"
                + (
                    ", and a name like this one can be imported by nobody."
                    if not pack.folder.name.isidentifier()
                    else "."
                ),
                f"rename the folder to {_NAME} if you use such a pack",
            )


CHECKS = (clashes, name_of_folder)
