"""What the recorder costs: the package as it is, beside a copy of it from which all stages were cut out.

The copy is made from the very sources, without their ``with stage(...)``, ``count(...)`` and ``if ... is_recording()``,
and runs in the same process. Its column is called "reference", so a ratio below 1 is what the stages cost.

The networks are tiny on purpose: what a stage costs is the larger part the less work is in it. Rows:

- the same face again: a picture of 512 x 512 whose face is in the cache, as after each edit in a workflow.
- a new face: detection and recognition with tiny networks.
- identity branch: one call for one of SDXL's small layers, of which there are 60 in an evaluation.
- a picture: two steps of a tiny SDXL with all its 70 layers.

The last column of each is the same while a recorder records, which people pay only when they ask for it.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import shutil
import sys
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from PIL import Image

from benchmarks.common import Comparison, compare, median_seconds, metadata, print_table, save
from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_faces import write_tiny_pack
from examples.tiny_sdxl import LAYER_CHANNELS, TOKEN_WIDTH, write_tiny_identitynet, write_tiny_sdxl
from fast_instantid.recorder import Recorder, stage

ROOT = Path(__file__).resolve().parent.parent
WITHOUT = "fast_instantid_without_stages"
_CALLS = 200_000


def run(runs: int, json_path: Path | None) -> None:
    """Measure, print, and save where asked."""
    print(__doc__, flush=True)
    comparisons: list[Comparison] = []
    on: dict[str, float] = {}
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        cut = write_without_stages(Path(folder))
        sys.path.insert(0, folder)
        models = write_models(Path(folder) / "models")
        without, ours = (_jobs(package, models) for package in (WITHOUT, "fast_instantid"))
        for name in ours:
            print(f"{name} ...", flush=True)
            comparisons.append(compare(name, without[name], ours[name], runs, recorder=None))
            on[name], counts[name] = _recorded(ours[name], runs)
    about = metadata(["torch", "diffusers", "numpy"])
    about |= {"torch_threads": torch.get_num_threads(), "places_cut": cut, "notes": " ".join(__doc__.split())}
    about |= {"stages": counts, "recorded_seconds": on, "stage_off_seconds": _stage_seconds()}
    print_table(comparisons, {})
    for name in on:
        print(f"{name}: {counts[name]} stages, recorded {1000 * on[name]:.2f} ms")
    print(f"a stage while nothing records: {1e9 * about['stage_off_seconds']:.0f} ns")
    save(json_path, "recorder", comparisons, about)


def write_without_stages(folder: Path) -> int:
    """Write the package without its stages as ``folder/fast_instantid_without_stages``; return how many were cut."""
    copy = folder / WITHOUT
    shutil.copytree(ROOT / "fast_instantid", copy, ignore=shutil.ignore_patterns("__pycache__"))
    cutter = _Cutter()
    for path in copy.rglob("*.py"):
        if path.name != "recorder.py":
            path.write_text(ast.unparse(ast.fix_missing_locations(cutter.visit(ast.parse(path.read_text())))))
    return cutter.cut


class _Cutter(ast.NodeTransformer):
    """Takes the recorder out of code and leaves what it was around."""

    def __init__(self) -> None:
        self.cut = 0

    def visit_With(self, node: ast.With) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        left = [item for item in node.items if not _calls(item.context_expr, "stage")]
        self.cut += len(node.items) - len(left)
        if not left:
            return node.body
        node.items = left
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if not _calls(node.value, "count"):
            return node
        self.cut += 1
        return ast.Pass()

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        if not any(_calls(part, "is_recording") for part in ast.walk(node.test)):
            return node
        self.cut += 1
        return node.orelse or ast.Pass()


def _calls(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def write_models(folder: Path) -> Path:
    """Tiny networks of all kinds, laid out as ``fast-instantid download`` does."""
    write_tiny_pack(folder / "antelopev2")
    write_tiny_sdxl(folder / "base")
    write_tiny_identitynet(folder / "instantid" / "ControlNetModel")
    write_tiny_adapter(folder / "instantid" / "ip-adapter.bin", channels=LAYER_CHANNELS, token_width=TOKEN_WIDTH)
    return folder


def _jobs(package: str, models: Path) -> dict[str, Callable[[int], Any]]:
    api, attention, pipelines = (importlib.import_module(package + part) for part in ("", ".attention", ".pipelines"))
    analyzer = api.FaceAnalyzer.load(models / "antelopev2", device="cpu", cache=api.Cache())
    adapter = api.Adapter.load(models / "instantid" / "ip-adapter.bin", "cpu", torch.float32)
    identity = adapter.identity(torch.ones(512))
    pipe = pipelines.load_pipeline(models / "base", models / "instantid", "cpu", torch.float32)
    portrait = torch.from_numpy(skimage.data.astronaut()).float().div(255)
    query = torch.randn(2, 64, 1280)
    entry = attention.IdentityEntry.split(torch.randn(2, 16, 1280), torch.randn(2, 16, 1280), 20, 0.8)
    keypoints = Image.fromarray(np.zeros((64, 64, 3), np.uint8))

    def again(_: int) -> None:
        adapter.identity(analyzer.embed(portrait.clone()))

    def new(run: int) -> None:
        other = portrait.clone()
        other[150:152, 200 + run] = 0.5  # on the face
        adapter.identity(analyzer.embed(other))

    def branch(_: int) -> None:
        with torch.inference_mode():
            for _ in range(60):
                attention.identity_attention(query, [entry])

    def picture(_: int) -> None:
        pipelines.generate(pipe, identity, keypoints, "a man", pipelines.Sampling(num_inference_steps=2))

    return {"the same face again": again, "a new face": new, "identity branch, 60 calls": branch, "a picture": picture}


def _recorded(job: Callable[[int], Any], runs: int) -> tuple[float, int]:
    """Median seconds while a recorder records, and how many stages it saw."""
    numbers = itertools.count(runs)  # on pictures that were not seen before
    recorder = Recorder()

    def recorded() -> None:
        nonlocal recorder
        with Recorder() as recorder:
            job(next(numbers))

    return median_seconds(recorded, runs), len(recorder.spans)


def _stage_seconds() -> float:
    """Of one stage while nothing records."""

    def empty() -> None:
        with stage("nothing", nbytes=0):
            pass

    return round(min(timeit.repeat(empty, number=_CALLS, repeat=5)) / _CALLS, 10)
