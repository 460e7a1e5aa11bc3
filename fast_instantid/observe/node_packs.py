"""Node packs with InstantID's nodes, found by their files. Each start of ComfyUI asks, and needs no doctor for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class InstantIDPack:
    """A folder whose nodes have the names of InstantID's."""

    folder: Path
    ours: bool
    """A copy of this pack, and not the old one."""


def find_packs(custom_nodes: Iterable[Path | str]) -> list[InstantIDPack]:
    """All that ComfyUI would load from these folders, each folder in the order of names; disabled ones are left out."""
    packs: list[InstantIDPack] = []
    for folder in custom_nodes:
        with suppress(OSError):  # where ComfyUI cannot look, it loads nothing either
            for pack in sorted(Path(folder).iterdir()):
                if not pack.name.endswith(".disabled") and (ours := _whose(pack)) is not None:
                    packs.append(InstantIDPack(pack, ours))
    return packs


def _whose(pack: Path) -> bool | None:
    """True for ours, False for the old pack, None for another."""
    real = os.path.realpath(pack)  # unlike Path's methods, what os.path has for this never raises
    if os.path.isdir(os.path.join(real, "fast_instantid", "comfyui")):
        return True
    try:
        code = (pack / "InstantID.py").read_text(encoding="utf-8", errors="ignore")
    except OSError:
        return None
    return False if "class ApplyInstantID(" in code or "class ApplyInstantID:" in code else None
