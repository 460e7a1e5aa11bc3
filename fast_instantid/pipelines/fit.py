"""Checks that a pipeline, its ControlNets and an identity fit together, before any work."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from diffusers.models.attention_processor import Attention
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from ..errors import BackendError, ModelFileError
from ..identity import Identity

logger = logging.getLogger("fast_instantid")

_IDENTITY_NET = re.compile(r"instant[-_ ]?id|identity[-_ ]?net|(^|[/\\])controlnetmodel[/\\]?$", re.IGNORECASE)
"""Names under which InstantID's ControlNet is kept: the published folder is ``InstantX/InstantID/ControlNetModel``."""


def check_pipeline(pipe: Any) -> None:
    """Refuse, with a BackendError, a pipeline without diffusers' UNet, or whose batch has unknown chunks."""
    name = type(pipe).__name__
    unet = getattr(pipe, "unet", None)
    if unet is None:
        raise BackendError(f"{name} has no UNet: InstantID is for SDXL pipelines")
    unet = getattr(unet, "_orig_mod", unet)
    if not isinstance(unet, UNet2DConditionModel):
        raise BackendError(
            f"{name} has a {type(unet).__name__}: InstantID works with the UNet2DConditionModel of SDXL pipelines"
        )
    if not hasattr(type(pipe), "do_classifier_free_guidance") or name.startswith("LEdits"):
        raise BackendError(
            f"{name} composes its batches in its own way: InstantID works with pipelines of text, image, "
            "inpainting, ControlNets and perturbed attention"
        )


def choose_identity_net(pipe: Any, which: Any, say: bool = False) -> Any:
    """Return the IdentityNet among the ControlNets of a pipeline, as the pipeline calls it; None without one.

    Args:
        which: an index, the ControlNetModel itself, None, or "auto": the first with a name of InstantID's.
        say: warn if there are ControlNets, and none has such a name.

    Raises:
        BackendError: no such ControlNet.
    """
    controlnet = getattr(pipe, "controlnet", None)
    nets = [] if controlnet is None else list(getattr(controlnet, "nets", [controlnet]))
    models = [getattr(net, "_orig_mod", net) for net in nets]
    if which is None:
        return None
    if which == "auto":
        for net, model in zip(nets, models, strict=True):
            if isinstance(model, ControlNetModel) and _IDENTITY_NET.search(_name(model)):
                return net
        if nets and say:
            logger.warning(
                "no ControlNet of this %s is known to be InstantID's (%s): left alone, and only the attention draws "
                "the person; if one is, give InstantID(pipe, identity_net=0)",
                type(pipe).__name__,
                ", ".join(repr(_name(model)) for model in models),
            )
        return None
    if isinstance(which, (int, np.integer)) and not isinstance(which, bool):
        if not 0 <= which < len(nets):
            raise BackendError(
                f"ControlNet {which} was to be the IdentityNet, but {type(pipe).__name__} has {len(nets)}"
            )
        chosen = nets[which]
    else:
        given = getattr(which, "_orig_mod", which)
        chosen = next((net for net, model in zip(nets, models, strict=True) if model is given), None)
        if chosen is None:
            raise BackendError(
                f"identity_net={type(which).__name__}: expected 'auto', None, an index, or a ControlNet of this "
                f"{type(pipe).__name__}"
            )
    model = getattr(chosen, "_orig_mod", chosen)
    if not isinstance(model, ControlNetModel):
        raise BackendError(f"a {type(model).__name__} cannot be the IdentityNet: InstantID's is a ControlNetModel")
    return chosen


def check_fit(identity: Identity, layers: Sequence[Attention], nets: Sequence[Any], pipeline: str) -> None:
    """Refuse, with a ModelFileError, an identity for layers or tokens of another number or width.

    ``nets`` is the IdentityNet, if there is one.
    """
    has = [key.shape[-1] for key in identity.bank.keys]
    wanted = [layer.inner_dim for layer in layers]
    if has != wanted:
        raise ModelFileError(
            f"this identity has {_describe(has)}, the UNet of {pipeline} has {_describe(wanted)}: InstantID's adapter "
            f"fits SDXL base models, not SD 1.5, SD 2 or the SDXL refiner"
        )
    width = identity.tokens.shape[-1]
    for net in nets:
        if net.config.cross_attention_dim != width:
            raise ModelFileError(
                f"this identity has tokens of width {width}, the IdentityNet of {pipeline} reads "
                f"{net.config.cross_attention_dim}: it is not InstantID's ControlNetModel"
            )


def _name(net: Any) -> str:
    """Return the file, folder or hub id that diffusers loaded a network from."""
    return str(getattr(getattr(net, "config", None), "_name_or_path", "") or "")


def _describe(channels: list[int]) -> str:
    return f"{len(channels)} cross-attention layers of {' and '.join(map(str, sorted(set(channels))))} channels"
