"""Bytes that a patched model keeps alive, in one real ComfyUI, ours against cubiq/ComfyUI_InstantID.

- held: tensors reachable from the options of a patched model, each storage once; with clones of it; and after it was
  evaluated with more pictures at once. On the CPU in fp32; in fp16, as on most GPUs, both are half.
- left by the adapter: its bytes on the device after an identity was made, at fp16. The reference moves its whole
  adapter there, unknown to ComfyUI; on the CPU the row counts all that would move. Ours keeps none.
- allocated by Apply, on a GPU only: what torch has allocated there more than before, all of it.

Everything has the published sizes and random weights. Counts are the same in every run.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, held_bytes, metadata, notes, report
from benchmarks.device import on
from benchmarks.nodes.harness import bench, portrait, unseen, version_of
from benchmarks.nodes.host import Host
from benchmarks.nodes.pack import Layers, Pack

MOST_CLONES, MOST_PICTURES = 3, 4


def run(comfyui: Path, reference: Path, device: str, work: Path | None, json_path: Path | None) -> None:
    """Count, print, and save where asked."""
    print(__doc__, flush=True)
    place, dtype = on(device)
    about = metadata(["torch", "numpy"], place) | {"dtype": str(dtype).removeprefix("torch.")}
    packs = {"reference": reference.resolve(), "ours": ROOT}
    with bench(comfyui, work) as made:
        host = Host(made.comfyui, made.base, made.size, place, dtype)
        sides = {name: Pack(host, pack, made.adapter) for name, pack in packs.items()}
        models: dict[str, Any] = {}
        allocated: dict[str, Any] = {"name": "allocated by Apply"}
        for name, side in sides.items():
            before = _allocated()
            models[name] = side.apply(image=unseen(portrait()))[0]
            allocated[f"{name}_bytes"] = _allocated() - before
        moved = sum(parameter.numel() for parameter in sides["reference"].instantid.parameters())
        rows = [{"name": "left by the adapter, at fp16", "reference_bytes": moved * torch.float16.itemsize}]
        rows += [allocated] if place.type == "cuda" else []
        rows += held(Layers(host).evaluate, models)
        about["versions"] |= {"comfyui": host.version, "reference": version_of(reference)}
    report(json_path, "memory", rows, about | {"notes": notes(__doc__)})


def held(evaluate: Callable[[Any, int], object], models: dict[str, Any]) -> list[dict[str, Any]]:
    """Bytes that each side's model holds, alone, with clones, and after evaluations of more pictures at once."""
    rows: list[dict[str, Any]] = []

    def row(name: str, count: Callable[[Any], int]) -> None:
        rows.append({"name": name, **{f"{side}_bytes": count(model) for side, model in models.items()}})

    def after_evaluation(model: Any) -> int:
        evaluate(model, MOST_PICTURES)
        return held_bytes(model)

    row("held: the model", held_bytes)
    for clones in range(1, MOST_CLONES + 1):
        row(f"held: it and {clones} clone{'s'[: clones - 1]}", lambda model, n=clones: held_bytes(*_clones(model, n)))
    row(f"held: after evaluating {MOST_PICTURES} pictures", after_evaluation)
    return rows


def _allocated() -> int:
    gc.collect()
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def _clones(model: Any, count: int) -> list[Any]:
    models = [model]
    for _ in range(count):
        models.append(models[-1].clone())
    return models
