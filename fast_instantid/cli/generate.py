"""The command ``fast-instantid generate``: one picture, or many."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FastInstantIDError, NoFaceError
from ..files import check_parent
from ..miniature import DRAWN_ONLY
from ..recorder import stage
from . import jobs
from .jobs import Job
from .models import Models, face_analyzer
from .output import PICTURE_SUFFIXES, check_output, print_json, report_step, timed

if TYPE_CHECKING:
    from PIL import Image

    from ..people import Person

CONVERT: dict[str, Callable[[str], Any]] = {
    "seed": int,
    "num_inference_steps": int,
    **dict.fromkeys(("scale", "controlnet_conditioning_scale", "guidance_scale", "noise"), float),
}
"""Text of a CSV file -> value of an option."""


def run(options: argparse.Namespace, size: Callable[[str], tuple[int, int]]) -> int:
    """Draw one picture into a file, or many into a folder. ``size`` converts the text of a size."""
    if options.settings:
        for name, value in jobs.settings_of(options.settings).items():
            is_source = name == "person" and (options.photo or options.person or options.jobs)
            if getattr(options, name, None) == options.parser.get_default(name) and not is_source:
                value = tuple(value) if name == "size" and value else value
                setattr(options, name, [value] if name in ("person", "prompt", "seed") else value)
    models = Models.of(options)
    seeds = options.seed or [0]
    default = Job(
        "",
        "",
        seeds[0],
        options.negative_prompt,
        options.scale,
        options.controlnet_conditioning_scale,
        models.steps if options.num_inference_steps is None else options.num_inference_steps,
        models.guidance if options.guidance_scale is None else options.guidance_scale,
        options.noise,
        options.size,
    )
    wanted: list[Any] = []
    if options.jobs:
        if options.prompt:
            default = replace(default, prompt=options.prompt[0])
        wanted = jobs.from_csv(options.jobs, default, CONVERT | {"size": size})
    elif not (options.photo or options.person):
        raise FastInstantIDError("nobody to draw: give --photo, --person, --jobs or --from")
    elif not options.prompt:
        raise FastInstantIDError("nothing to draw: give --prompt")
    else:
        people = jobs.people_of(options.person) if options.person else [options.photo[0]]
        wanted = jobs.from_options(default, people, options.prompt, seeds)
    if len(wanted) == 1 and not options.jobs and options.output.suffix:
        return _one(options, models, wanted[0])
    if len(options.photo or ()) > 1:
        raise FastInstantIDError(
            "several photos and several pictures: keep the person in a file by 'person make', and give --person"
        )
    folder: Path = options.output
    if folder.suffix or (folder.exists() and not folder.is_dir()):
        raise FastInstantIDError(f"{folder}: {len(wanted)} pictures go into a folder; name one")
    check_parent(folder)
    folder.mkdir(exist_ok=True)
    studio = _Studio(options, models)
    return jobs.run(wanted, folder, options.batch_size, studio.person, studio.draw)


def _one(options: argparse.Namespace, models: Models, job: Job) -> int:
    check_output(options.output, PICTURE_SUFFIXES, options.photo or options.person)
    check_sampling(job)
    studio = _Studio(options, models)
    person = studio.person(*(options.photo or [job.person]))
    image = studio.draw([job], [person])[0]
    jobs.save(image, options.output, job)
    if options.json:
        print_json({"output": str(options.output), "size": image.size, "seconds": studio.seconds})
    else:
        times = ", ".join(f"{name} {value:.2f} s" for name, value in studio.seconds.items())
        print(f"{options.output}: {image.width} x {image.height} on {studio.place.device} ({times})")
    return 0


def check_sampling(job: Job) -> None:
    """Check the numbers of a job. A FastInstantIDError names one out of range."""
    from ..pipelines import Sampling

    Sampling(
        scale=job.scale,
        controlnet_conditioning_scale=job.controlnet_conditioning_scale,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        seed=job.seed,
    )


@dataclass
class _Studio:
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
        self._analyzer = self._adapter = self._instantid = None

    def person(self, *photos: str) -> Person:
        """Load a person, or find it in photographs."""
        from ..people import Person, find_person

        if photos[0].endswith(".safetensors"):
            return Person.load(photos[0])
        if self._analyzer is None:
            with timed("face networks", self.seconds):
                self._analyzer = face_analyzer(self.options, self.models.pack)
        with timed("faces", self.seconds):
            try:
                return find_person(self._analyzer, photos)
            except NoFaceError as error:
                if not self.models.is_miniature:
                    raise
                raise NoFaceError(f"{error}; {DRAWN_ONLY}") from error

    def draw(self, batch: Sequence[Job], people: Sequence[Person]) -> list[Image.Image]:
        """Draw a person for each job. All jobs have one ``batch``."""
        import torch

        from ..faces import keypoint_picture
        from ..identity import Adapter
        from ..pipelines import InstantID, Subject, load_pipeline
        from ..placement import in_batches

        for job in batch:
            check_sampling(job)
        keypoints = [
            keypoint_picture(person.face, person.photo_size, job.size or self.models.size)
            for job, person in zip(batch, people, strict=True)
        ]
        with timed("identity", self.seconds):
            if self._adapter is None:
                self._adapter = Adapter.load(
                    self.files.adapter, self.place.device, self.place.dtype, self.options.cache
                )
            identities = [
                self._adapter.identity(person.rows, noise=job.noise) for job, person in zip(batch, people, strict=True)
            ]
        if self._instantid is None:
            with timed("pipeline", self.seconds):
                pipe = load_pipeline(self.models.base, self.models.instantid, self.place.device, self.place.dtype)
                self._instantid = InstantID(pipe, identity_net=0)
        instantid, first = self._instantid, batch[0]

        def report(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            report_step(step + 1, pipe.num_timesteps)
            return tensors

        def sample(part: slice) -> list[Image.Image]:
            subjects = [
                [Subject(identity, job.scale)] for job, identity in zip(batch[part], identities[part], strict=True)
            ]
            return instantid(
                [job.prompt for job in batch[part]],
                subjects,
                keypoints=keypoints[part],
                negative_prompt=[job.negative_prompt for job in batch[part]],
                # Seeded on the CPU: other devices draw other numbers from the same seed.
                generator=[torch.Generator("cpu").manual_seed(job.seed) for job in batch[part]],
                num_inference_steps=first.num_inference_steps,
                guidance_scale=first.guidance_scale,
                controlnet_conditioning_scale=float(first.controlnet_conditioning_scale),
                approximations=self.approximations,
                callback_on_step_end=report,
            ).images

        # One size to a batch: without --size it follows the photograph.
        alike = len({picture.size for picture in keypoints}) == 1
        with timed("sampling", self.seconds), stage("sampling"):
            return in_batches(len(batch), len(batch) if alike else 1, sample)
