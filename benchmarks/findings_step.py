"""What is added to a step: issues 6 and 7 of the report, and what torch.compile makes of a layer."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.findings_sides import Finding, Sides, medians
from benchmarks.operations import Counts
from benchmarks.step_host import IDENTITY_TOKENS, Evaluation, Patched
from benchmarks.step_variants import plain
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


def findings(sides: Sides, image: Tensor, patched: dict[str, Patched], runs: int) -> Iterator[Finding]:
    """All but the times, and then these.

    Args:
        patched: what each side's Apply makes of ``image``.
    """
    yield from _steps(sides, image, patched)
    yield _scaled_in_place()
    yield _graph_breaks(sides, patched)
    with _attention_of_a_gpu(patched):
        yield Finding("6", "a patched layer", "seconds", medians(_ways(sides, patched), runs, calls=100))


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


def _scaled_in_place() -> Finding:
    """Keys that are kept, and scaled by the weight in place at each of five steps, as the report proposes."""
    generator = torch.Generator().manual_seed(0)
    q, key, value = (torch.randn(1, tokens, 64, generator=generator) for tokens in (32, 16, 16))
    right = identity_attention(q, [IdentityEntry.split(0.8 * key, value, 1)])
    kept = key.clone()
    wrong = {"scaled in place": 0, "ours": 0}
    for _ in range(5):
        kept.mul_(0.8)
        wrong["scaled in place"] += not torch.allclose(
            identity_attention(q, [IdentityEntry.split(kept, value, 1)]), right
        )
        again = identity_attention(q, [IdentityEntry.split(0.8 * key, value, 1)])
        wrong["ours"] += not torch.allclose(again, right)
    return Finding("7", "wrong results in five steps on the same kept keys", "count", dict(wrong))


def _graph_breaks(sides: Sides, patched: dict[str, Patched]) -> Finding:
    """Of one layer, as torch.compile sees it."""
    import torch._dynamo
    import torch._logging

    torch._logging.set_logs(dynamo=logging.ERROR)  # it warns of what is counted here
    broken: dict[str, float | str] = {}
    for name, layer in _ways(sides, patched).items():
        if name in patched:
            torch._dynamo.reset()
            with torch.no_grad(), _attention_of_a_gpu(patched):
                broken[name] = torch._dynamo.explain(layer)().graph_break_count
    return Finding("VRAM", "graph breaks in a compiled layer", "count", broken)


@contextmanager
def _attention_of_a_gpu(patched: dict[str, Patched]) -> Iterator[None]:
    """The text attention of both sides' patches is torch's, as on a GPU: the one that the host prefers on a CPU asks at
    each call how much memory is free, which breaks any graph and hides what Python takes."""
    from comfy.ldm.modules.attention import attention_pytorch

    with ExitStack() as stack:
        for variant in patched.values():
            module = sys.modules[type(_patches(variant)[_A_LAYER]).__module__]
            stack.enter_context(patch.object(module, "optimized_attention", attention_pytorch))
        yield


def _ways(sides: Sides, patched: dict[str, Patched]) -> dict[str, Callable[[], object]]:
    """One layer with both sides' patches, and without. It is small, so that what it takes is what Python takes to ask
    for its operators. What ours takes beyond the text attention and the operators that it adds, with inputs that lie
    ready for them, is the host's time of the patch."""
    from comfy.ldm.modules.attention import attention_pytorch

    q, k, options = _layer_inputs(sides)

    def text() -> Tensor:
        return attention_pytorch(q, k, k, options["n_heads"], transformer_options=options)

    ways: dict[str, Callable[[], object]] = {"text attention alone": text}
    for name, variant in patched.items():
        layer = _patches(variant)[_A_LAYER]
        ways[name] = lambda layer=layer: layer(q, k, k, options)
    heads = options["n_heads"]
    query, key = (t.unflatten(2, (heads, -1)).transpose(1, 2).contiguous() for t in (q, k[:, :IDENTITY_TOKENS]))
    ways["text attention and the operators that ours adds"] = lambda: torch.add(
        text(), F.scaled_dot_product_attention(query, key, key).view_as(q), alpha=0.8
    )
    return ways


def _layer_inputs(sides: Sides) -> tuple[Tensor, Tensor, dict[str, Any]]:
    width = sides.host.size.layer_channels[0]
    q, k = torch.randn(2, 64, width), torch.randn(2, 77, width)
    options = {"n_heads": 4, "cond_or_uncond": [1, 0], "original_shape": [2, 4, 16, 16], "attn_precision": None}
    options |= {"sigmas": torch.tensor([sides.host.sigma]), "block": ("input", 4), "block_index": 0}
    return q, k, options | {"transformer_index": 0}


def _patches(patched: Patched) -> dict[tuple[Any, ...], Any]:
    return patched.model.model_options["transformer_options"]["patches_replace"]["attn2"]


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
