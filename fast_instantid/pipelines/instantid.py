"""InstantID for a pipeline of diffusers: from a photograph to a picture, and every step between.

The pipeline is never copied. People are attached to it and detached again, and every SDXL pipeline works that calls a
UNet of diffusers, with or without ControlNets.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from PIL import Image

from .. import miniature
from ..cache import Cache
from ..errors import BackendError
from ..faces import FaceAnalyzer
from ..identity import EMBEDDING_DIM, Adapter, Identity
from ..images import ImageInput
from ..people import Choose, Person, Scene, find_person
from ..placement import Placement, device_and_dtype
from . import attachment
from .approximations import EXACT, Approximations
from .call import call_options, seeded
from .cross_attention import cross_attention_layers
from .drawing import Drawing, drawing_of
from .fit import check_fit, check_pipeline, choose_identity_net
from .load import InstantIDFiles, load_pipeline
from .profiles import Profile
from .subject import People, face_box_of

Scale: TypeAlias = "float | Sequence[float]"

DEFAULTS = {"num_inference_steps": 30, "guidance_scale": 5.0, "controlnet_conditioning_scale": 0.8}
"""Default arguments of :meth:`InstantID.__call__` for the pipeline's call."""


class InstantID:
    """Draw people with an SDXL pipeline.

        instantid = InstantID.from_pretrained()
        anna = instantid.person("anna.jpg")
        image = instantid("film noir portrait", anna, scale=0.8).images[0]

    With a pipeline of your own, and every argument of its call:

        instantid = InstantID(pipe)
        with instantid.attached(identity, scale=0.8):
            image = pipe(prompt, image=keypoints, controlnet_conditioning_scale=0.8).images[0]

    ``attach`` and ``detach`` are exact inverses. People are attached for one thread or task: each request of a service
    draws its own. Calls of one pipeline wait for each other.

    Args:
        pipe: any SDXL pipeline. Without an IdentityNet, only the attention half acts.
        identity_net: InstantID's ControlNet: its index, the ControlNetModel itself, or None for none. "auto" takes the
            ControlNet that was loaded from a name of InstantID's. Without one, all are left alone, with a warning.
        reuse: compute results that are constant during a run once, with no number changed (:mod:`..reuse`). Give False
            if a callback changes weights through ``weight.data`` between two steps.
        adapter, faces: make identities of persons, and find persons in photographs.
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
        self.identity_net = identity_net
        self.reuse = reuse

    @classmethod
    def from_pretrained(
        cls,
        instantid: str | PathLike[str] = "instantid",
        base: str | PathLike[str] = "base",
        faces: str | PathLike[str] = "antelopev2",
        *,
        identity_net: bool = True,
        device: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        cache: Cache | None = None,
    ) -> InstantID:
        """Load all models from local files. ``from_pretrained("miniature")`` loads the shipped miniature.

        Each source is a file, a folder, a folder's name in the models folder, or the hub id of a downloaded repository.

        Args:
            instantid: InstantID's adapter and ControlNet.
            base, faces: an SDXL model, in diffusers' layout or one ``.safetensors`` file, and a face model pack.
            identity_net: whether to load the ControlNet. Without it, the prompt sets the pose.
            device: of all networks; the best one present by default.
            dtype, torch_dtype: of the pipeline and the identities; fp16 on CUDA and fp32 elsewhere by default.
            cache: keeps faces and identities; the one of this process by default.

        Raises:
            ModelFileError: files that are missing or of another kind; says where it looked.
            BackendError: the device is not present.
        """
        defaults = None
        if "miniature" in (instantid, base, faces):
            files = miniature.files()
            instantid, base, faces = files.instantid, files.base, files.pack
            defaults = {"num_inference_steps": miniature.STEPS, "guidance_scale": miniature.GUIDANCE}
        place = Placement.resolve(device, torch_dtype if dtype is None else dtype)
        adapter = Adapter.load(InstantIDFiles.find(instantid, place.dtype).adapter, place.device, place.dtype, cache)
        analyzer = FaceAnalyzer.load(faces, device=place.device, cache=cache)
        pipe = load_pipeline(base, instantid if identity_net else None, place.device, place.dtype)
        return cls(pipe, identity_net=0 if identity_net else None, adapter=adapter, faces=analyzer, defaults=defaults)

    def to(self, *given: Any, device: Any = None, dtype: Any = None) -> InstantID:
        """Move the pipeline, the adapter and the face networks, in-place, and return this object, as ``pipe.to``.

        The face networks keep their dtype. Raises a BackendError if the device is not available.
        """
        device, dtype = device_and_dtype(given, device, dtype)
        place = Placement.resolve(device or self.pipe.device, dtype or self.pipe.dtype)
        self.pipe.to(place.device, *([] if place.dtype == self.pipe.dtype else [place.dtype]))
        if self.adapter is not None:
            self.adapter = self.adapter.to(place.device, place.dtype)
        if self.faces is not None:
            self.faces.to(place.device)
        return self

    @overload
    def person(self, photos: ImageInput, *, no_face: Literal["none"], **options: Any) -> Person | None: ...
    @overload
    def person(self, photos: ImageInput, *, choose: Choose = "largest", **options: Any) -> Person: ...
    def person(self, photos: ImageInput, *, choose: Choose = "largest", **options: Any) -> Person | None:
        """Find a person in one or more photographs of them.

        The arguments are those of :func:`~..people.find_person`, which also says what is returned and raised. An
        InstantID without a face analyzer raises a BackendError.
        """
        if self.faces is None:
            raise BackendError("no face analyzer: give InstantID(pipe, faces=FaceAnalyzer.load(...))")
        return find_person(self.faces, photos, choose=choose, **options)

    def identity(self, person: Person | None) -> Identity:
        """Return the identity of a person, from the cache if possible; for None, of an embedding of zeros.

        Without an adapter, it is the one that the person keeps, or a BackendError.
        """
        if self.adapter is not None:
            return self.adapter.identity(np.zeros((1, EMBEDDING_DIM), np.float32) if person is None else person.rows)
        if person is not None and person.identity is not None:
            return person.identity.to(self.pipe.device, self.pipe.dtype)
        raise BackendError("no adapter to make identities of persons: give InstantID(pipe, adapter=Adapter.load(...))")

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        people: People | None = (),
        *,
        keypoints: Image.Image | Sequence[Image.Image] | Literal[False] | None = None,
        scale: Scale | None = None,
        seed: int | Sequence[int] | None = None,
        enhance_non_face_region: bool = False,
        approximations: Approximations = EXACT,
        profile: str | Profile | None = None,
        **options: Any,
    ) -> Any:
        """Draw people.

        Args:
            prompt: what to draw.
            people: a person, an identity, a Subject, several, a Scene, or a list for each prompt; None for nobody.
            keypoints: the keypoint picture that places the faces, or one for each prompt. By default the first person
                poses as in the photograph. False draws without the IdentityNet, in a pose of the prompt's.
            scale: of the identity branch, 0..5, or one for each person; 0.8 by default, 0 for the IdentityNet alone.
            enhance_non_face_region: keep the identity inside of the faces' boxes. The prompt alone draws the rest.
            seed: of the noise, or one for each picture, in place of ``generator``. Every device draws the same from it.
            approximations: what to leave out, for another picture; nothing by default.
            profile: a way to sample in few steps, such as "lcm", for this call; arguments that are given win over it.
            options: of the pipeline's own call: ``num_inference_steps``, ``width``, ``generator``, and so on. The other
                ControlNets' pictures go into ``image`` (or ``control_image``), in their order.

        Returns what the pipeline returns, with ``images``. A FastInstantIDError names a scale out of range.
        """
        if prompt is not None:
            options["prompt"] = prompt
        if seed is not None:
            options["generator"] = seeded(seed)
        if people is None:
            people, scale, keypoints = self.identity(None), 0.0, False
        if isinstance(people, Scene):
            keypoints, people = people.keypoint_picture() if keypoints is None else keypoints, people.subjects
        few = Profile.of(profile)
        options, size = call_options(self, people, keypoints, options, few.options)
        # A keypoint picture does not say whose face is where.
        face_box = partial(face_box_of, size=size) if keypoints is None else lambda _: None
        drawing = drawing_of(self, people, scale, approximations, enhance_non_face_region and face_box)
        with few.applied(self.pipe, options.get("num_inference_steps")), self._block(drawing):
            return self.pipe(**options)

    def attach(
        self,
        people: People,
        scale: Scale | None = None,
        approximations: Approximations = EXACT,
        *,
        weight: Scale | None = None,
        enhance_non_face_region: bool = False,
    ) -> None:
        """Make the pipeline draw these people until :meth:`detach`, in place of those this object attached before.

        It holds for this thread or task, and for those that attached nothing, unless two of them attached people.
        Cheap: nothing is projected. Inside of :meth:`attached` it lasts until the end of that block.

        Args:
            people: one person, or several, each an Identity, a Person, or a Subject with a weight and a region of its
                own; or a list of them for each picture. The IdentityNet sees the tokens of all in a picture.
            scale: of the identity branch, 0..5: a number, or one for each person. 0.8 by default. With all scales 0 the
                UNet's attention stays untouched.
            approximations: what to leave out, for another picture; nothing by default.
            weight: another name of ``scale``.
            enhance_non_face_region: keep the identity inside of the faces' boxes, a Person's as in the photograph.

        Raises:
            ModelFileError: an identity that was made for another kind of model than this pipeline's.
            BackendError: approximations that do not work with this pipeline.
            FastInstantIDError: a scale out of range or beside Subjects, or an empty list.
        """
        mine = attachment.innermost(self)
        face_box, scale = enhance_non_face_region and face_box_of, scale if weight is None else weight
        drawing = drawing_of(self, people, scale, approximations, face_box)
        if mine is not None:
            drawing.block = mine.block
            attachment.detach(mine)
        attachment.end_ownerless(self)
        attachment.attach(drawing)

    def detach(self) -> None:
        """Undo this object's last :meth:`attach`: the people attached before draw again. Idempotent.

        In a thread or task that attached nothing, it ends what :meth:`attach` did for all. Other threads keep what they
        attached themselves. Until they detach it too, calls in threads that attached nothing raise a BackendError.
        """
        mine = attachment.innermost(self)
        if mine is not None:
            attachment.detach(mine)
        else:
            attachment.end_for_all(self)

    @contextmanager
    def attached(
        self,
        people: People,
        scale: Scale | None = None,
        approximations: Approximations = EXACT,
        *,
        weight: Scale | None = None,
        enhance_non_face_region: bool = False,
    ) -> Generator[InstantID]:
        """:meth:`attach` for a block of code. Blocks nest: at the end the outer person draws again."""
        face_box, scale = enhance_non_face_region and face_box_of, scale if weight is None else weight
        with self._block(drawing_of(self, people, scale, approximations, face_box)):
            yield self

    @contextmanager
    def _block(self, drawing: Drawing) -> Generator[None]:
        block = drawing.block = object()
        try:
            attachment.attach(drawing)
            yield
        finally:
            try:
                attachment.end_block(self, block)  # attach() in the block may have put another there
            finally:
                attachment.end_block(self, block)  # completes what an interrupt left

    @property
    def scale(self) -> Scale:
        """Scale of the attached people, 0..5: one number, or a list if they differ.

        Setting it takes effect at the next step. Raises a FastInstantIDError if no person is attached.
        """
        weights = attachment.attached_now(self).weights
        return weights[0] if len(set(weights)) == 1 else weights

    @scale.setter
    def scale(self, scale: Scale) -> None:
        attachment.attached_now(self).set_weights(scale)

    def networks(self) -> list[Any]:
        """Return the pipeline's present UNet and, if there is one, IdentityNet, as the pipeline calls them."""
        net = choose_identity_net(self.pipe, self.identity_net)
        return [self.pipe.unet] if net is None else [self.pipe.unet, net]

    def check(self, identities: Sequence[Identity]) -> dict[str, Any]:
        """Return the UNet's cross-attention layers by name. A ModelFileError if an identity does not fit."""
        choose_identity_net(self.pipe, self.identity_net, say=True)
        unet, *nets = (getattr(network, "_orig_mod", network) for network in self.networks())
        layers = cross_attention_layers(unet)
        for identity in identities:
            check_fit(identity, list(layers.values()), nets, type(self.pipe).__name__)
        return layers

    def __repr__(self) -> str:
        return f"InstantID({type(self.pipe).__name__})"
