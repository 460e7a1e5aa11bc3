"""The people of one attachment: strengths, regions, and results that are reused during a run of the pipeline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import BackendError, FastInstantIDError
from ..identity import Identity
from ..identity.layout import COND, UNCOND, LayerFace, Layout, Strength, rows
from ..people import DEFAULT_WEIGHT, Person, Subject
from ..people.subject import box_mask, checked_weight, within
from ..reuse import Reuse
from .approximations import Approximations, HeldResiduals, Steps
from .cross_attention import Evaluation
from .residuals import has_zero_scale, masked_residuals, zero_residuals
from .subject import as_pictures

Crop = tuple[float, float, float, float]
"""Left, top, right and bottom of the part of the picture that is drawn, each 0..1."""


class Drawing:
    """The people that one attachment adds to a pipeline's pictures.

    Args:
        owner: the InstantID that attaches. The guidance of its pipeline determines the chunks of a batch.
        people: for all pictures, or for each of them: each person's identity, and weight and region.
        layers: indices of the UNet's cross-attention layers that see them, of ``num_layers``.
        approximations: what to leave out.
        reuse: whether to compute results that are constant during a run once.
        in_face_boxes: whether neither the identity branch nor the IdentityNet acts outside of the boxes of the faces.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        owner: Any,
        people: Sequence[Sequence[tuple[Identity, Subject]]],
        layers: Sequence[int],
        num_layers: int,
        approximations: Approximations,
        reuse: bool,
        in_face_boxes: bool = False,
    ) -> None:
        self.owner, self.pipe = owner, owner.pipe
        self.identities = [identity for picture in people for identity, _ in picture]
        self._pictures = len(people)
        places = [[picture[n] for picture in people] for n in range(len(people[0]))]
        self._regions = [[(_mask(subject, in_face_boxes), subject.weight) for _, subject in place] for place in places]
        self._face_masks: Tensor | None = None  # (pictures, H, W)
        if in_face_boxes:
            of_pictures = [[_mask(replace(subject, region=None), True) for _, subject in picture] for picture in people]
            self._face_masks = torch.stack([torch.cat(masks).amax(dim=0) for masks in of_pictures])
        self.block: object = None
        """The block of code during which the people are attached; None: until they are detached."""
        self.halves: list[Any] = []
        """The networks in which the people are injected now."""
        self.is_for_all = True
        """Whether threads that attached nothing draw these people. Such a thread ends that with ``detach``."""
        self.own: Callable[[], Any] = lambda: None
        """A weak reference to the marker that contexts hold; it gives None after their end."""
        self.thread = threading.get_ident()
        self.ended_by: int | None = None
        """The thread that detached these people; None while they are attached."""
        self.steps = Steps(self.pipe)
        self.reuse = (Reuse(), Reuse()) if reuse else (None, None)
        """Results reused during a run: of the UNet, and of the IdentityNet."""
        self._approximations = approximations
        self._held = HeldResiduals(self.steps, approximations)
        tokens = [torch.cat([identity.tokens.cpu() for identity, _ in picture], dim=1) for picture in people]
        self._tokens = torch.stack(tokens, dim=1)  # (2, pictures, all people's tokens, width)
        self._laid_out_tokens: tuple[object, Tensor] | None = None
        self._weights = [place[0][1].weight for place in places]
        self._crop: Crop | None = None
        self._device = torch.device("cpu")
        self._layers, self._num_layers = layers, num_layers
        self._faces: list[list[LayerFace]] = []
        for n, place in enumerate(places):
            banks, strength = [identity.bank for identity, _ in place], self._strength(n)
            keys = [_together([bank.keys[i] for bank in banks]) for i in layers]
            values = [_together([bank.values[i] for bank in banks]) for i in layers]
            self._faces.append([LayerFace(*pair, strength) for pair in zip(keys, values, strict=True)])
        self._on_layers: dict[bool, list[list[LayerFace]]] = {}

    @property
    def weights(self) -> list[float]:
        """The weight of each person."""
        return list(self._weights)

    def set_weights(self, given: Any) -> None:
        """Set one weight for all, or one for each person, from the next step on: numbers of Python, numpy or torch."""
        given = given.tolist() if hasattr(given, "tolist") else given
        weights = [given] * len(self._weights) if isinstance(given, (int, float)) else list(given)
        if len(weights) != len(self._weights):
            raise FastInstantIDError(f"{len(weights)} scales for {len(self._weights)} people: give one for each")
        self._weights = [checked_weight(weight) for weight in weights]
        pairs = zip(self._regions, self._weights, strict=True)
        self._regions = [[(mask, weight) for mask, _ in place] for place, weight in pairs]
        self._renew()

    def has(self, model: nn.Module) -> bool:
        """Whether the people are injected into this network."""
        return any(half.model is model for half in self.halves)

    def begin_run(self, crop: Crop | None) -> None:
        """Note that a call of the pipeline draws this part of the picture only."""
        if crop != self._crop:
            self._crop = crop
            self._renew()

    def end_run(self) -> None:
        """Drop all results of the run."""
        for reuse in self.reuse:
            if reuse is not None:
                reuse.clear()
        self._held.clear()

    def begin_unet(self, unet: Any, evaluation: Evaluation, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Prepare the inputs of the UNet's layers for its next call."""
        sample: Tensor = args[0] if args else kwargs["sample"]
        if sample.device != self._device:
            self._device = sample.device
            self._renew()
        evaluation.layout, evaluation.thread = self._layout(sample), threading.get_ident()
        if self.steps.in_range(self._approximations.identity_range):
            # A compiled graph takes the number of people for granted, so that those of weight 0 stay in it.
            evaluation.faces = self._seen_by_layers(is_compiled(unet) or is_compiled(self.pipe.unet))
        evaluation.reuse = self.reuse[0] if evaluation.faces else None
        if evaluation.reuse is not None:
            prompt = args[2] if len(args) > 2 else kwargs.get("encoder_hidden_states")
            evaluation.reuse.begin(prompt, self._timesteps())

    def begin_identity_net(self, net: Any, evaluation: Evaluation, kwargs: dict[str, Any]) -> None:
        """Replace the prompt by the tokens in a call of the IdentityNet."""
        sample: Tensor = kwargs["sample"]
        # In guess mode diffusers shows ControlNets the cond half of the batch only.
        layout = self._layout(sample, (COND,) if kwargs.get("guess_mode") else None)
        kind = layout.chunks, len(sample), sample.device, net.dtype
        if self._laid_out_tokens is None or self._laid_out_tokens[0] != kind:
            with torch.inference_mode(False):  # kept for the next run, which may train
                chunks = rows(self._tokens, layout.chunks).flatten(0, 1)
                chunks = chunks.repeat_interleave(len(sample) // len(chunks), dim=0)
                self._laid_out_tokens = kind, chunks.to(sample.device, net.dtype)
        tokens = kwargs["encoder_hidden_states"] = self._laid_out_tokens[1]
        evaluation.reuse = self.reuse[1]
        if evaluation.reuse is not None:
            evaluation.reuse.begin(kwargs.get("controlnet_cond"), tokens, self._timesteps())

    def residuals(self, net: Any, run: Callable[..., Any], kwargs: dict[str, Any]) -> tuple[Any, Tensor]:
        """Return the IdentityNet's output: ``(B, C, h, w)`` for each layer, and for the middle block."""
        sample: Tensor = kwargs["sample"]
        is_off = not self.steps.in_range(self._approximations.identity_net_range)
        if is_off or has_zero_scale(net, kwargs.get("conditioning_scale", 1.0)):
            return zero_residuals(net, sample)
        down, mid = self._held(lambda: run(**kwargs, return_dict=False), kwargs)
        if self._face_masks is None:
            return down, mid
        layout = self._layout(sample, (COND,) if kwargs.get("guess_mode") else None)
        return masked_residuals(down, mid, self._cropped(self._face_masks), layout)

    def _layout(self, sample: Tensor, chunks: tuple[int, ...] | None = None) -> Layout:
        """Return the layout of a batch. The sample tells the device: an offloaded model is elsewhere now."""
        chunks = chunks or self._chunks()
        batch, _, height, width = sample.shape
        if batch % len(chunks):
            raise BackendError(
                f"{type(self.pipe).__name__} works in {len(chunks)} chunks, but got a batch of {batch}: "
                f"attach to the pipeline that runs"
            )
        images = batch // len(chunks)
        if images % self._pictures:
            raise BackendError(f"people of {self._pictures} pictures, but a batch of {images}: give a prompt for each")
        frames = tuple(i * self._pictures // images for i in range(images)) if self._pictures > 1 else None
        return Layout(chunks, (height, width), frames)

    def _chunks(self) -> tuple[int, ...]:
        """Return the chunks of a batch of diffusers: [uncond, cond] under guidance; PAG appends a perturbed cond."""
        try:
            guided = self.pipe.do_classifier_free_guidance
        except AttributeError as error:
            raise BackendError(
                f"{type(self.pipe).__name__} does not know yet whether it uses guidance: "
                "call the pipeline that InstantID is attached to, and not another one that shares its UNet"
            ) from error
        if not guided:
            return (COND,)
        if getattr(self.pipe, "do_perturbed_attention_guidance", False):
            return UNCOND, COND, COND
        return UNCOND, COND

    def _seen_by_layers(self, with_zeros: bool) -> list[list[LayerFace]]:
        found = self._on_layers.get(with_zeros)
        if found is None:
            acting = [any(weight for _, weight in place) for place in self._regions]
            seen = [faces for faces, acts in zip(self._faces, acting, strict=True) if acts or with_zeros]
            found = self._on_layers[with_zeros] = [[] for _ in range(self._num_layers)] if seen else []
            for place, layer in enumerate(self._layers if seen else ()):
                found[layer] = [faces[place] for faces in seen]
        return found

    def _renew(self) -> None:
        """Update the strengths of the faces. Their keys and values stay laid out."""
        for n, faces in enumerate(self._faces):
            strength = self._strength(n)
            for face in faces:
                face.strength = strength
        self._on_layers.clear()

    def _strength(self, person: int) -> Strength:
        mask, weight = _region(self._regions[person])
        return Strength(weight, None if mask is None else self._cropped(mask), self._device)

    def _cropped(self, mask: Tensor) -> Tensor:
        """The part of a mask ``(M, H, W)`` that is drawn."""
        if self._crop is None:
            return mask
        height, width = mask.shape[-2:]
        left, top, right, bottom = self._crop
        return mask[..., _span(top, bottom, height), _span(left, right, width)]

    def _timesteps(self) -> Tensor | None:
        """Return the scheduler's timesteps, a new tensor in each run."""
        return getattr(getattr(self.pipe, "scheduler", None), "timesteps", None)


def drawing_of(
    instantid: Any, people: Any, scale: Any, approximations: Approximations, face_box: Any = None
) -> Drawing:
    """Return the Drawing of an InstantID's people, as ``InstantID.attach`` takes them.

    Args:
        face_box: see :func:`~.subject.as_pictures`; None or False to let the identity act everywhere.

    Raises: as ``InstantID.attach``.
    """
    weight: Any = scale if isinstance(scale, (int, float, np.number, type(None))) else DEFAULT_WEIGHT
    given = as_pictures(
        people, weight, lambda item: instantid.identity(item) if isinstance(item, Person) else None, face_box or None
    )
    layers = instantid.check([identity for picture in given for identity, _ in picture])
    if approximations.vary_by_step and any(map(is_compiled, instantid.networks())):
        raise BackendError(
            "identity_range, identity_net_range and identity_net_every would compile again at every step: use a "
            "pipeline that is not compiled"
        )
    selected = approximations.selected(list(layers))
    in_boxes = bool(face_box)
    drawing = Drawing(instantid, given, selected, len(layers), approximations, instantid.reuse, in_boxes)
    if scale is not None and weight is not scale:
        drawing.set_weights(scale)
    return drawing


def _together(of_pictures: list[Tensor]) -> Tensor:
    """Return keys or values ``(2, T, C)`` of one person, or ``(2, P, T, C)`` of one in each of P pictures."""
    return of_pictures[0] if len(of_pictures) == 1 else torch.stack(of_pictures, dim=1)


def _region(of_pictures: list[tuple[Tensor | None, float]]) -> tuple[Tensor | None, float]:
    """Return the mask ``(P, H, W)`` of one person in each picture, and a weight for all; None for everywhere."""
    masks, weights = zip(*of_pictures, strict=True)
    if len(set(weights)) == 1 and (len(masks) == 1 or all(mask is None for mask in masks)):
        return masks[0], weights[0]
    size = next((mask.shape[-2:] for mask in masks if mask is not None), torch.Size((1, 1)))
    if any(mask is not None and mask.shape[-2:] != size for mask in masks):
        raise FastInstantIDError("the regions of one batch of pictures must have one size: resize them")
    whole = [torch.ones(1, *size) if mask is None else mask for mask in masks]
    return torch.cat([mask * weight for mask, weight in zip(whole, weights, strict=True)]), 1.0


def _mask(subject: Subject, in_face_box: bool) -> Any:
    """Return the mask ``(1, H, W)`` of a region, or of its part in the face's box; None for everywhere."""
    if not in_face_box:
        return subject.mask
    if subject.face_box is None:
        raise FastInstantIDError(
            "enhance_non_face_region needs to know where each face is: draw a Person or a Scene, or give a Subject its "
            "face_box"
        )
    return within(subject.mask, box_mask(subject.face_box))


def is_compiled(model: Any) -> bool:
    """Whether torch compiles this model, as a wrapper around it or in place."""
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None


def _span(start: float, end: float, length: int) -> slice:
    """Return the pixels between two fractions of ``length``, at least one."""
    first = min(int(start * length), length - 1)
    return slice(first, max(round(end * length), first + 1))
