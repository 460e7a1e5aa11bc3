"""Time before the first picture: imports, loader nodes and the first Apply, each in fresh processes, in turn.

Rows of the package alone: its import, in a process that has imported torch and numpy, and the first identity on the
miniature. Rows of the nodes, ours against cubiq/ComfyUI_InstantID, in a real ComfyUI just started, with networks of the
published sizes. One pack may load in Apply what the other loads in its loader nodes, so compare the sum. In the rows
"from disk" the system is asked to forget the model files before each start. In the rows "converted" ours loads the fp16
adapter that ``fast-instantid convert`` makes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, Comparison, metadata, notes, report, spread

CONVERTED = "converted"
MOST_COLD_RUNS = 5  # each starts ComfyUI three times
_PACKAGE = """
import json, time
import numpy, torch
start = time.perf_counter()
from fast_instantid import *
from fast_instantid import miniature
from fast_instantid.images import load_image
imported = time.perf_counter()
files = miniature.files()
[adapter] = [path for path in files.instantid.iterdir() if path.name.startswith("ip-adapter.")]
embedding = FaceAnalyzer.load(files.pack, device="cpu").embed(load_image(files.portraits[0]))
Adapter.load(adapter, "cpu").identity(embedding)
done = time.perf_counter()
print(json.dumps({"import of the package": imported - start, "first identity": done - imported}))
"""


def run(comfyui: Path | None, reference: Path | None, runs: int, work: Path | None, json_path: Path | None) -> None:
    """Measure, print, and save where asked.

    Raises:
        SystemExit: only one of the two checkouts was named.
    """
    if (comfyui is None) != (reference is None):
        raise SystemExit("the nodes need both: --comfyui DIR and --reference DIR")
    print(__doc__, flush=True)
    rows: list[Any] = package_rows(runs)
    about = metadata(["torch", "numpy"])
    if comfyui is not None and reference is not None:
        from benchmarks.nodes.harness import version_of

        rows += _nodes(comfyui, reference.resolve(), runs, work)
        about["versions"]["reference"] = version_of(reference)
    report(json_path, "startup", rows, about | {"notes": notes(__doc__)})


def package_rows(runs: int) -> list[dict[str, Any]]:
    """Seconds of each part of ``runs`` processes, after one that is not counted."""
    command = [sys.executable, "-c", _PACKAGE]
    outcomes: list[dict[str, float]] = []
    for _ in range(runs + 1):
        outcomes.append(json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout))
    return [{"name": name, "ours_seconds": spread([o[name] for o in outcomes[1:]])} for name in outcomes[0]]


def _nodes(comfyui: Path, reference: Path, runs: int, work: Path | None) -> list[Comparison]:
    # The package rows need none of these.
    from benchmarks.nodes.harness import bench
    from fast_instantid.identity.convert import convert_adapter, converted_path

    comparisons: list[Comparison] = []
    with bench(comfyui, work) as made:
        adapter = made.base / "models" / "instantid" / made.adapter
        converted = converted_path(adapter, "float16")
        if not converted.exists():
            convert_adapter(adapter, converted)
        sides = {"reference": (reference, None), "ours": (ROOT, None), CONVERTED: (ROOT, converted.name)}
        places = {"": lambda: None}
        if hasattr(os, "posix_fadvise"):
            places["from disk: "] = lambda: forget(made.base / "models")
        for prefix, prepare in places.items():
            print(f"cold starts {prefix}...", flush=True)
            starts = cold_starts(made, sides, min(runs, MOST_COLD_RUNS), prepare)
            with_converted = starts.pop(CONVERTED)
            comparisons += compare_parts(starts, prefix)
            comparisons += compare_parts({**starts, "ours": with_converted}, f"{prefix}{CONVERTED}: ")
    return comparisons


def cold_starts(
    made: Any, sides: Mapping[str, tuple[Path, str | None]], runs: int, prepare: Callable[[], object] = lambda: None
) -> dict[str, list[dict[str, float]]]:
    """Seconds of each part of cold sessions by side, in turn; the first of each is not counted.

    Args:
        sides: the folder of each pack, and the adapter that it loads in place of the usual one.
        prepare: called before each start.
    """
    from benchmarks.nodes.harness import portrait, unseen
    from benchmarks.nodes.pack import LOADERS

    picture = made.base / "portrait.pt"
    torch.save(unseen(portrait()), picture)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(runs + 1):
        for side, (pack, adapter) in sides.items():
            prepare()
            seconds = made.session("cold", pack, picture, **({"adapter": adapter} if adapter else {}))
            found[side].append({row: seconds[part] for part, row in LOADERS.items()})
    return {side: outcomes[1:] for side, outcomes in found.items()}


def compare_parts(sides: dict[str, list[dict[str, float]]], prefix: str = "") -> list[Comparison]:
    """A comparison of each part of the starts, and one of their sums."""
    names = [*sides["ours"][0]]
    parts = {name: {side: [start[name] for start in starts] for side, starts in sides.items()} for name in names}
    parts["all of it"] = {side: [sum(start.values()) for start in starts] for side, starts in sides.items()}
    return [Comparison(f"{prefix}{name}", seconds["reference"], seconds["ours"]) for name, seconds in parts.items()]


def forget(folder: Path) -> None:
    """Ask the system to drop files from its memory, once they are on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fdatasync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
