"""InstantID for a pipeline of diffusers: from a photograph to a picture, and every step between.

The pipeline is never copied. People are attached to it and detached again, and every SDXL pipeline works that calls a
UNet of diffusers, with or without ControlNets.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from .. import miniature
from ..cache import Cache
from ..errors import BackendError, FastInstantIDError
from ..faces import Face, FaceAnalyzer, largest
from ..identity import Adapter, Identity
from ..images import ImageInput
from ..people import Person, find_person
from ..placement import Placement
from . import attachment
from .approximations import EXACT, Approximations
from .call import call_options
from .cross_attention import cross_attention_layers
from .drawing import Drawing, is_compiled
from .fit import check_fit, check_pipeline, choose_identity_net
from .load import InstantIDFiles, load_pipeline
from .subject import DEFAULT_WEIGHT, Subject, as_subjects

People: TypeAlias = "Identity | Person | Subject | Sequence[Identity | Person | Subject]"
Scale: TypeAlias = "float | Sequence[float]"

DEFAULTS = {"num_inference_steps": 30, "guidance_scale": 5.0, "controlnet_conditioning_scale": 0.8}
"""What :meth:`InstantID.__call__` gives a pipeline unless the caller says otherwise."""


class InstantID:
    """Draw people with an SDXL pipeline.

        instantid = InstantID.from_pretrained()
        anna = instantid.person("anna.jpg")
        image = instantid("film noir portrait", anna, scale=0.8).images[0]

    With a pipeline of your own, and every argument of its call:

        instantid = InstantID(pipe)
        with instantid.attached(identity, scale=0.8):
            image = pipe(prompt, image=keypoints, controlnet_conditioning_scale=0.8).images[0]

    Constructing it changes nothing. ``attach`` and ``detach`` are exact inverses. What is attached holds for the thread
    or task that attached it, and travels with the call: in a service, each request draws its own people. Calls of one
    pipeline wait for each other.

    Args:
        pipe: any SDXL pipeline. Without an IdentityNet, only the attention half acts.
        identity_net: the ControlNet that is InstantID's: its index, the ControlNetModel itself, or None for none. With
            "auto" it is told by the name that it was loaded from; where none can be told, all are left alone and a
            warning says so.
        reuse: compute once per run what is the same at every step, with no number changed: the keys and values of the
            prompt, those of the IdentityNet, and its convolutions over the keypoint picture. Weights that a callback
            changes between two steps are noticed unless it writes to them through ``weight.data``: give False there.
        adapter: makes identities of persons; needed for :meth:`__call__` with persons.
        faces: finds faces in photographs; needed for :meth:`person`.
        defaults: arguments of the pipeline's call in place of :data:`DEFAULTS`.

    Raises:
        BackendError: a pipeline that InstantID cannot work with, or without that ControlNet.
    """

    def __init__(
        self,
        pipe: Any,
        identity_net: Any = "auto",
        reuse: bool = True,
        *,
        adapter: Adapter | None = None,
        faces: FaceAnalyzer | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        check_pipeline(pipe)
        choose_identity_net(pipe, identity_net)
        self.pipe = pipe
        self.adapter, self.faces = adapter, faces
        self.defaults = DEFAULTS | (defaults or {})
        self._identity_net = identity_net
        self._reuse = reuse

    @classmethod
    def from_pretrained(
        cls,
        instantid: str | PathLike[str] = "instantid",
        base: str | PathLike[str] = "base",
        faces: str | PathLike[str] = "antelopev2",
        *,
        device: Any = None,
        dtype: Any = None,
        cache: Cache | None = None,
    ) -> InstantID:
        """Load all that it takes, from local files. ``from_pretrained("miniature")`` loads the shipped miniature.

        Each source is a file, a folder, the name of a folder that ``fast-instantid download`` made, or the id of a
        repository that was downloaded or is in the hub's local cache.

        Args:
            instantid: InstantID's adapter and ControlNet.
            base: an SDXL model, in diffusers' layout or one ``.safetensors`` file.
            faces: a face model pack.
            device: where everything runs; the best one there is by default.
            dtype: of the pipeline and the identities; fp16 on CUDA and fp32 elsewhere by default.
            cache: keeps faces and identities; the one of this process by default.

        Raises:
            ModelFileError: files that are missing or of another kind; says where it looked.
            BackendError: a device that is not there.
        """
        defaults = None
        if "miniature" in (instantid, base, faces):
            files = miniature.files()
            instantid, base, faces = files.instantid, files.base, files.pack
            defaults = {"num_inference_steps": miniature.STEPS, "guidance_scale": miniature.GUIDANCE}
        place = Placement.resolve(device, dtype)
        adapter = Adapter.load(InstantIDFiles.find(instantid, place.dtype).adapter, place.device, place.dtype, cache)
        analyzer = FaceAnalyzer.load(faces, device=place.device, cache=cache)
        pipe = load_pipeline(base, instantid, place.device, place.dtype)
        return cls(pipe, identity_net=0, adapter=adapter, faces=analyzer, defaults=defaults)

    def person(
        self, photos: ImageInput, *, choose: Callable[[Sequence[Face]], Face] = largest, name: str | None = None
    ) -> Person:
        """Find a person in one or more photographs of them.

        Args:
            photos: paths, PIL images, arrays or tensors, all of one person.
            choose: picks the face where a photograph has several; the largest by default.
            name: of the person; the first photograph's by default.

        Raises:
            NoFaceError: a photograph without a face.
            BackendError: this InstantID has no face analyzer.
        """
        if self.faces is None:
            raise BackendError("no face analyzer: give InstantID(pipe, faces=FaceAnalyzer.load(...))")
        return find_person(self.faces, photos, choose=choose, name=name)

    def identity(self, person: Person) -> Identity:
        """The identity of a person, from the cache where it was made before.

        Raises:
            BackendError: this InstantID has no adapter.
        """
        if self.adapter is None:
            raise BackendError(
                "no adapter to make identities of persons: give InstantID(pipe, adapter=Adapter.load(...))"
            )
        return self.adapter.identity(person.embeddings)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        people: People = (),
        *,
        keypoints: Image.Image | None = None,
        scale: Scale | None = None,
        seed: int | None = None,
        approximations: Approximations = EXACT,
        **options: Any,
    ) -> Any:
        """Draw people.

        Args:
            prompt: what to draw.
            people: whom: a person, an identity, a Subject, or several of them.
            keypoints: the keypoint picture that places the faces. By default the face of the first person with
                keypoints lies as in its photograph; without any, the IdentityNet does not act.
            scale: of the identity branch, 0..5; a number, or one for each person. 0.8 by default.
            seed: of the noise, drawn on the CPU and so the same on every device; in place of ``generator``.
            approximations: what to leave out, for another picture; nothing by default.
            options: of the pipeline's own call: ``num_inference_steps``, ``width``, ``generator``, and so on. The other
                ControlNets' pictures go into ``image`` (or ``control_image``), in their order.

        Returns:
            what the pipeline returns, with ``images``.

        Raises:
            FastInstantIDError: no people, or a scale out of range.
        """
        if prompt is not None:
            options["prompt"] = prompt
        if seed is not None:
            options["generator"] = torch.Generator("cpu").manual_seed(seed)
        with self.attached(people, scale, approximations):
            return self.pipe(**call_options(self, people, keypoints, options))

    def attach(
        self,
        people: People,
        scale: Scale | None = None,
        approximations: Approximations = EXACT,
        *,
        weight: Scale | None = None,
    ) -> None:
        """Make the pipeline draw these people until :meth:`detach`, in place of those this object attached before.

        It holds for this thread or task, and for threads that attached nothing themselves. Cheap: nothing is projected.
        Inside of :meth:`attached` it lasts until the end of that block.

        Args:
            people: one person, or several, each an Identity, a Person, or a Subject with a weight and a region of its
                own. The IdentityNet sees the tokens of all of them.
            scale: of the identity branch, 0..5: a number, or one for each person. 0.8 by default. With all scales 0 the
                UNet's attention stays untouched.
            approximations: what to leave out, for another picture; nothing by default.
            weight: another name of ``scale``.

        Raises:
            ModelFileError: an identity that was made for another kind of model than this pipeline's.
            BackendError: approximations that this pipeline cannot do.
            FastInstantIDError: a scale out of range or beside Subjects, or nobody given.
        """
        mine = attachment.innermost(self)
        drawing = self._drawing(people, scale if weight is None else weight, approximations)
        if mine is not None:
            drawing.block = mine.block
            attachment.detach(mine)
        attachment.attach(drawing)

    def detach(self) -> None:
        """Undo this object's last :meth:`attach`: what was attached before it draws again. Idempotent."""
        mine = attachment.innermost(self)
        for drawing in attachment.attached_for(self) if mine is None else [mine]:
            attachment.detach(drawing)

    @contextmanager
    def attached(
        self,
        people: People,
        scale: Scale | None = None,
        approximations: Approximations = EXACT,
        *,
        weight: Scale | None = None,
    ) -> Generator[InstantID]:
        """:meth:`attach` for a block of code. Blocks nest: at the end the outer person draws again."""
        drawing = self._drawing(people, scale if weight is None else weight, approximations)
        block = drawing.block = object()
        try:
            attachment.attach(drawing)
            yield self
        finally:
            for mine in attachment.attached_for(self, block):  # attach() in the block may have put another there
                attachment.detach(mine)

    @property
    def scale(self) -> Scale:
        """How strongly the people attached now act, 0..5: one number, or a list where they differ.

        Setting it takes effect at the next step. Raises a FastInstantIDError where no one is attached.
        """
        weights = self._attached_now().weights
        return weights[0] if len(set(weights)) == 1 else weights

    @scale.setter
    def scale(self, scale: Scale) -> None:
        drawing = self._attached_now()
        drawing.weights = _each(scale, len(drawing.weights))

    def networks(self) -> list[Any]:
        """The UNet and, if there is one, the IdentityNet that the pipeline has now, as it calls them."""
        net = choose_identity_net(self.pipe, self._identity_net)
        return [self.pipe.unet] if net is None else [self.pipe.unet, net]

    def check(self, identities: Sequence[Identity]) -> dict[str, Any]:
        """The UNet's cross-attention layers by name. Raises a ModelFileError where an identity does not fit them."""
        choose_identity_net(self.pipe, self._identity_net, say=True)
        unet, *nets = (getattr(network, "_orig_mod", network) for network in self.networks())
        layers = cross_attention_layers(unet)
        for identity in identities:
            check_fit(identity, list(layers.values()), nets, type(self.pipe).__name__)
        return layers

    def _drawing(self, people: People, scale: Scale | None, approximations: Approximations) -> Drawing:
        weight = scale if scale is None or isinstance(scale, (int, float, np.number)) else DEFAULT_WEIGHT
        given = as_subjects(people, weight, lambda one: self.identity(one) if isinstance(one, Person) else None)
        layers = self.check([identity for identity, _ in given])
        if approximations.vary_by_step and any(map(is_compiled, self.networks())):
            raise BackendError(
                "ranges of steps and an IdentityNet at some steps do not go with torch.compile, which would compile "
                "anew at every step: use them with a pipeline that is not compiled"
            )
        selected = approximations.selected(list(layers))
        drawing = Drawing(self, given, selected, len(layers), approximations, self._reuse)
        if scale is not None and weight is not scale:
            drawing.weights = _each(scale, len(given))
        return drawing

    def __repr__(self) -> str:
        return f"InstantID({type(self.pipe).__name__})"

    def _attached_now(self) -> Drawing:
        drawing = attachment.innermost(self) or next(reversed(attachment.attached_for(self)), None)
        if drawing is None:
            raise FastInstantIDError("nobody is attached: scale belongs to attach() and attached()")
        return drawing


def _each(scale: Scale, count: int) -> list[float]:
    return [scale] * count if isinstance(scale, (int, float, np.number)) else list(scale)  # pyright: ignore
