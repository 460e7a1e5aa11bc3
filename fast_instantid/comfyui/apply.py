"""Apply an identity to the cross-attention of a ComfyUI model, and to the ControlNet of a conditioning."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal, TypeAlias

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..errors import FastInstantIDError, ImageError
from ..identity import Identity
from ..identity.layout import COND, LayerFace, Layout, Strength, mask_batch, residual_mask
from ..images import photos
from .observe.networks import mark_identity_net
from .patch import AttentionPatch, add_identity, copied
from .sampling import IS_COND, attention_patches, own_patches, wrap

Conditioning: TypeAlias = "list[list[Any]]"
"""A list with one entry per prompt: its text ``(1, T, W)`` and a dictionary of options."""
_LARGEST = 10  # of all strengths that the nodes offer
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
"""ComfyUI's names of the cross-attention layers with an identity branch, in checkpoint order
(comfy/ldm/modules/diffusionmodules/openaimodel.py)."""


def check_family(model: ModelPatcher, token_width: int) -> None:
    """Refuse, with a FastInstantIDError, a model whose text has another width than the adapter's tokens."""
    width = model.model.model_config.unet_config.get("context_dim")
    if width != token_width:
        family = {768: "SD 1.5", 1024: "SD 2", 2048: "SDXL"}.get(width, "of another family")
        raise FastInstantIDError(
            f"InstantID works with SDXL models only. This model is {family}: its text is {width} wide, the adapter's "
            f"tokens {token_width}. Load an SDXL checkpoint"
        )


def compute_dtype(model: ModelPatcher) -> torch.dtype:
    """Return the dtype in which the UNet computes; it may store its weights in another."""
    cast = model.get_model_object("manual_cast_dtype")
    dtype = model.model.get_dtype() if cast is None else cast
    if dtype in (torch.float32, torch.float16, torch.bfloat16):
        return dtype
    return torch.float16 if comfy.model_management.should_use_fp16() else torch.float32


def _check_finite(**given: float) -> None:
    for name, value in given.items():
        if not math.isfinite(value):
            raise FastInstantIDError(f"{name} is {value}: expected a finite number")


def apply_to_model(
    model: ModelPatcher,
    identity: Identity,
    weight: float,
    start_at: float,
    end_at: float,
    mask: Tensor | None = None,
    layers: Layers = "paper",
) -> ModelPatcher:
    """Return a clone of ``model`` with an identity branch in its cross-attention layers; ``model`` is unchanged.

    Args:
        identity: in the dtype and on the device of the sampling.
        weight: of the identity branch; may be negative.
        start_at, end_at: active part of the sampling, in 0..1.
        mask: active region, ``(H, W)`` or ``(M, H, W)`` in 0..1, of any size. Image i gets mask i.

    Raises:
        FastInstantIDError: unknown layers, or NaN or infinity in a number.
        ImageError: an unusable mask.
    """
    _check_finite(weight=weight, start_at=start_at, end_at=end_at)
    if layers not in LAYERS:
        raise FastInstantIDError(f"unknown layers {layers!r}: choose one of {', '.join(LAYERS)}")
    mask = _checked(mask)
    clone = model.clone()
    if weight == 0:
        return clone
    own_patches(model, clone)
    sampling = model.get_model_object("model_sampling")
    strength = Strength(weight, mask, identity.tokens.device)
    start, end = (float(sampling.percent_to_sigma(percent)) for percent in (start_at, end_at))
    present = attention_patches(clone.model_options["transformer_options"])
    bank, names = identity.bank, LAYERS[layers]
    for layer, key, value in zip(names, bank.keys[: len(names)], bank.values[: len(names)], strict=True):
        # The host prefers our patch to one of the whole block, which has a shorter name.
        existing = present.get(layer, present.get(layer[:2]))
        patch = copied(existing) if isinstance(existing, AttentionPatch) else AttentionPatch(existing)
        patch.add(add_identity, face=LayerFace(key, value, strength), sigma_start=start, sigma_end=end)
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
    inside: Tensor | None = None,
) -> tuple[Conditioning, Conditioning]:
    """Return both conditionings with the IdentityNet, which reads the identity tokens in place of the text.

    Args:
        tokens: cond and uncond, ``(M, 16, W)`` each.
        keypoints: the keypoint picture, ``(B, H, W, 3)`` in 0..1. A fourth channel is dropped.
        control_net: None for none, as at strength 0.
        strength: of the IdentityNet. It is left out at 0, where the host would run it for a result of zeros.
        mask: active region of the positive conditioning, ``(H, W)`` or ``(M, H, W)``.
        inside: active region of the IdentityNet, ``(M, H, W)`` in 0..1.

    Raises:
        FastInstantIDError: NaN or infinity in a number.
        ImageError: a keypoint picture of an unusable shape, or an unusable mask.
    """
    _check_finite(strength=strength, start_at=start_at, end_at=end_at)
    mask = _checked(mask)
    photos(keypoints)  # refuses what is not a picture
    hint = keypoints.reshape(-1, *keypoints.shape[-3:])[..., :3].movedim(-1, 1)
    device = comfy.model_management.intermediate_device()
    # The host evaluates both conditionings in one batch only if they hold the same ControlNet object.
    control_nets: dict[Any, Any] = {}
    mark_identity_net(control_net)

    def with_identity(options: dict[str, Any], is_cond: bool) -> dict[str, Any]:
        previous = options.get("control")
        if control_net is not None and strength != 0:
            if previous not in control_nets:
                control_nets[previous] = control_net.copy().set_cond_hint(hint, strength, (start_at, end_at))
                control_nets[previous].set_previous_controlnet(previous)
                if inside is not None:
                    _keep_inside(control_nets[previous], inside)
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


