"""An identity put into what ComfyUI samples with: the model's cross-attention, and the conditioning's ControlNet."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..errors import FastInstantIDError
from ..identity import Identity
from ..identity.layout import LayerFace, Strength, mask_batch
from .observe.networks import note_identity_net
from .patch import AttentionPatch, add_identity
from .sampling import IS_COND, attention_patches, wrap

Conditioning: TypeAlias = "list[list[Any]]"
"""ComfyUI's: of each prompt, its text ``(1, T, W)`` and a dictionary of what else there is to it."""
Layers: TypeAlias = Literal["reference", "paper"]

_OUTER_LAYERS = [
    *(("input", block, i) for block, depth in ((4, 2), (5, 2), (7, 10), (8, 10)) for i in range(depth)),
    *(("output", block, i) for block, depth in enumerate((10, 10, 10, 2, 2, 2)) for i in range(depth)),
]
LAYERS: dict[Layers, list[tuple[str, int, int]]] = {
    # The reference's Apply nodes name the middle block ("middle", 1), which no UNet asks for.
    "reference": _OUTER_LAYERS,
    "paper": [*_OUTER_LAYERS, *(("middle", 0, i) for i in range(10))],
}
"""SDXL's cross-attention layers as ComfyUI calls them (comfy/ldm/modules/diffusionmodules/openaimodel.py), in the order
of the checkpoint: those that an identity acts on."""


def check_family(model: ModelPatcher, token_width: int) -> None:
    """Refuse models that an adapter with tokens of this width was not made for.

    Raises:
        FastInstantIDError: text of another width; 2048 is SDXL's.
    """
    width = model.model.model_config.unet_config.get("context_dim")
    if width != token_width:
        family = {768: "SD 1.5", 1024: "SD 2", 2048: "SDXL"}.get(width, "of another family")
        raise FastInstantIDError(
            f"InstantID works with SDXL models only, and this model is {family} (its text is {width} wide, and the "
            f"adapter's tokens are {token_width}): load an SDXL checkpoint"
        )


def compute_dtype(model: ModelPatcher) -> torch.dtype:
    """The dtype in which the UNet computes, whatever it stores its weights in."""
    cast = model.get_model_object("manual_cast_dtype")
    dtype = model.model.get_dtype() if cast is None else cast
    if dtype in (torch.float32, torch.float16, torch.bfloat16):
        return dtype
    return torch.float16 if comfy.model_management.should_use_fp16() else torch.float32


def apply_to_model(
    model: ModelPatcher,
    identity: Identity,
    weight: float,
    start_at: float,
    end_at: float,
    mask: Tensor | None = None,
    layers: Layers = "paper",
) -> ModelPatcher:
    """A clone of ``model`` whose cross-attention layers see the face too. ``model`` and all that it holds stay as they
    are.

    Args:
        identity: in the dtype and on the device that samples.
        weight: of the face; may be negative.
        start_at, end_at: 0..1, the part of sampling in which it acts.
        mask: ``(H, W)`` or ``(M, H, W)`` in 0..1, of any size: where it acts. Of several, image i gets mask i.

    Raises:
        FastInstantIDError: an unknown name of layers, or an empty mask.
    """
    if layers not in LAYERS:
        raise FastInstantIDError(f"layers {layers!r} are not known: choose one of {', '.join(LAYERS)}")
    clone = model.clone()
    if weight == 0:
        return clone
    sampling = model.get_model_object("model_sampling")
    strength = Strength(weight, mask, identity.tokens.device)
    acts = {
        "sigma_start": float(sampling.percent_to_sigma(start_at)),
        "sigma_end": float(sampling.percent_to_sigma(end_at)),
    }
    present = attention_patches(clone.model_options["transformer_options"])
    bank, names = identity.bank, LAYERS[layers]
    for layer, key, value in zip(names, bank.keys[: len(names)], bank.values[: len(names)], strict=True):
        # A patch of a whole block, under its shorter name, would no longer be found beside ours.
        existing = present.get(layer, present.get(layer[:2]))
        patch = existing.copy() if isinstance(existing, AttentionPatch) else AttentionPatch(existing)
        patch.add(add_identity, face=LayerFace(key, value, strength), **acts)
        clone.set_model_attn2_replace(patch, *layer)
    wrap(clone)
    return clone


def apply_to_conditioning(
    positive: Conditioning,
    negative: Conditioning,
    control_net: Any,
    tokens: tuple[Tensor, Tensor],
    keypoints: Tensor,
    strength: float,
    start_at: float,
    end_at: float,
    mask: Tensor | None = None,
) -> tuple[Conditioning, Conditioning]:
    """Both conditionings with the IdentityNet, which sees the face in place of the text.

    Args:
        tokens: cond and uncond, ``(M, 16, W)`` each.
        keypoints: ``(B, H, W, 3)`` in 0..1, the picture that steers it.
        strength: of the IdentityNet. With 0 the host would run it and multiply what it says by 0, so it is left out.
        mask: ``(H, W)`` or ``(M, H, W)``: where the positive conditioning acts.
    """
    hint = keypoints.movedim(-1, 1)
    device = comfy.model_management.intermediate_device()
    # The host evaluates both conditionings in one batch only if they hold the same ControlNet object.
    control_nets: dict[Any, Any] = {}
    note_identity_net(control_net)

    def with_identity(options: dict[str, Any], is_cond: bool) -> dict[str, Any]:
        previous = options.get("control")
        if strength != 0:
            if previous not in control_nets:
                control_nets[previous] = control_net.copy().set_cond_hint(hint, strength, (start_at, end_at))
                control_nets[previous].set_previous_controlnet(previous)
            options = {**options, "control": control_nets[previous]}
        options = {
            **options,
            "control_apply_to_uncond": False,
            "cross_attn_controlnet": tokens[0 if is_cond else 1].to(device, hint.dtype),
            IS_COND: is_cond,
        }
        if mask is not None and is_cond:
            options |= {"mask": mask_batch(mask), "set_area_to_bounds": False}
        return options

    applied = [
        [[text, with_identity(options, is_cond)] for text, options in conditioning]
        for conditioning, is_cond in ((positive, True), (negative, False))
    ]
    return applied[0], applied[1]
