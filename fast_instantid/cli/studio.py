"""The networks of ``generate``: persons found, pictures drawn and judged."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from ..errors import FastInstantIDError, NoFaceError
from ..miniature import DRAWN_ONLY
from ..recorder import stage
from .jobs import NO_GATE, Drawn, Job, keypoints_in
from .models import Models, face_analyzer
from .output import reported, timed

if TYPE_CHECKING:
    from PIL import Image

    from ..people import Person, Scene, Subject


_PERSONS = 256  # kept in memory; a batch may name any number


def check(job: Job) -> None:
    """Check the numbers of a job. A FastInstantIDError names one out of range."""
    with stage("import"):
        from ..pipelines import Sampling
        from ..pipelines.alike import check_gate

    names = ("scale", "controlnet_conditioning_scale", "num_inference_steps", "guidance_scale", "seed")
    Sampling(**{name: getattr(job, name) for name in names})
    check_gate(job.at_least or 0, job.tries)
    if not 0 < job.strength <= 1 or (job.image and job.num_inference_steps * job.strength < 1):
        steps = f"{job.num_inference_steps} steps"
        raise FastInstantIDError(f"strength {job.strength:g} of {steps}: expected 0 to 1, and at least one step")


def profile_of(job: Job) -> Any:
    """Return the job's profile; a scheduler that is given wins over that of the profile."""
    from ..pipelines.profiles import Profile

    profile = Profile.of(job.profile or None)
    return replace(profile, scheduler="") if job.scheduler else profile


