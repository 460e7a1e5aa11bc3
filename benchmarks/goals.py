"""Goals that were set before anything was measured: by suite and row, how many times as fast as the reference."""

from __future__ import annotations

_NEW_FACE = {"new image, one face": 2.4, "group photo, six faces": 7.5, "six new references": 1.45}
_NEW_FACE |= {"one of six replaced": 8}
_FACES = {"one new face": 2.4, "the same face again": 100, "six new images": 1.45, "one of six replaced": 8}
_NODES = {"cold first run: nodes": 5, "weight edited: nodes": 100, "range edited: nodes": 100}
GOALS: dict[str, dict[str, float]] = {
    "faces": _FACES | {"group of six, one identity": 7.5, "networks alone": 1},
    "workflow": _NODES | {f"{case}: {part}": goal for case, goal in _NEW_FACE.items() for part in ("nodes", "in all")},
    "startup": {"all of it": 6, "from disk: all of it": 5, "known face: all of it": 40},
    "headline": {"in all": 3},
}
IMPORT_SECONDS = 0.3
"""Goal for the import of the package and of the pack, beyond torch."""
SHELL_SECONDS = 2
"""Goal for the start of the shell, beyond that of diffusers."""
