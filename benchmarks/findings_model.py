"""What a patched model holds and does: issues 3 to 8 of the report, and what it says about memory."""

from __future__ import annotations

import gc
import logging
import statistics
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.common import held_bytes
from benchmarks.findings_sides import Finding, Sides
from benchmarks.operations import Counts
from benchmarks.step_host import IDENTITY_TOKENS, SIZES, Evaluation, Patched, Size
from benchmarks.step_variants import EMBEDDING_DIM, plain
from benchmarks.workflow import portrait, unseen
from fast_instantid.attention import IdentityEntry, identity_attention

PRODUCTS = ("mm", "addmm", "linear")
CRITICAL_BLOCKS = (("output", 0), ("output", 1), ("output", 2), ("input", 7), ("input", 8))
"""Of the report, less its middle block, which no Apply node of the reference reaches."""
_A_LAYER = ("input", 4, 0)
_COUNTED = {
    "reads of the noise level": ("_local_scalar_dense",),
    "products of matrices": PRODUCTS,
    "repeats": ("repeat",),
    "concatenations": ("cat",),
}


def findings(sides: Sides, runs: int) -> Iterator[Finding]:
    """All but the times, and then these."""
    image = unseen(portrait())
    patched = {side.name: side.apply(image) for side in sides.both}
    yield from _clones(sides, patched)
    yield from _conditioning(sides, patched)
    yield from _steps(sides, image, patched)
    yield _kept_models(sides, image)
    yield _scaled_in_place()
    yield _repeated_latents()
    yield _graph_breaks(sides, patched)
    yield from _seconds(sides, patched, runs)
    yield from _transfers(sides, image)  # at last, because it rounds the reference's weights


def full_size_bytes(size: Size, itemsize: int) -> tuple[int, int]:
    """What the options of a patched model keep alive: of the reference, its adapter and the tokens; of ours, keys and
    values of the 60 layers of the Apply nodes, and the weight of the face."""
    inner, width, dim = 1280, size.token_width, size.resampler_dim
    layer = 2 * 2 * dim + dim * inner + dim * 2 * inner + inner * dim + 2 * dim + 2 * 4 * dim * dim
    resampler = IDENTITY_TOKENS * dim + (EMBEDDING_DIM + 1) * dim + 4 * layer + (dim + 1) * width + 2 * width
    channels = size.layer_channels
    tokens = 2 * IDENTITY_TOKENS * width
    reference = resampler + 2 * width * sum(channels) + tokens
    return reference * itemsize, 2 * 2 * IDENTITY_TOKENS * sum(channels[:60]) * itemsize + 4


def _transfers(sides: Sides, image: Tensor) -> Iterator[Finding]:
    """The reference's adapter is stored in another dtype here than it is used in, so that ``.to`` has work to do, as on
    a GPU it has."""
    side = sides.reference
    side.adapter.half()  # and rounds them
    copied: dict[str, float | str] = {}
    for name in ("the first Apply", "the second"):
        with Counts() as counted:
            side.apply(image)
        copied[name] = counted.converted[sides.host.dtype]
    weights = len([*side.adapter.parameters()])
    yield Finding("3", "tensors of the adapter", "count", {"reference": weights})
    yield Finding("3", "copies by .to, of the reference", "count", copied)


def _clones(sides: Sides, patched: dict[str, Patched]) -> Iterator[Finding]:
    host = sides.host
    clone = host.model.clone()
    own = _addresses(clone.model) - _addresses(host.model.model)
    yield Finding("4", "weights of the UNet that clone() copies", "count", {"any": len(own)})
    deep: dict[str, float | str] = {}
    held: dict[str, float | str] = {}
    with_clone: dict[str, float | str] = {}
    before = held_bytes(host.model)
    for name, variant in patched.items():
        with _deep_copies() as copies:
            clone = variant.model.clone()
        deep[name] = len(copies)
        held[name] = held_bytes(variant.model) - before
        with_clone[name] = held_bytes(variant.model, clone) - before
    yield Finding("4", "tensors that clone() of a patched model copies", "count", deep)
    yield Finding("VRAM", "bytes a patched model holds, tiny networks", "bytes", held)
    yield Finding("VRAM", "bytes it holds with a clone, tiny networks", "bytes", with_clone)
    for itemsize, dtype in ((2, "fp16"), (4, "fp32")):
        reference, ours = full_size_bytes(SIZES["full"], itemsize)
        yield Finding("VRAM", f"bytes at SDXL's size, {dtype}", "bytes", {"reference": reference, "ours": ours})


def _conditioning(sides: Sides, patched: dict[str, Patched]) -> Iterator[Finding]:
    made: dict[str, float | str] = {}
    own: dict[str, float | str] = {}
    for name, variant in patched.items():
        controls = {id(options["control"]): options["control"] for _, options in variant.positive + variant.negative}
        made[name] = len(controls)
        networks = [control.control_model for control in controls.values()]
        weights = set().union(*(_addresses(network) for network in networks))
        own[name] = len(weights - _addresses(sides.host.control_net.control_model))
    yield Finding("5", "ControlNet objects for positive and negative", "count", made)
    yield Finding("5", "weights of the ControlNet that these copy", "count", own)


