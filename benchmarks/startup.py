"""What the first picture waits for: imports, loader nodes and the first Apply, each in fresh processes, in turn.

Rows of the package alone:

- import of the package: all public names, in a process that has imported torch and numpy.
- first identity: from there to the identity of a face, on the miniature's networks: what is left is what our code and
  torch do once per process.

Rows of the nodes, ours against cubiq/ComfyUI_InstantID, in a real ComfyUI that has just started, with networks of the
published sizes and random weights: import of the pack, the two loader nodes, Apply InstantID, and their sum. What one
pack loads in its loader nodes, the other may load in Apply; so compare the sum. In the rows "from disk" the system was
asked before each start to forget the model files, as after a boot; in the others they are in its memory, as for a
ComfyUI that was restarted. In the rows "converted" ours loads the adapter that ``fast-instantid convert`` makes of the
published file, in fp16. What is left to the sampler is in the benchmark "workflow".
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.budgets import IMPORT_SECONDS, STARTUP
from benchmarks.common import Comparison, metadata, save_rows, spread

ROOT = Path(__file__).resolve().parent.parent
MOST_COLD_RUNS = 5  # each starts ComfyUI three times
CONVERTED = "converted"

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
    rows = package_rows(runs)
    comparisons: list[Comparison] = []
    about = metadata([name for name in ("torch", "numpy", "opencv-python-headless", "safetensors") if _installed(name)])
    if comfyui is not None and reference is not None:
        from benchmarks.workflow import version_of

        comparisons = _nodes(comfyui.resolve(), reference.resolve(), min(runs, MOST_COLD_RUNS), work)
        about["versions"]["reference"] = version_of(reference)
    about["notes"] = " ".join(__doc__.split())
    _print(rows, comparisons)
    save_rows(json_path, "startup", [*rows, *(comparison.to_json() for comparison in comparisons)], about)


def package_rows(runs: int) -> list[dict[str, Any]]:
    """Seconds of each part of ``runs`` processes, one more before them not counted."""
    outcomes: list[dict[str, float]] = []
    for _ in range(runs + 1):
        printed = subprocess.run(
            [sys.executable, "-c", _PACKAGE], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
        )
        outcomes.append(json.loads(printed.stdout))
    return [{"name": name, "ours_seconds": spread([o[name] for o in outcomes[1:]])} for name in outcomes[0]]


def _nodes(comfyui: Path, reference: Path, runs: int, work: Path | None) -> list[Comparison]:
    # They need more than the package rows do.
    from benchmarks.workflow import cold_outcomes
    from benchmarks.workflow_host import ADAPTER
    from benchmarks.workflow_networks import write_models
    from fast_instantid.identity.convert import convert_adapter, converted_path

    with tempfile.TemporaryDirectory() as temporary:
        base = (work or Path(temporary)).resolve()
        print("making networks of the published sizes with random weights (2.9 GB) ...", flush=True)
        write_models(base)
        adapter = base / "models" / "instantid" / ADAPTER
        converted = converted_path(adapter, "float16")
        if not converted.exists():
            convert_adapter(adapter, converted)
        sides = {"reference": (reference, ADAPTER), "ours": (ROOT, ADAPTER), CONVERTED: (ROOT, converted.name)}
        comparisons: list[Comparison] = []
        places = {"": lambda: None}
        if hasattr(os, "posix_fadvise"):
            places["from disk: "] = lambda: forget(base / "models")
        for prefix, prepare in places.items():
            print(f"cold starts {prefix}...", flush=True)
            outcomes = cold_outcomes(comfyui, base, sides, runs, prepare)
            starts = {side: [outcome["nodes"] for outcome in found] for side, found in outcomes.items()}
            with_converted = starts.pop(CONVERTED)
            comparisons += compare_parts(starts, prefix)
            comparisons += compare_parts({**starts, "ours": with_converted}, f"{prefix}{CONVERTED}: ")
        return comparisons


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


def _print(rows: list[dict[str, Any]], comparisons: list[Comparison]) -> None:
    print(f"{'':34}{'reference':>11}{'ours':>11}{'ratio':>9}{'min..max':>16}{'goal':>10}")
    for row in rows:
        seconds = row["ours_seconds"]
        print(f"{row['name']:34}{'':11}{1000 * seconds['median']:8.0f} ms", end="")
        print(f"{'':9}{'':16}{1000 * IMPORT_SECONDS:7.0f} ms" if "import" in row["name"] else "")
    for comparison in comparisons:
        seconds = [statistics.median(side) for side in (comparison.reference, comparison.ours)]
        ratio = spread(comparison.ratios)
        print(
            f"{comparison.name:34}{1000 * seconds[0]:8.0f} ms{1000 * seconds[1]:8.0f} ms{ratio['median']:8.3g}x", end=""
        )
        print(f"{ratio['min']:.3g}..{ratio['max']:.3g}".rjust(16), end="")
        goal = STARTUP.get(comparison.name)
        print(f"{goal:9}x" if goal else f"{1000 * IMPORT_SECONDS:7.0f} ms" if "import" in comparison.name else "")
    print()


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
