"""What a patched model holds and does: issues 3, 4, 5 and 8 of the report, and what it says about memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import findings_step
from benchmarks.common import held_bytes
from benchmarks.findings_sides import Finding, Sides, medians
from benchmarks.operations import Counts
from benchmarks.step_host import IDENTITY_TOKENS, SIZES, Patched, Size
from benchmarks.step_variants import EMBEDDING_DIM
from benchmarks.workflow import portrait, unseen


def findings(sides: Sides, runs: int) -> Iterator[Finding]:
    """All but the times, and then these."""
    image = unseen(portrait())
    patched = {side.name: side.apply(image) for side in sides.both}
    yield from _clones(sides, patched)
    yield from _conditioning(sides, patched)
    yield from findings_step.findings(sides, image, patched, runs)
    yield _kept_models(sides, image)
    yield _repeated_latents()
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


def _repeated_latents() -> Finding:
    latents = torch.empty(1, IDENTITY_TOKENS, SIZES["full"].resampler_dim)
    with Counts() as repeat:
        latents.repeat(1, 1, 1)
    with Counts() as expand:
        latents.expand(1, -1, -1).clone()
    values = {"repeat": repeat.bytes["repeat"], "expand and clone": expand.bytes["clone"]}
    return Finding("8", "bytes that a pass copies of its latents", "bytes", dict(values))


def _seconds(sides: Sides, patched: dict[str, Patched], runs: int) -> Iterator[Finding]:
    clones = {"unpatched": sides.host.model.clone, **{name: variant.model.clone for name, variant in patched.items()}}
    yield Finding("4", "clone() of a patched model", "seconds", medians(clones, runs, calls=10))
    prompts = [options for _, options in sides.host.positive + sides.host.negative]
    copies = {"any": lambda: [options.copy() for options in prompts]}
    yield Finding("5", "copies of the dictionaries of two prompts", "seconds", medians(copies, runs, calls=100))


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
