"""Bytes: what a patched model keeps alive, and what making an identity takes on its device meanwhile.

- held: tensors reachable from the options of a patched model, each storage once; with clones of it; and after it was
  evaluated with more pictures at once. In one real ComfyUI, ours against cubiq/ComfyUI_InstantID, on the CPU in fp32;
  in fp16, as on most GPUs, both are half.
- left by the adapter: what is on the device for it after an identity was made at fp16, beside the identity. The
  reference moves its whole adapter there and leaves it; on the CPU, where nothing moves, its row counts all that would.
- identity at fp16: an identity of the published size, and its bank of keys and values.
- taken: the most bytes alive on the device while an identity is made at fp16, beside what stays of it, in both stages:
  the resampler, and the projection of keys and values. Of the adapter, one layer or weight should be there at a time.
  On the CPU every storage that an operation makes is counted (what an operation takes and gives back inside is not);
  on CUDA it is what torch's allocator says, whose blocks are a little larger.

Everything has the published sizes and random weights. Counts are the same in every run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import held_bytes, metadata, save_rows
from benchmarks.live_bytes import LiveBytes
from fast_instantid import Adapter, Cache
from fast_instantid.identity import EMBEDDING_DIM, Resampler, project_bank

ROOT = Path(__file__).resolve().parent.parent
MOST_CLONES, MOST_PICTURES = 3, 4
LEFT = "left by the adapter, at fp16"


def run(comfyui: Path | None, reference: Path | None, device: str, work: Path | None, json_path: Path | None) -> None:
    """Count, print, and save where asked.

    Raises:
        SystemExit: only one of the two checkouts was named.
    """
    if (comfyui is None) != (reference is None):
        raise SystemExit("what models hold needs both: --comfyui DIR and --reference DIR")
    print(__doc__, flush=True)
    from benchmarks.workflow_host import ADAPTER
    from benchmarks.workflow_networks import write_adapter, write_models

    about = metadata(["torch", "numpy"])
    about["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as temporary:
        base = (work or Path(temporary)).resolve()
        print("making networks of the published sizes with random weights (2.1 GB) ...", flush=True)
        path = base / "models" / "instantid" / ADAPTER
        if comfyui is not None:
            write_models(base)
        elif not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_adapter(path)
        adapter = Adapter.load(path, device, torch.float16, Cache())
        rows = taken(adapter)
        if comfyui is not None and reference is not None:
            from benchmarks.workflow import portrait, unseen, version_of
            from benchmarks.workflow_host import Host, Side

            host = Host(comfyui.resolve(), base)
            sides = {"reference": Side(host, reference.resolve()), "ours": Side(host, ROOT)}
            rows += held(host, {name: side.apply(unseen(portrait())) for name, side in sides.items()})
            rows[0] |= {"reference_bytes": _moved(sides["reference"].instantid, device)}
            about["versions"] |= {"comfyui": host.version, "reference": version_of(reference)}
    about["notes"] = " ".join(__doc__.split())
    _print(rows)
    save_rows(json_path, "memory", rows, about)


def held(host: Any, models: dict[str, Any]) -> list[dict[str, Any]]:
    """Bytes that each side's model holds, alone, with clones, and after evaluations of more pictures at once."""
    rows: list[dict[str, Any]] = []

    def row(name: str, count: Callable[[Any], int]) -> None:
        rows.append({"name": name, **{f"{side}_bytes": count(model) for side, model in models.items()}})

    row("held: the model", held_bytes)
    for clones in range(1, MOST_CLONES + 1):
        row(f"held: it and {clones} clone{'s'[: clones - 1]}", lambda model, n=clones: held_bytes(*_clones(model, n)))

    def after_evaluation(model: Any) -> int:
        host.evaluate(model, MOST_PICTURES)
        return held_bytes(model)

    row(f"held: after evaluating {MOST_PICTURES} pictures", after_evaluation)
    return rows


def taken(adapter: Adapter) -> list[dict[str, Any]]:
    """What an identity is, and what it takes to make one beside it."""
    device, dtype = adapter.placement.device, adapter.placement.dtype
    pair = torch.randn(2, 1, EMBEDDING_DIM, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    weights = adapter.weights
    resampler = Resampler.from_state_dict(weights.image_proj)
    tokens, resampling, left = _watched(device, lambda: resampler(pair))
    bank, projecting, left_then = _watched(device, lambda: project_bank(weights.layers, tokens, device, dtype))
    single = max(key.numel() for key, _ in weights.layers) * dtype.itemsize
    layer = sum(t.numel() for name, t in weights.image_proj.items() if name.startswith("layers.0.")) * dtype.itemsize
    return [
        {"name": LEFT, "ours_bytes": left + left_then - tokens.nbytes - bank.nbytes},
        {"name": "identity at fp16: tokens and bank", "ours_bytes": tokens.nbytes + bank.nbytes},
        {"name": "identity at fp16: bank", "ours_bytes": bank.nbytes},
        {
            "name": "taken: resampler",
            "ours_bytes": resampling - tokens.nbytes,
            "of_bytes": layer,
            "of": "weights of its largest layer",
        },
        {
            "name": "taken: keys and values",
            "ours_bytes": projecting - bank.nbytes,
            "of_bytes": single,
            "of": "the largest weight",
        },
    ]


def _watched(device: torch.device, job: Callable[[], Any]) -> tuple[Any, int, int]:
    """What ``job`` returns, and the bytes alive on the device that were not before: the most, and at the end."""
    with torch.no_grad():
        if device.type != "cuda":
            with LiveBytes() as live:
                result = job()
                return result, live.peak, sum(live.alive.values())
        job()  # cuBLAS takes its workspace once
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = job()
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before


def _moved(instantid: Any, device: str) -> int:
    """Bytes that the reference's Apply moves to the device, in fp16, and leaves there."""
    if device != "cuda":  # where nothing moves: of all that would
        return sum(parameter.numel() for parameter in instantid.parameters()) * torch.float16.itemsize
    before = torch.cuda.memory_allocated()
    instantid.to("cuda", torch.float16)
    moved = torch.cuda.memory_allocated() - before
    instantid.to("cpu", torch.float32)
    return moved


def _clones(model: Any, count: int) -> list[Any]:
    models = [model]
    for _ in range(count):
        models.append(models[-1].clone())
    return models


def _print(rows: list[dict[str, Any]]) -> None:
    print(f"{'':36}{'reference':>13}{'ours':>13}   compare")
    for row in rows:
        sides = [f"{row[key] / 1e6:10.2f} MB" if key in row else "" for key in ("reference_bytes", "ours_bytes")]
        compared = f"{row['of']}: {row['of_bytes'] / 1e6:.2f} MB" if "of" in row else ""
        print(f"{row['name']:36}{sides[0]:>13}{sides[1]:>13}   {compared}")
    print()