def _steps(sides: Sides, image: Tensor, patched: dict[str, Patched]) -> Iterator[Finding]:
    """What is added to a step, counted against the same step without InstantID."""
    patches = {name: _patches(variant) for name, variant in patched.items()}
    yield Finding("6", "layers that are patched", "count", {name: len(found) for name, found in patches.items()})
    half = torch.zeros(1, 64, 64)
    half[:, :, :32] = 1
    variants = {"plain": plain(sides.packs), **patched}
    variants |= {f"{side.name}, masked": side.apply(image, mask=half) for side in sides.both}
    variants |= {f"{side.name}, weight 0": side.apply(image, weight=0.0) for side in sides.both}
    variants["reference, selected"] = _selected(patched["reference"])
    counted: dict[str, Counter[str]] = {}
    predictions: dict[str, Tensor] = {}
    called: dict[str, int] = {}

    def then(steps: dict[str, Evaluation]) -> None:
        for name, step in steps.items():
            step()  # makes whatever is kept
            with Counts() as counts, _patch_calls(variants[name]) as calls:
                predictions[name] = step()
            counted[name], called[name] = counts.calls, len(calls)

    def failed(name: str, error: Exception) -> None:
        raise error

    sides.host.hold(variants, 1, then, failed)
    names = [side.name for side in sides.both]
    yield Finding("6", "layers that a step calls", "count", {name: called[name] for name in names})
    added = {name: counts - counted["plain"] for name, counts in counted.items()}
    for what, operators in _COUNTED.items():
        values = {name: sum(added[name][operator] for operator in operators) for name in names}
        yield Finding("7", f"added to a step: {what}", "count", dict(values))
    yield Finding("7", "added to a step: operators in all", "count", {name: added[name].total() for name in names})
    masked = {name: (counted[f"{name}, masked"] - counted[name]).total() for name in names}
    yield Finding("7", "operators that a mask adds to a step", "count", dict(masked))
    silent = {name: added[f"{name}, weight 0"]["_local_scalar_dense"] for name in names}
    yield Finding("6", "reads of the noise level in a step at weight 0", "count", dict(silent))
    effect = (predictions["reference"] - predictions["plain"]).abs().max()
    lost = (predictions["reference, selected"] - predictions["reference"]).abs().max() / effect
    apart = (predictions["ours"] - predictions["reference"]).abs().max() / effect
    values = {"selected blocks": round(float(lost), 3), "ours": float(f"{apart:.1e}")}
    yield Finding("6", "distance from the reference's step, of what the face does to it", "", dict(values))


def _selected(patched: Patched) -> Patched:
    """The reference with the patches of the blocks that the report calls critical."""
    model = patched.model.clone()
    options = model.model_options["transformer_options"]
    kept = {layer: found for layer, found in _patches(patched).items() if layer[:2] in CRITICAL_BLOCKS}
    options["patches_replace"] = {**options["patches_replace"], "attn2": kept}
    return Patched(model, patched.positive, patched.negative)


def _kept_models(sides: Sides, image: Tensor) -> Finding:
    """The report's cache of patched models, ``id(model)`` in its key, and five models that their user lets go of."""
    alive: dict[str, float | str] = {}
    for side in sides.both:
        for name, cache in ((side.name, None), *([("report's cache", {})] if side is sides.reference else [])):
            models: list[weakref.ref[Any]] = []
            for _ in range(5):
                model = sides.host.model.clone()
                models.append(weakref.ref(model))
                made = side.apply(image, model=model).model
                if cache is not None:
                    cache[hash((id(model), 0.8, 0.0, 1.0))] = made
                del model, made
            gc.collect()
            alive[name] = sum(reference() is not None for reference in models)
    return Finding("4", "models still alive of five that were let go of", "count", alive)


def _scaled_in_place() -> Finding:
    """Keys that are kept, and scaled by the weight in place at each of five steps, as the report proposes."""
    generator = torch.Generator().manual_seed(0)
    q, key, value = (torch.randn(1, tokens, 64, generator=generator) for tokens in (32, 16, 16))
    right = identity_attention(q, [IdentityEntry(0.8 * key, value, 1.0)], 1)
    kept = key.clone()
    wrong = {"scaled in place": 0, "ours": 0}
    for _ in range(5):
        kept.mul_(0.8)
        wrong["scaled in place"] += not torch.allclose(
            identity_attention(q, [IdentityEntry(kept, value, 1.0)], 1), right
        )
        again = identity_attention(q, [IdentityEntry(0.8 * key, value, 1.0)], 1)
        wrong["ours"] += not torch.allclose(again, right)
    return Finding("7", "wrong results in five steps on the same kept keys", "count", dict(wrong))


