"""Wrappers around the evaluation of a patched model, which decide everything before its layers run.

Each is named after the host's function that it wraps (comfy/patcher_extension.py).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ..cache import content_key
from ..errors import NotFiniteError
from ..identity.layout import COND, UNCOND, LayerFace
from ..recorder import is_recording, stage
from .held import KEY, HeldControl, Less
from .observe.networks import control_net_stages, networks_of
from .patch import ROLES, AttentionPatch, add_identity, always_acts, chunks_of, copied, frames_of
from .reuse import HintCache, is_enabled

logger = logging.getLogger("fast_instantid")

IS_COND = "fast_instantid_cond"
"""Key in a conditioning of our nodes: whether it has the face's tokens, or else the unconditional ones."""

_KEY = "fast_instantid"  # of our wrappers and callbacks in a model
_NAMES = "fast_instantid_names"
_RUN = "fast_instantid_run"  # a HintCache, or None where it is switched off, and a HeldControl


def wrap(model: ModelPatcher) -> None:
    """Register our wrappers and clone callback on ``model``. Idempotent."""
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, _outer_sample),
        (WrappersMP.PREDICT_NOISE, _predict_noise),
        (WrappersMP.CALC_COND_BATCH, _calc_cond_batch),
        (WrappersMP.APPLY_MODEL, _apply_model),
    ):
        model.remove_wrappers_with_key(kind, _KEY)
        model.add_wrapper_with_key(kind, _KEY, wrapper)
    model.remove_callbacks_with_key(CallbacksMP.ON_CLONE, _KEY)
    model.add_callback_with_key(CallbacksMP.ON_CLONE, _KEY, own_patches)


def attention_patches(options: Mapping[str, Any]) -> dict[tuple[Any, ...], Any]:
    """Return the patches of the cross-attention layers in ``transformer_options``."""
    return options.get("patches_replace", {}).get("attn2", {})


def _outer_sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """Provide a :class:`HintCache` and a :class:`HeldControl` for this run.

    A latent with NaN or infinity, which would be a black picture, is a NotFiniteError.
    """
    options = getattr(executor.class_obj, "model_options", {}).get("transformer_options", {})
    hints = HintCache()
    options[_RUN] = hints if is_enabled() else None, HeldControl()
    try:
        latent = executor(*args, **kwargs)
    finally:
        options.pop(_RUN, None)
        hints.clear()
    # The host moves the latent to main memory next, so that waiting for it here costs nothing.
    if isinstance(latent, Tensor) and not np.isfinite(latent.float().cpu().numpy()).all():
        raise NotFiniteError(
            "the UNet made NaN or infinity, and the picture would be black: start ComfyUI with --fp32-unet or "
            "--bf16-unet, lower the weights of InstantID, LoRAs and CFG, or download the checkpoint again"
        )
    return latent


def _predict_noise(executor: Any, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None) -> Any:
    """Pass on the guider's names of its conditionings."""
    options = model_options or {}
    transformer_options = {**options.get("transformer_options", {}), _NAMES: getattr(executor.class_obj, "conds", {})}
    return executor(x, timestep, {**options, "transformer_options": transformer_options}, seed)


def _calc_cond_batch(
    executor: Any, model: Any, conds: Sequence[Any], x_in: Tensor, timestep: Tensor, options: Any
) -> Any:
    """Keep only the patches that act at this noise level, and open the hint cache and the stages of ControlNets.

    In a compiled model inactive patches stay, at weight 0: that is cheaper than compiling a second graph.
    """
    transformer_options = {**options.get("transformer_options", {})}
    transformer_options[ROLES] = _roles(conds, transformer_options.pop(_NAMES, {}))
    hints, held = transformer_options.pop(_RUN, (None, None))
    less: Less | None = transformer_options.pop(KEY, None)
    patches = attention_patches(transformer_options)
    ours = {layer: patch for layer, patch in patches.items() if isinstance(patch, AttentionPatch)}
    sigma = 0.0
    if less is not None or not all(always_acts(kwargs) for patch in ours.values() for kwargs in patch.kwargs):
        # A cheap synchronisation: the GPU has nothing queued yet, and the host reads the same number for ControlNets.
        sigma = float(timestep[0])
        one_graph = _compiled_with(model) is not None
        at = {
            layer: patch.at(sigma, one_graph, less is None or less.sees(layer, sigma)) for layer, patch in ours.items()
        }
        active = {layer: patch for layer, patch in (patches | at).items() if patch is not None}
        transformer_options["patches_replace"] = {**transformer_options.get("patches_replace", {}), "attn2": active}
    options = {**options, "transformer_options": transformer_options}
    with ExitStack() as evaluation:
        if hints is not None:
            evaluation.enter_context(hints.active(networks_of(conds), conds))
        if less is not None and held is not None:
            evaluation.enter_context(held.active(less, conds, sigma))
        if is_recording():
            evaluation.enter_context(control_net_stages(conds))
        return executor(model, conds, x_in, timestep, options)