def _keep_inside(control_net: Any, masks: Tensor) -> None:
    """Make a ControlNet, and its copies, act inside of masks ``(M, H, W)`` only, in-place; image i has mask i.

    The host has no masks for residuals.
    """
    if not hasattr(control_net, "masks"):
        control_net.__class__ = _inside(type(control_net))
    control_net.masks = masks


@cache
def _inside(kind: Any) -> Any:
    class Inside(kind):
        """Multiplies its residuals by masks, before the host merges them with those of other ControlNets."""

        masks: Tensor
        chunks = 1

        def get_control(
            self, x_noisy: Tensor, t: Tensor, cond: Any, batched_number: int, *rest: Any, **more: Any
        ) -> Any:
            self.chunks = batched_number
            return super().get_control(x_noisy, t, cond, batched_number, *rest, **more)

        def control_merge(self, control: dict[str, list[Tensor | None]], *rest: Any, **more: Any) -> Any:
            inside = {name: [self._masked(part) for part in parts] for name, parts in control.items()}
            return super().control_merge(inside, *rest, **more)

        def _masked(self, residual: Tensor | None) -> Tensor | None:
            if residual is None:
                return None
            height, width = residual.shape[-2:]
            layout = Layout((COND,) * self.chunks, (height, width))
            mask = residual_mask(self.masks, (height, width), layout, len(residual) // self.chunks)
            return residual * mask.to(residual.device, residual.dtype)

        def copy_to(self, copy: Any) -> None:
            super().copy_to(copy)
            _keep_inside(copy, self.masks)

    return Inside


def tokens_of(identity: Identity) -> tuple[Tensor, Tensor]:
    """Return cond and uncond tokens, ``(M, 16, W)`` each."""
    uncond, cond = identity.tokens.unflatten(1, (identity.num_references, -1))
    return cond, uncond


def checked_keypoints(image: Tensor) -> Tensor:
    """Return a keypoint picture of another node; an ImageError for one with NaN or infinity.

    Those drawn here are not read, so that their pages stay unallocated.
    """
    if not image.sum(dtype=torch.float32).isfinite():
        raise ImageError("the keypoint picture holds NaN or infinity: look at the node that made it")
    return image


def _checked(mask: Tensor | None) -> Tensor | None:
    """Return a mask as floats, which the host can resize.

    Values beyond 0..1 act as in the reference. Beyond the largest strength they are no strengths, such as 0..255.
    """
    if mask is None:
        return None
    if mask.ndim < 2 or not mask.numel():
        raise ImageError(f"expected a mask (H, W) or (M, H, W), got one of shape {list(mask.shape)}")
    mask = mask if mask.is_floating_point() else mask.float()
    low, high = (float(bound) for bound in mask.aminmax())
    if not max(-low, high) <= _LARGEST:  # also refuses NaN, which aminmax gives for both
        raise ImageError(f"expected a mask of values in 0..1, got {low:g} to {high:g}: look at the node that made it")
    return mask