def _repeated_latents() -> Finding:
    latents = torch.empty(1, IDENTITY_TOKENS, SIZES["full"].resampler_dim)
    with Counts() as repeat:
        latents.repeat(1, 1, 1)
    with Counts() as expand:
        latents.expand(1, -1, -1).clone()
    values = {"repeat": repeat.bytes["repeat"], "expand and clone": expand.bytes["clone"]}
    return Finding("8", "bytes that a pass copies of its latents", "bytes", dict(values))


def _graph_breaks(sides: Sides, patched: dict[str, Patched]) -> Finding:
    """Of one layer, as torch.compile sees it, with the attention that the host has on a GPU: the one that it prefers on
    a CPU asks how much memory is free, which breaks any graph."""
    import torch._dynamo
    import torch._logging
    from comfy.ldm.modules.attention import attention_pytorch

    torch._logging.set_logs(dynamo=logging.ERROR)  # it warns of what is counted here
    broken: dict[str, float | str] = {}
    for name, layer in _ways(sides, patched).items():
        if name in patched:
            torch._dynamo.reset()
            module = sys.modules[type(_patches(patched[name])[_A_LAYER]).__module__]
            with torch.no_grad(), patch.object(module, "optimized_attention", attention_pytorch):
                broken[name] = torch._dynamo.explain(layer)().graph_break_count
    return Finding("VRAM", "graph breaks in a compiled layer", "count", broken)


def _seconds(sides: Sides, patched: dict[str, Patched], runs: int) -> Iterator[Finding]:
    """Medians. The layer is small, so that what is left is what Python takes to ask for its operators."""
    yield Finding(
        "4",
        "clone() of a patched model",
        "seconds",
        _medians(
            {"unpatched": sides.host.model.clone, **{name: variant.model.clone for name, variant in patched.items()}},
            runs,
        ),
    )
    prompts = [options for _, options in sides.host.positive + sides.host.negative]
    yield Finding(
        "5",
        "copies of the dictionaries of two prompts",
        "seconds",
        _medians({"any": lambda: [options.copy() for options in prompts]}, runs),
    )
    yield Finding("6", "a patched layer", "seconds", _medians(_ways(sides, patched), runs))


def _ways(sides: Sides, patched: dict[str, Patched]) -> dict[str, Callable[[], object]]:
    """One layer with both sides' patches, and without."""
    from comfy.ldm.modules.attention import optimized_attention

    q, k, options = _layer_inputs(sides)
    ways: dict[str, Callable[[], object]] = {
        "text attention alone": lambda: optimized_attention(q, k, k, options["n_heads"])
    }
    for name, variant in patched.items():
        layer = _patches(variant)[_A_LAYER]
        ways[name] = lambda layer=layer: layer(q, k, k, options)
    return ways


def _medians(ways: dict[str, Callable[[], object]], runs: int, calls: int = 100) -> dict[str, float | str]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            often = 1 if name == "reference" and "unpatched" in ways else calls
            start = time.perf_counter()
            for _ in range(often):
                way()
            if run:
                times[name].append((time.perf_counter() - start) / often)
    return {name: round(statistics.median(found), 9) for name, found in times.items()}


def _layer_inputs(sides: Sides) -> tuple[Tensor, Tensor, dict[str, Any]]:
    width = sides.host.size.layer_channels[0]
    q, k = torch.randn(2, 64, width), torch.randn(2, 77, width)
    options = {"n_heads": 4, "cond_or_uncond": [1, 0], "original_shape": [2, 4, 16, 16], "attn_precision": None}
    options |= {"sigmas": torch.tensor([sides.host.sigma]), "block": ("input", 4), "block_index": 0}
    return q, k, options | {"transformer_index": 0}


def _patches(patched: Patched) -> dict[tuple[Any, ...], Any]:
    return patched.model.model_options["transformer_options"]["patches_replace"]["attn2"]


def _addresses(module: torch.nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in module.parameters()}


@contextmanager
def _deep_copies() -> Iterator[list[int]]:
    """Bytes of each tensor that is deep-copied in the block."""
    copies: list[int] = []

    def counted(copy: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def copied(tensor: Tensor, memo: Any) -> Tensor:
            if id(tensor) not in memo:
                copies.append(tensor.nbytes)
            return copy(tensor, memo)

        return copied

    parameter = torch.nn.Parameter
    with (
        patch.object(Tensor, "__deepcopy__", counted(Tensor.__deepcopy__)),
        patch.object(parameter, "__deepcopy__", counted(parameter.__deepcopy__)),
    ):
        yield copies


@contextmanager
def _patch_calls(patched: Patched) -> Iterator[list[type]]:
    """Calls of the patches of layers, whosever they are."""
    attn2 = patched.model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    calls: list[type] = []
    with_patches: list[Any] = []
    for cls in {type(found) for found in attn2.values()}:
        call = cls.__call__

        def counted(self: Any, *args: Any, call: Any = call, **kwargs: Any) -> Any:
            calls.append(type(self))
            return call(self, *args, **kwargs)

        with_patches.append(patch.object(cls, "__call__", counted))
    for one in with_patches:
        one.start()
    try:
        yield calls
    finally:
        for one in with_patches:
            one.stop()
