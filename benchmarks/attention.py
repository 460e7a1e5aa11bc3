"""SDXL's cross-attention layers with a face: the old pack's way, ours in two launches, ours in one.

A run is all layers of one kind in one evaluation of the model at 1024 x 1024 pixels: 10 of 640 channels with 4096
queries, 60 of 1280 with 1024. Weights, keys and values are each layer's own, as in the model; queries are shared. Ways:

- text alone: torch's scaled_dot_product_attention, the floor.
- reference: keys and values are projected from the face's tokens in each layer and repeated for each image, then
  attention, product and sum. The read of the noise level, for which the old pack waits in each layer, is left out.
- unfused: keys and values exist; attention, and a weighted sum.
- fused: one launch of the Triton kernel, called as the hosts call it; on a GPU only.

Before it is timed, each way's first layer is checked against float64. On a GPU three times are taken of each: of the
GPU alone (a replayed CUDA graph), of the host until it has queued everything, and of both until all is done.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import metadata, notes, save, spread
from benchmarks.device import on
from benchmarks.sizes import IDENTITY_TOKENS as FACE, TEXT_TOKENS as TEXT
from fast_instantid.attention import IdentityEntry, identity_attention
from fast_instantid.fused import SWITCH, fused_attention

TOKEN_WIDTH, HEAD_DIM, SCALE = 2048, 64, 0.8
CHUNKS = 2  # cond and uncond
LAYERS = {(640, 4096): 10, (1280, 1024): 60}  # (channels, queries) -> layers in an evaluation
ROWS = (2, 8)  # of a batch: 1 image and 4
TOLERANCE = 16  # of the largest number, in steps of the type at 1: rounding, in each layer's own order of summing

Way = Callable[[int], Tensor]
"""Number of the layer -> ``(B, N, C)``."""


class Layers(NamedTuple):
    """The layers of one kind, on the device. Lists have one item for each layer."""

    query: Tensor  # (B, N, C)
    text: list[tuple[Tensor, Tensor]]  # (B, 77, C) each
    tokens: Tensor  # (2, 16, 2048)
    weights: list[tuple[Tensor, Tensor]]  # (C, 2048) each
    entries: list[IdentityEntry]  # (2, heads, 16, HEAD_DIM) each

    @property
    def heads(self) -> int:
        return self.query.shape[-1] // HEAD_DIM


def run(runs: int, json_path: Path | None, device: str) -> None:
    """Measure, print, and save where asked."""
    print(__doc__, flush=True)
    os.environ[SWITCH] = "1"
    place, dtype = on(device)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for (channels, queries), count in LAYERS.items():
            for batch in ROWS:
                layers = make_layers(batch, queries, channels, count if place.type == "cuda" else 1, place, dtype)
                name = f"{channels} channels, {queries} queries, {batch} rows"
                rows.append({"name": name, "layers": count, "ways": measure(layers, runs)})
                print(json.dumps(rows[-1]), flush=True)  # so that it is known if the suite is cut off
    about = metadata(["torch"], place) | {"dtype": str(dtype).removeprefix("torch."), "notes": notes(__doc__)}
    if place.type == "cuda" and importlib.util.find_spec("triton"):
        from fast_instantid.fused.kernel import TILE

        about |= {"triton": version("triton"), "TILE": "{}/{}/{}".format(*TILE)}
    save(json_path, {"suite": "attention", "about": about, "results": rows})


def make_layers(
    batch: int, queries: int, channels: int, count: int, device: torch.device, dtype: torch.dtype
) -> Layers:
    """``count`` layers of random numbers."""
    torch.manual_seed(0)
    random = functools.partial(torch.randn, device=device, dtype=dtype)
    tokens = random(CHUNKS, FACE, TOKEN_WIDTH)
    weights = [(random(channels, TOKEN_WIDTH), random(channels, TOKEN_WIDTH)) for _ in range(count)]
    weights = [(key / math.sqrt(TOKEN_WIDTH), value / math.sqrt(TOKEN_WIDTH)) for key, value in weights]
    return Layers(
        random(batch, queries, channels),
        [(random(batch, TEXT, channels), random(batch, TEXT, channels)) for _ in range(count)],
        tokens,
        weights,
        [
            IdentityEntry.split(F.linear(tokens, key), F.linear(tokens, value), channels // HEAD_DIM, SCALE)
            for key, value in weights
        ],
    )


def ways(layers: Layers) -> dict[str, Way]:
    """Return the compared functions by name."""

    def attend(key: Tensor, value: Tensor) -> Tensor:
        heads = (tensor.unflatten(-1, (layers.heads, -1)).transpose(1, 2) for tensor in (layers.query, key, value))
        return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)

    def text(layer: int) -> Tensor:
        return attend(*layers.text[layer])

    def reference(layer: int) -> Tensor:
        # cubiq/ComfyUI_InstantID, CrossAttentionPatch.py, instantid_attention: four products, each repeated for the
        # images of its chunk, and put together in the order of the batch.
        images = len(layers.query) // CHUNKS
        key, value = (
            torch.cat([F.linear(tokens, weight).repeat(images, 1, 1) for tokens in layers.tokens.split(1)])
            for weight in layers.weights[layer]
        )
        return text(layer) + attend(key, value) * SCALE

    def unfused(layer: int) -> Tensor:
        return identity_attention(layers.query, [layers.entries[layer]], onto=text(layer))

    def fused(layer: int) -> Tensor:
        out = fused_attention(layers.query, *layers.text[layer], [layers.entries[layer]])
        if out is None:
            raise RuntimeError("the package refuses to run it fused")
        return out

    found: dict[str, Way] = {"text alone": text, "reference": reference, "unfused": unfused}
    if layers.query.device.type == "cuda":
        found["fused"] = fused
    return found


def error_of(name: str, way: Way, layers: Layers) -> float:
    """The largest difference of the first layer from float64, relative to the largest number.

    Raises:
        ArithmeticError: the difference is too large to be rounding.
    """
    first = Layers(*(part[:1] if isinstance(part, list) else part for part in layers))
    exact = Layers(first.query.double(), *(_double(part) for part in first[1:4]), first.entries)
    out, expected = way(0), ways(exact)["text alone" if name == "text alone" else "reference"](0)
    error = float((out.double() - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE * torch.finfo(out.dtype).eps:  # also where it is NaN
        raise ArithmeticError(f"off by {error}")
    return error


def _double(part: Any) -> Any:
    return part.double() if isinstance(part, Tensor) else [tuple(tensor.double() for tensor in pair) for pair in part]


def measure(layers: Layers, runs: int) -> dict[str, dict[str, Any]]:
    """Times of all ways that work, in turn; the errors of the others."""
    result: dict[str, dict[str, Any]] = {}
    jobs: dict[str, Callable[[], dict[str, float]]] = {}
    for name, way in ways(layers).items():
        try:
            result[name] = {"error": error_of(name, way, layers)}
            job = timer(way, len(layers.text), layers.query.device)
            job()  # warm-up
            jobs[name] = job
        except Exception as error:
            result[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    for _ in range(runs):
        for name, job in jobs.items():
            times[name].append(job())
    for name, taken in times.items():
        for kind in taken[0]:
            result[name][f"{kind}_us_per_layer"] = spread([1e6 * run[kind] / len(layers.text) for run in taken])
            if "reference" in times:
                ratios = [other[kind] / run[kind] for other, run in zip(times["reference"], taken, strict=True)]
                result[name][f"{kind}_ratio"] = spread(ratios)
    return result


def timer(way: Way, count: int, device: torch.device) -> Callable[[], dict[str, float]]:
    """What takes the seconds of one run of all layers: ``gpu``, ``host`` and ``both``; on the CPU ``both`` alone."""

    def once() -> None:
        for layer in range(count):
            way(layer)

    def on_cpu() -> dict[str, float]:
        start = time.perf_counter()
        once()
        return {"both": time.perf_counter() - start}

    if device.type != "cuda":
        return on_cpu

    torch.cuda.synchronize(device)
    side = torch.cuda.Stream(device)
    with torch.cuda.stream(side):  # as torch asks for before a capture
        once()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        once()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def on_gpu() -> dict[str, float]:
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        once()
        queued = time.perf_counter()
        torch.cuda.synchronize(device)
        done = time.perf_counter()
        graph.replay()  # so that the next one does not wait for the host
        events[0].record()
        graph.replay()
        events[1].record()
        torch.cuda.synchronize(device)
        return {"gpu": events[0].elapsed_time(events[1]) / 1000, "host": queued - start, "both": done - start}

    return on_gpu
