"""Time before the first picture: imports, loader nodes and the first Apply, each in fresh processes, in turn.

Rows of the package alone: its import, in a process that has imported torch and numpy, and the first identity on the
miniature. Row of the shell: from the start of ``fast-instantid generate``, for a saved person with the miniature and
a disk cache, to the first call of the IdentityNet; its limit is a script of diffusers that loads the same two
networks and calls the pipeline. Both import torch, transformers and diffusers. Rows of the nodes, ours against
cubiq/ComfyUI_InstantID, in a real ComfyUI just started, with networks of the published sizes. One pack may load in
Apply what the other loads in its loader nodes, so compare the sum. In the rows "from disk" the system is asked to
forget the model files before each start. In the rows "converted" ours loads the fp16 adapter that ``fast-instantid
convert`` makes. In the rows "known face" ours keeps faces on the disk, and an earlier process has seen this picture.
The timeline is of one more session of each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, Comparison, metadata, notes, report, spread

CONVERTED, KNOWN = "converted", "known face"
SHELL = "shell: to the first step"
MOST_COLD_RUNS = 5  # each starts ComfyUI four times
_PROCESS: dict[str, Any] = {"cwd": ROOT, "check": True, "stdout": subprocess.PIPE}
_PROCESS["env"] = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": str(ROOT)}
_PACKAGE = """
import json, time
import numpy, torch
start = time.perf_counter()
from fast_instantid import Adapter, FaceAnalyzer
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
_SHELL = """
import sys
from fast_instantid.cli import main
from fast_instantid.recorder import Recorder
with Recorder() as recorder:
    main(sys.argv[1:])
print(recorder.started_at + next(span.start for span in recorder.spans if span.name == "IdentityNet") / 1e9)
"""
_DIFFUSERS = """
import os, sys, time
import torch
from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline
from PIL import Image
how = {"torch_dtype": torch.float32, "local_files_only": True}
net = ControlNetModel.from_pretrained(sys.argv[2], **how)
pipe = StableDiffusionXLControlNetPipeline.from_pretrained(sys.argv[1], controlnet=net, **how)
net.register_forward_pre_hook(lambda *_: (print(time.time(), flush=True), os._exit(0)))
pipe("a portrait", image=Image.new("RGB", (128, 128)), num_inference_steps=1)
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
    if find_spec("diffusers"):
        rows.append(shell_row(runs))
        about["versions"] |= {name: version(name) for name in ("diffusers", "transformers")}
    else:
        print("diffusers is not installed: no row of the shell", flush=True)
    if comfyui is not None and reference is not None:
        from benchmarks.nodes.harness import version_of

        comparisons, about["timeline"] = _nodes(comfyui, reference.resolve(), runs, work)
        rows += comparisons
        about["versions"]["reference"] = version_of(reference)
    report(json_path, "startup", rows, about | {"notes": notes(__doc__)})


def package_rows(runs: int) -> list[dict[str, Any]]:
    """Seconds of each part of ``runs`` processes, after one that is not counted."""
    command = [sys.executable, "-c", _PACKAGE]
    outcomes: list[dict[str, float]] = []
    for _ in range(runs + 1):
        outcomes.append(json.loads(subprocess.run(command, **_PROCESS).stdout))
    return [{"name": name, "ours_seconds": spread([o[name] for o in outcomes[1:]])} for name in outcomes[0]]


def shell_row(runs: int) -> dict[str, Any]:
    """Seconds from the start of a process to its first step: of the shell, and of diffusers alone, in turn."""
    from fast_instantid import FaceAnalyzer, miniature
    from fast_instantid.people import find_person

    files = miniature.files()
    with tempfile.TemporaryDirectory() as folder:
        find_person(FaceAnalyzer.load(files.pack, device="cpu"), files.portraits[0]).save(
            f"{folder}/person.safetensors"
        )
        shell = [
            "generate",
            "--person",
            f"{folder}/person.safetensors",
            "--prompt",
            "a portrait",
            "--pack",
            "miniature",
        ]
        shell += ["--device", "cpu", "--steps", "1", "--cache", folder, "-o", f"{folder}/picture.png"]
        sides = {"ours": [_SHELL, *shell], "limit": [_DIFFUSERS, files.base, files.instantid / "ControlNetModel"]}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(runs + 1):
            for side, command in sides.items():
                start = time.time()
                output = subprocess.run([sys.executable, "-c", *map(str, command)], **_PROCESS).stdout
                seconds[side].append(float(output.splitlines()[-1]) - start)
    over = [ours - limit for ours, limit in zip(*(times[1:] for times in seconds.values()), strict=True)]
    row = {f"{side}_seconds": spread(times[1:]) for side, times in seconds.items()}
    return {"name": SHELL, **row, "over_limit_seconds": spread(over)}


def _nodes(
    comfyui: Path, reference: Path, runs: int, work: Path | None
) -> tuple[list[Comparison], dict[str, dict[str, Any]]]:
    # The package rows need none of these.
    from benchmarks.nodes.harness import bench
    from fast_instantid.identity.convert import convert_adapter, converted_path

    comparisons: list[Comparison] = []
    with bench(comfyui, work) as made:
        adapter = made.base / "models" / "instantid" / made.adapter
        converted = converted_path(adapter, "float16")
        if not converted.exists():
            convert_adapter(adapter, converted)
        disk = tempfile.TemporaryDirectory(dir=made.base / "models")
        sides: dict[str, tuple[Path, dict[str, str]]] = {"reference": (reference, {}), "ours": (ROOT, {})}
        sides |= {CONVERTED: (ROOT, {"adapter": converted.name}), KNOWN: (ROOT, {"cache": disk.name})}
        places = {"": lambda: None}
        if hasattr(os, "posix_fadvise"):
            places["from disk: "] = lambda: forget(made.base / "models")
        timeline: dict[str, Any] = {}
        for prefix, prepare in places.items():
            print(f"cold starts {prefix}...", flush=True)
            starts = cold_starts(made, sides, min(runs, MOST_COLD_RUNS), prepare)
            others = {side: starts.pop(side) for side in (CONVERTED, KNOWN)}
            comparisons += compare_parts(starts, prefix)
            for side, found in others.items():
                comparisons += compare_parts({**starts, "ours": found}, f"{prefix}{side}: ")
            for side in () if prefix else ("reference", "ours", KNOWN):
                pack, options = sides[side]
                timeline[side] = made.session("cold", pack, made.base / "portrait.pt", detailed=True, **options)
        disk.cleanup()
    return comparisons, timeline


def cold_starts(
    made: Any, sides: Mapping[str, tuple[Path, dict[str, str]]], runs: int, prepare: Callable[[], object] = lambda: None
) -> dict[str, list[dict[str, float]]]:
    """Seconds of each part of cold sessions by side, in turn; the first of each is not counted.

    Args:
        sides: the folder of each pack, and the options of its sessions.
        prepare: called before each start.
    """
    from benchmarks.nodes.harness import portrait, unseen
    from benchmarks.nodes.pack import LOADERS

    picture = made.base / "portrait.pt"
    torch.save(unseen(portrait()), picture)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(runs + 1):
        for side, (pack, options) in sides.items():
            prepare()
            seconds = made.session("cold", pack, picture, **options)
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