@dataclass
class Studio:
    """The networks, each loaded on its first use."""

    options: argparse.Namespace
    models: Models

    def __post_init__(self) -> None:
        with stage("import"):
            from ..pipelines import Approximations, InstantIDFiles
            from ..pipelines.approximations import EXACT, FAST
            from ..placement import Placement

        # diffusers warns of each cast of a VAE, also of one that is in fp32 already.
        logging.getLogger("diffusers.models.modeling_utils").setLevel(logging.ERROR)
        options = self.options
        self.seconds: dict[str, float] = {}
        self.place = Placement.resolve(options.device, options.dtype)
        self.files = InstantIDFiles.find(self.models.instantid, self.place.dtype)
        given = Approximations(
            layers=options.layers,
            identity_range=tuple(options.identity_range),
            identity_net_range=tuple(options.identity_net_range),
            identity_net_every=options.identity_net_every,
        )
        if options.fast:
            changed = {name: value for name, value in vars(given).items() if value != getattr(EXACT, name)}
            given = replace(FAST, **changed)
        self.approximations = given
        self.find, self.instantid = lru_cache(_PERSONS)(self._person), cache(self._instantid)

    @cached_property
    def analyzer(self) -> Any:
        with timed("face networks", self.seconds):
            return face_analyzer(self.options, self.models.pack)

    def person(self, *sources: str) -> Person | Scene:
        """Load a scene, load a person, or find a person in photographs."""
        from ..people import load_scene

        return load_scene(sources[0], self.find) if sources[0].endswith(".json") else self.find(*sources)

    def _person(self, *photos: str) -> Person:
        """Load or find a person. With ``--no-face none``, no face is a person of zeros."""
        import numpy as np

        from ..faces import Face
        from ..images import load_image
        from ..people import Person, find_person

        if photos[0].endswith(".safetensors"):
            return Person.load(photos[0])
        analyzer = self.analyzer
        with timed("faces", self.seconds):
            try:
                return find_person(analyzer, photos, no_face="error" if self.options.no_face == "error" else "skip")
            except NoFaceError as error:
                if self.options.no_face == "none":
                    nowhere = Face(np.zeros(4, np.float32), np.zeros((5, 2), np.float32), 0.0)
                    return Person(np.zeros((1, 512)), nowhere, load_image(photos[0]).size)
                if not self.models.is_miniature:
                    raise
                raise NoFaceError(f"{error}; {DRAWN_ONLY}") from error

    def judge(self, image: Any, person: Person | Scene) -> float:
        """Likeness of a picture, or of a picture's file, to four digits; of a scene the least. NaN without a face."""
        from ..people import likeness_in

        return round(float(likeness_in(self.analyzer, image, _people(person))[0].min()), 4)

    def judges(self, job: Job) -> bool:
        """Whether the likeness of its picture is asked for."""
        return self.options.likeness or job.at_least is not None

    def draw(self, batch: Sequence[Job], people: Sequence[Person | Scene]) -> list[Drawn]:
        """Draw a person for each job, again where it is not alike enough.

        All jobs have one ``batch``. Either all persons or none stand for a photograph without a face.
        """
        from ..people.person import check_same_recognizer
        from ..pipelines.alike import best_of

        for job in batch:
            check(job)
        absent = is_nobody(people[0])
        if absent or not self.judges(batch[0]):
            done = [replace(job, **NO_GATE) for job in batch]
            return [Drawn(*one, None, absent) for one in zip(self._sample(batch, people), done, strict=True)]
        check_same_recognizer(
            [one for person in people for one in _people(person)], self.analyzer.networks.recognizer_fingerprint
        )

        def judged(numbers: Sequence[int], seeds: Sequence[int]) -> tuple[list[Any], list[Any]]:
            jobs = [replace(batch[i], seed=seed) for i, seed in zip(numbers, seeds, strict=True)]
            images = self._sample(jobs, [people[i] for i in numbers])
            return images, [self.judge(image, people[i]) for image, i in zip(images, numbers, strict=True)]

        gate, tries = (0.0, 1) if batch[0].at_least is None else (batch[0].at_least, batch[0].tries)
        kept = best_of([job.seed for job in batch], judged, gate, tries)
        done = [replace(job, seed=one.seed, **NO_GATE) for job, one in zip(batch, kept, strict=True)]
        return [Drawn(one.image, job, float(one.likeness)) for job, one in zip(done, kept, strict=True)]

    def _sample(self, batch: Sequence[Job], people: Sequence[Person | Scene]) -> list[Image.Image]:
        from PIL import ImageOps

        from ..images import load_image
        from ..placement import in_batches

        first, absent = batch[0], is_nobody(people[0])
        with timed("identity", self.seconds):
            placed = [self._placed(job, person) for job, person in zip(batch, people, strict=True)]
        keypoints, subjects = [hint for hint, _ in placed], [those for _, those in placed]
        instantid = self.instantid(bool(first.image), first.identity_net, first.scheduler, first.lora, first.controlnet)
        has_net = hasattr(instantid.pipe, "controlnet")

        def sample(part: slice) -> list[Image.Image]:
            posed: Any = keypoints[part]
            prompts: Any = [job.prompt for job in batch[part]]
            negative: Any = [job.negative_prompt for job in batch[part]]
            scale: Any = 0.0 if absent or not first.identity_net else float(first.controlnet_conditioning_scale)
            more: dict[str, Any] = {}
            if first.image:
                pictures = zip(batch[part], posed, strict=True)
                more = {"image": [ImageOps.fit(load_image(job.image), hint.size) for job, hint in pictures]}
                more["strength"] = first.strength
            if first.controlnet:
                (posed,), (prompts,), (negative,) = posed, prompts, negative
                hints = [ImageOps.fit(load_image(picture), posed.size) for _, picture, _ in first.controlnet]
                more["control_image" if first.image else "image"] = hints
                scale = [scale, *(scale for _, _, scale in first.controlnet)]
            if has_net:
                more |= {"keypoints": posed, "controlnet_conditioning_scale": scale}
            elif not first.image:
                more["width"], more["height"] = posed[0].size
            return instantid(
                prompts,
                subjects[part],
                enhance_non_face_region=first.enhance_non_face_region,
                negative_prompt=negative,
                seed=[job.seed for job in batch[part]],
                num_inference_steps=first.num_inference_steps,
                guidance_scale=first.guidance_scale,
                approximations=self.approximations,
                profile=profile_of(first),
                callback_on_step_end=reported,
                **more,
            ).images

        # One size to a batch: without --size it follows the photograph. Several ControlNets take one picture each.
        together = len({picture.size for picture in keypoints}) == 1 and not first.controlnet
        with timed("sampling", self.seconds), stage("sampling"):
            return in_batches(len(batch), len(batch) if together else 1, sample)

    def _placed(self, job: Job, person: Person | Scene) -> tuple[Image.Image, list[Subject]]:
        """The keypoint picture of a job, in the size of the picture to draw, and who is in it."""
        from ..faces import keypoint_picture, sdxl_size
        from ..images import load_image
        from ..people import Scene, Subject
        from ..people.face_box import face_box_in

        faces: Any
        if isinstance(person, Scene):
            scene = replace(person, size=job.size or person.size)
            hint = keypoints_in(job.keypoints)[0].resize(scene.size) if job.keypoints else scene.keypoint_picture()
            return hint, [self._identified(one, job) for one in scene.subjects]
        faces, shape = keypoints_in(job.keypoints) if job.keypoints else ([person.face], person.photo_size)
        size = job.size or self.models.size or sdxl_size(load_image(job.image) if job.image else shape)
        subject = Subject(person, 0.0 if is_nobody(person) else job.scale)
        if hasattr(faces, "resize"):
            return faces.resize(size), [self._identified(subject, job)]
        if len(faces) == 1:
            subject = replace(subject, face_box=face_box_in(faces[0], shape, size))
        return keypoint_picture(faces, shape, size), [self._identified(subject, job)]

    def _identified(self, subject: Any, job: Job) -> Subject:
        """A subject with the identity of its person, as the job's noise makes it."""
        return replace(subject, identity=self.adapter.identity(subject.identity.rows, noise=job.noise))

    @cached_property
    def adapter(self) -> Any:
        from ..identity import Adapter

        return Adapter.load(self.files.adapter, self.place.device, self.place.dtype, self.options.cache)

    def _instantid(self, has_image: bool, has_net: bool, *added: Any) -> Any:
        """The InstantID of jobs with this scheduler, these LoRAs and ControlNets, which are those of the whole run."""
        from ..pipelines import InstantID, load_pipeline
        from ..pipelines.load import image_to_image, with_additions

        scheduler, loras, controlnets = added
        net = 0 if has_net or controlnets else None
        if has_image:
            return InstantID(image_to_image(self.instantid(False, has_net, *added).pipe), identity_net=net)
        with timed("pipeline", self.seconds):
            source = None if net is None else self.models.instantid
            pipe = load_pipeline(self.models.base, source, self.place.device, self.place.dtype)
            pipe = with_additions(pipe, scheduler, loras, [path for path, *_ in controlnets])
            return InstantID(pipe, identity_net=net)


def _people(person: Any) -> list[Person]:
    """The persons of a picture: of a Scene, or the one person."""
    return [one.identity for one in person.people] if hasattr(person, "people") else [person]


def is_nobody(person: Person | Scene) -> bool:
    """Whether this stands for a photograph without a face."""
    return not any(one.embeddings.any() for one in _people(person))