def _roles(conds: Sequence[Any], names: Mapping[str, Any]) -> tuple[int, ...]:
    """Return COND or UNCOND for each of the guider's conditionings.

    One or two are told by their place, as in the reference. With more, DualCFG has the negative one first and PerpNeg
    an empty one last. They are told by the marks of our nodes, or else by their names.
    """
    if len(conds) <= 2:
        return COND, UNCOND
    marks = [{entry.get(IS_COND) for entry in cond or ()} for cond in conds]
    if any(True in mark for mark in marks):
        return tuple(COND if True in mark else UNCOND for mark in marks)
    positive = [cond for name, cond in names.items() if "negative" not in name]
    if positive:
        return tuple(COND if any(cond is other for other in positive) else UNCOND for cond in conds)
    return COND, UNCOND


def _apply_model(
    executor: Any,
    x: Tensor,
    t: Tensor,
    c_concat: Any = None,
    c_crossattn: Any = None,
    control: Any = None,
    transformer_options: Any = None,
    **kwargs: Any,
) -> Any:
    """Make the UNet a stage, and give a compiled model one graph for each structure of its patches.

    ComfyUI's TorchCompileModel drops the guards on ``transformer_options`` (0.8.0,
    comfy_extras/nodes_torch_compile.py). A graph would be reused for a model with other patches. torch still guards the
    names of keyword arguments, and the UNet ignores unknown ones.
    """
    arguments = (x, t, c_concat, c_crossattn, control, transformer_options)
    with stage("UNet"):
        # torch.compile removes the guard filter from its options; without a filter, options is None.
        if (_compiled_with(executor.class_obj) or {}).get("options") is None:
            return executor(*arguments, **kwargs)
        if _has_foreign(transformer_options):
            # Foreign code breaks the graph, and its parts are compiled without any guard.
            _warn_once()
            with torch.compiler.set_stance("force_eager"):
                return executor(*arguments, **kwargs)
        return executor(*arguments, **kwargs, **{f"{_KEY}_{_structure(transformer_options)}": True})


def _compiled_with(model: Any) -> Mapping[str, Any] | None:
    """Return the host's arguments of torch.compile for this model; None if it is not compiled."""
    patcher: ModelPatcher | None = model.current_patcher
    return None if patcher is None else patcher.model_options.get("torch_compile_kwargs")


def _has_foreign(transformer_options: Mapping[str, Any]) -> bool:
    """Whether code of other packs runs in this model's attention."""
    patches = [patch for kind in transformer_options.get("patches_replace", {}).values() for patch in kind.values()]
    return "optimized_attention_override" in transformer_options or not all(
        isinstance(patch, AttentionPatch)
        and patch.base is None
        and all(callback is add_identity for callback in patch.callback)
        for patch in patches
    )


@functools.cache
def _warn_once() -> None:
    logger.warning(
        "this model runs uncompiled: another pack changes its attention too (IPAdapter, SageAttention, ...), and "
        "this ComfyUI's TorchCompileModel would then draw wrong pictures"
    )


def _structure(transformer_options: Mapping[str, Any]) -> str:
    """Return a hash of everything that a compiled graph bakes in, which is all but the values of tensors."""
    baked: list[Any] = [chunks_of(transformer_options), frames_of(transformer_options)]
    for layer, patch in attention_patches(transformer_options).items():
        if isinstance(patch, AttentionPatch):
            faces: list[LayerFace] = [kwargs["face"] for kwargs in patch.kwargs]
            masks = [None if face.strength.mask is None else face.strength.mask.shape for face in faces]
            baked += [layer, masks, [(face.key.shape, face.key.dtype, face.key.device) for face in faces]]
    return content_key(repr(baked))


def own_patches(model: ModelPatcher, clone: ModelPatcher) -> None:
    """Give a clone its own copies of all patches that packs add to. Since ComfyUI 0.14, clones share them."""
    copies: dict[int, tuple[Any, Any]] = {}  # with the originals, which keep their addresses by that
    for patches in clone.model_options["transformer_options"].get("patches_replace", {}).values():
        for layer, patch in patches.items():
            patches[layer] = copies.setdefault(id(patch), (patch, copied(patch)))[1]
