"""The networks of ``generate``: persons found, pictures drawn and judged."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FastInstantIDError, NoFaceError
from ..miniature import DRAWN_ONLY
from ..recorder import stage
from .jobs import NO_GATE, Drawn, Job, keypoints_in
from .models import Models, face_analyzer
from .output import report_step, timed

if TYPE_CHECKING:
    from PIL import Image

    from ..people import Person


def check(job: Job) -> None:
    """Check the numbers and names of a job. A FastInstantIDError names one that cannot be."""
    from ..pipelines import Sampling
    from ..pipelines.alike import check_gate
    from ..pipelines.load import scheduler_class

    names = ("scale", "controlnet_conditioning_scale", "num_inference_steps", "guidance_scale", "seed")
    Sampling(**{name: getattr(job, name) for name in names})
    check_gate(0 if job.at_least is None else job.at_least, job.tries)
    if job.scheduler:
        scheduler_class(job.scheduler)
    if not 0 < job.strength <= 1 or (job.image and int(job.num_inference_steps * job.strength) < 1):
        raise FastInstantIDError(
            f"strength {job.strength:g} of {job.num_inference_steps} steps: expected 0 to 1, and at least one step"
        )


@dataclass
class Studio:
    """The networks, each loaded on its first use."""

    options: argparse.Namespace
    models: Models

    def __post_init__(self) -> None:
        with stage("import"):
            from ..pipelines import Approximations, InstantIDFiles
            from ..placement import Placement

        options = self.options
        self.seconds: dict[str, float] = {}
        self.place = Placement.resolve(options.device, options.dtype)
        self.files = InstantIDFiles.find(self.models.instantid, self.place.dtype)
        self.approximations = Approximations(
            layers=options.layers,
            identity_range=tuple(options.identity_range),
            identity_net_range=tuple(options.identity_net_range),
            identity_net_every=options.identity_net_every,
        )
        self._analyzer = self._adapter = self._pipe = None
        self._instantid: dict[bool, Any] = {}
        self._people: dict[tuple[str, ...], Person] = {}

    @property
    def analyzer(self) -> Any:
        if self._analyzer is None:
            with timed("face networks", self.seconds):
                self._analyzer = face_analyzer(self.options, self.models.pack)
        return self._analyzer

    def person(self, *photos: str) -> Person:
        """Load a person, or find it in photographs, once. With ``--no-face none``, no face is a person of zeros."""
        if photos not in self._people:
            self._people[photos] = self._found(photos)
        return self._people[photos]

    def _found(self, photos: Sequence[str]) -> Person:
        import numpy as np

        from ..faces import Face
        from ..images import load_image
        from ..people import Person, find_person
        from ..people.person import check_same_recognizer

        if photos[0].endswith(".safetensors"):
            person = Person.load(photos[0])
            if self.options.likeness or self.options.at_least is not None:
                check_same_recognizer([person], self.analyzer.networks.recognizer_fingerprint)
            return person
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

    def judges(self, job: Job) -> bool:
        """Whether the likeness of its picture is asked for."""
        return self.options.likeness or job.at_least is not None

    def judge(self, image: Any, person: Person) -> float:
        """Likeness of a picture, or of a picture's file, to four digits; NaN without a face."""
        from ..people import likeness_in

        analyzer = self.analyzer
        with timed("likeness", self.seconds):
            return round(float(likeness_in(analyzer, image, [person])[0, 0]), 4)

    def draw(self, batch: Sequence[Job], people: Sequence[Person]) -> list[Drawn]:
        """Draw a person for each job, again where it is not alike enough. All jobs have one ``batch``."""
        from ..pipelines.alike import best_of

        for job in batch:
            check(job)
        absent = [is_nobody(person) for person in people]
        if any(absent) and not all(absent):  # the IdentityNet has another scale
            drawn = {}
            for kind in (True, False):
                numbers = [i for i in range(len(batch)) if absent[i] is kind]
                drawn |= zip(numbers, self.draw([batch[i] for i in numbers], [people[i] for i in numbers]), strict=True)
            return [drawn[i] for i in range(len(batch))]
        if absent[0] or not self.judges(batch[0]):
            images = self._sample(batch, people)
            return [
                Drawn(image, replace(job, **NO_GATE), None, absent[0]) for image, job in zip(images, batch, strict=True)
            ]

        def judged(numbers: Sequence[int], seeds: Sequence[int]) -> tuple[list[Any], list[Any]]:
            jobs = [replace(batch[i], seed=seed) for i, seed in zip(numbers, seeds, strict=True)]
            images = self._sample(jobs, [people[i] for i in numbers])
            return images, [self.judge(image, people[i]) for image, i in zip(images, numbers, strict=True)]

        gate, tries = (0.0, 1) if batch[0].at_least is None else (batch[0].at_least, batch[0].tries)
        kept = best_of([job.seed for job in batch], judged, gate, tries)
        return [
            Drawn(one.image, replace(job, seed=one.seed, **NO_GATE), float(one.likeness))
            for one, job in zip(kept, batch, strict=True)
        ]

    def _sample(self, batch: Sequence[Job], people: Sequence[Person]) -> list[Image.Image]:
        import torch
        from PIL import Image, ImageOps

        from ..faces import keypoint_picture, sdxl_size
        from ..identity import Adapter
        from ..images import load_image
        from ..pipelines import Subject
        from ..placement import in_batches

        first, nobody = batch[0], is_nobody(people[0])
        keypoints: list[Image.Image] = []
        changed: list[Image.Image] = []
        for job, person in zip(batch, people, strict=True):
            faces, shape = keypoints_in(Path(job.keypoints)) if job.keypoints else (person.face, person.photo_size)
            size = job.size or self.models.size
            if job.image:
                picture = load_image(job.image)
                size = size or sdxl_size(picture)
                changed.append(ImageOps.fit(picture, size))
            if nobody:
                keypoints.append(Image.new("RGB", size or sdxl_size(shape)))
            elif isinstance(faces, Image.Image):
                keypoints.append(faces.resize(size or sdxl_size(shape)))
            else:
                keypoints.append(keypoint_picture(faces, shape, size))
        with timed("identity", self.seconds):
            if self._adapter is None:
                self._adapter = Adapter.load(
                    self.files.adapter, self.place.device, self.place.dtype, self.options.cache
                )
            identities = [
                self._adapter.identity(person.rows, noise=job.noise) for job, person in zip(batch, people, strict=True)
            ]
        instantid = self.loaded(first)

        def report(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            report_step(step + 1, pipe.num_timesteps)
            return tensors

        def sample(part: slice) -> list[Image.Image]:
            subjects = [
                [Subject(identity, 0.0 if nobody else job.scale)]
                for job, identity in zip(batch[part], identities[part], strict=True)
            ]
            more: dict[str, Any] = {}
            scale: Any = 0.0 if nobody else float(first.controlnet_conditioning_scale)
            posed: Any = keypoints[part]
            if first.controlnet:
                (posed,) = posed
                name = "control_image" if first.image else "image"
                more[name] = [ImageOps.fit(load_image(one[1]), posed.size) for one in first.controlnet]
                scale = [scale, *(one[2] for one in first.controlnet)]
            if first.image:
                more |= {"image": changed[part], "strength": first.strength}
            return instantid(
                [job.prompt for job in batch[part]],
                subjects,
                keypoints=posed,
                negative_prompt=[job.negative_prompt for job in batch[part]],
                # Seeded on the CPU: other devices draw other numbers from the same seed.
                generator=[torch.Generator("cpu").manual_seed(job.seed) for job in batch[part]],
                num_inference_steps=first.num_inference_steps,
                guidance_scale=first.guidance_scale,
                controlnet_conditioning_scale=scale,
                approximations=self.approximations,
                callback_on_step_end=report,
                **more,
            ).images

        # One size to a batch: without --size it follows the photograph. diffusers takes one picture for each of several
        # ControlNets.
        together = len({picture.size for picture in keypoints}) == 1 and not first.controlnet
        with timed("sampling", self.seconds), stage("sampling"):
            return in_batches(len(batch), len(batch) if together else 1, sample)

    def loaded(self, job: Job) -> Any:
        """The InstantID for a job. LoRAs, ControlNets and the scheduler are those of the first, as of all."""
        from ..pipelines import InstantID, load, load_pipeline

        kind = bool(job.image)
        if kind not in self._instantid:
            with timed("pipeline", self.seconds):
                if self._pipe is None:
                    pipe = load_pipeline(self.models.base, self.models.instantid, self.place.device, self.place.dtype)
                    if job.scheduler:
                        made = load.scheduler_class(job.scheduler)
                        pipe.scheduler = made.from_config(pipe.scheduler.config)
                    load.add_loras(pipe, job.lora)
                    if job.controlnet:
                        pipe = load.with_controlnets(pipe, [one[0] for one in job.controlnet])
                    self._pipe = pipe
                self._instantid[kind] = InstantID(load.image_to_image(self._pipe) if kind else self._pipe, 0)
        return self._instantid[kind]


def is_nobody(person: Person) -> bool:
    """Whether this stands for a photograph without a face."""
    return not person.embeddings.any()
