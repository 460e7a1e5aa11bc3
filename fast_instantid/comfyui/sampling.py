"""What happens around an evaluation of a patched model, so that the layers inside it decide nothing.

The host runs these as wrappers of its own functions (comfy/patcher_extension.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xxhash
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from .patch import COND, ROLES, UNCOND, AttentionPatch, Region, always_acts, chunks_of

IS_COND = "fast_instantid_cond"
"""In a conditioning that went through our nodes: whether it got the tokens of the face, or the unconditional ones."""

_KEY = "fast_instantid"  # ours, among the wrappers and callbacks of a model
_COMPILED = "torch.compile"  # the key of the host's wrapper, comfy_api/torch_helpers/torch_compile.py


def wrap(model: ModelPatcher) -> None:
    """Have the host call us when ``model`` is evaluated or cloned. Doing it twice is doing it once."""
    for kind, wrapper in ((WrappersMP.CALC_COND_BATCH, _decide), (WrappersMP.APPLY_MODEL, _name_structure)):
        model.remove_wrappers_with_key(kind, _KEY)
        model.add_wrapper_with_key(kind, _KEY, wrapper)
    model.remove_callbacks_with_key(CallbacksMP.ON_CLONE, _KEY)
    model.add_callback_with_key(CallbacksMP.ON_CLONE, _KEY, _own_patches)


def attention_patches(options: Mapping[str, Any]) -> dict[tuple[Any, ...], Any]:
    """The patches of the cross-attention layers in ``transformer_options``."""
    return options.get("patches_replace", {}).get("attn2", {})


def _decide(executor: Any, model: Any, conds: Sequence[Any], x_in: Tensor, timestep: Tensor, options: Any) -> Any:
    """Leave only the patches that act at this noise level, which is looked at once, and only if that matters."""
    transformer_options = {**options.get("transformer_options", {}), ROLES: _roles(conds)}
    patches = attention_patches(transformer_options)
    ours = {layer: patch for layer, patch in patches.items() if isinstance(patch, AttentionPatch)}
    if not all(always_acts(kwargs) for patch in ours.values() for kwargs in patch.kwargs):
        # Here the GPU has nothing queued yet, and the host looks at the same number for its ControlNets.
        sigma = float(timestep[0])
        active = {**patches, **{layer: patch.at(sigma) for layer, patch in ours.items()}}
        active = {layer: patch for layer, patch in active.items() if patch is not None}
        transformer_options["patches_replace"] = {**transformer_options["patches_replace"], "attn2": active}
    return executor(model, conds, x_in, timestep, {**options, "transformer_options": transformer_options})


def _roles(conds: Sequence[Any]) -> tuple[int, ...]:
    """Guiders with one or two conditionings are read as the reference reads them, by place. With more (DualCFG has the
    negative one first, PerpNeg an empty one last), what the conditioning got decides."""
    marks = [cond[0].get(IS_COND) if cond else None for cond in conds]
    if len(marks) <= 2 or not any(marks):
        return COND, UNCOND
    return tuple(COND if mark else UNCOND for mark in marks)


def _name_structure(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """Give a compiled model one graph for each structure of its patches.

    ComfyUI's TorchCompileModel drops the guards on everything in ``transformer_options``, so that a graph would be used
    again for a model with other patches, or without any. It keeps those on the names of the keyword arguments, and the
    UNet ignores those that it does not know.
    """
    transformer_options = args[5]
    if _COMPILED in transformer_options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {}):
        kwargs[f"{_KEY}_{_structure(transformer_options)}"] = True
    return executor(*args, **kwargs)


def _structure(transformer_options: Mapping[str, Any]) -> str:
    """A hash of what a graph takes for granted: everything but the values in tensors."""
    layers = {
        layer: [[_shape(patch.base), *(_callback(kwargs, transformer_options) for kwargs in patch.kwargs)]]
        if isinstance(patch, AttentionPatch)
        else _shape(patch)
        for layer, patch in attention_patches(transformer_options).items()
    }
    return xxhash.xxh3_64_hexdigest(repr((chunks_of(transformer_options), layers)).encode())


def _callback(kwargs: Mapping[str, Any], transformer_options: Mapping[str, Any]) -> list[Any]:
    region = kwargs.get("region")
    frames = region.frames(transformer_options) if isinstance(region, Region) else None
    return [frames, *((name, _shape(value)) for name, value in kwargs.items())]


def _shape(value: Any) -> Any:
    if isinstance(value, Region):
        return _shape(value.mask)
    if isinstance(value, Tensor):
        return list(value.shape), value.dtype, value.device
    # Objects of other packs may hold anything.
    return value if value is None or isinstance(value, (bool, int, float, str)) else id(value)


def _own_patches(model: ModelPatcher, clone: ModelPatcher) -> None:
    """Copy the patches of a clone, so that what other packs add to them stays there. ComfyUI up to 0.8 does so itself;
    newer versions share everything that is no dict or list."""
    patches = attention_patches(clone.model_options["transformer_options"])
    for layer, patch in patches.items():
        if isinstance(patch, AttentionPatch):
            patches[layer] = patch.copy()
