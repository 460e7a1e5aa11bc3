"""What the service computes: faces in batches, pictures one batch at a time on one pipeline."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ...errors import BackendError, FastInstantIDError, ImageError
from ...faces import Face, keypoint_picture, sdxl_size
from ...images import one_photo
from ...miniature import files
from ...people import Person, Scene, Subject, find_faces, likeness_in, ordered
from ...people.find import people_in
from ...people.person import check_same_recognizer
from ...pipelines import InstantID
from ...pipelines.profiles import Profile
from .batch_queue import BatchQueue, Job
from .documents import PictureRequest
from .limits import Limits
from .previews import Previews, expected
from .uploads import decoded

_OPTIONS = ("num_inference_steps", "guidance_scale", "controlnet_conditioning_scale")
_PREVIEWS = 8  # of a picture at most
_FACE = np.array([[44, 50], [84, 50], [64, 72], [48, 94], [80, 94]], np.float32)  # of a 128 x 128 portrait


class Left(Exception):
    """No client waits for the batch any more, or the service ends."""


@dataclass(eq=False)
class Search:
    """Photographs to search for faces; ``keep`` chooses those of each that are recognised."""

    photos: Sequence[bytes]
    keep: Callable[[list[Face]], list[Face]]


@dataclass(eq=False)
class Picture:
    """A picture to draw: what was asked, and where its persons are."""

    asked: PictureRequest
    people: list[Person]
    subjects: list[Subject]
    keypoints: Image.Image
    previews: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Of the pipeline's call."""
        return {name: getattr(self.asked, name) for name in _OPTIONS}

    @property
    def kind(self) -> Any:
        """Pictures of equal kinds can be drawn in one batch."""
        return self.keypoints.size, tuple(len(one.rows) for one in self.people), tuple(self.options.items())


@dataclass(eq=False)
class Drawn:
    """A picture and the likeness of its persons; NaN without a face, None where it was not asked for."""

    image: Image.Image
    likeness: list[float] | None


class Engine:
    """Two queues, two threads: one runs the face networks, one the pipeline.

    Nothing of a request outlives it here. The caches of ``instantid`` are the caller's.

    Args:
        instantid: with an adapter and a face analyzer.
        size: ``(width, height)`` of a picture for which none is asked; None for a megapixel in the photograph's shape.
        profile: a way to sample in few steps, or "".
    """

    def __init__(
        self, instantid: InstantID, limits: Limits, size: tuple[int, int] | None = None, profile: str = ""
    ) -> None:
        if instantid.faces is None or instantid.adapter is None:
            raise BackendError("a service needs a face analyzer and an adapter: give both to InstantID")
        self.instantid, self.analyzer, self.limits = instantid, instantid.faces, limits
        self.profile = profile
        usual = instantid.defaults | Profile.of(profile or None).options
        self.defaults: dict[str, Any] = {name: usual[name] for name in _OPTIONS}  # of a request, and of the document
        self.defaults["num_inference_steps"] = min(usual["num_inference_steps"], limits.steps)
        if size:
            self.defaults |= zip(("width", "height"), self._within_limits(size), strict=True)
        self.face_queue = BatchQueue(self._search, limits.queue, 1.0)
        self.picture_queue = BatchQueue(self._draw, limits.queue, limits.batch)
        self.is_ready, self._ends = False, threading.Event()
        self.failure: Exception | None = None  # of the warm-up
        self.warm_up = threading.Thread(target=self._begin, name="fast-instantid warm-up")
        self._previews, self._decoders = Previews(), ThreadPoolExecutor(4)

    def start(self) -> None:
        """Warm up in a thread, then take jobs."""
        self.warm_up.start()

    def stop(self) -> None:
        """Cancel all jobs and the warm-up: what runs ends at its next step."""
        self._ends.set()
        self.is_ready = False
        self.face_queue.stop()
        self.picture_queue.stop()

    def join(self) -> None:
        """Wait until all threads have ended: a process that ends before torch's threads is aborted."""
        self.warm_up.join()
        self.face_queue.join()
        self.picture_queue.join()
        self._decoders.shutdown()

    def _begin(self) -> None:
        try:
            self._warm_up()
            self.face_queue.start()
            self.picture_queue.start()
            self.is_ready = not self._ends.is_set()
        except Exception as error:
            self.failure = None if self._ends.is_set() else error

    def _warm_up(self) -> None:
        """Run every network once, at the usual sizes, on a drawn portrait."""
        photo = files().portraits[0].read_bytes()
        self._search([Job(Search([photo], lambda faces: faces))])
        face = Face(np.array([24, 8, 104, 120], np.float32), _FACE, 1.0)
        person = people_in(self.analyzer, [one_photo(Image.open(io.BytesIO(photo)))], [[face]])[0][0]
        asked = PictureRequest.model_validate({"prompt": "a colourful portrait", "num_inference_steps": 2})
        self._draw([self.picture(asked, [person])])

    def search(self, photos: Sequence[bytes], keep: Callable[[list[Face]], list[Face]], pixels: int) -> Job:
        """A job for photographs of so many pixels. Its result is photo, faces and kept persons of each."""
        cost = max(pixels / self.limits.pixels, len(photos) / self.limits.face_batch)
        return Job(Search(photos, keep), cost=cost)

    def _search(self, jobs: list[Job]) -> list[Any]:
        results: list[Any] = []
        for job in jobs:
            try:
                results.append([*self._decoders.map(decoded, job.work.photos, range(len(job.work.photos)))])
            except ImageError as error:
                results.append(error.with_traceback(None))  # which would hold these results
        good = [number for number, photos in enumerate(results) if isinstance(photos, list)]
        photos = [photo for number in good for photo in results[number]]
        found = find_faces(self.analyzer, photos) if photos else []
        keeps = [jobs[number].work.keep for number in good for _ in results[number]]
        kept = [keep(faces) if faces else [] for keep, faces in zip(keeps, found, strict=True)]
        rows = iter(zip(photos, found, people_in(self.analyzer, photos, kept), strict=True))
        return [[next(rows) for _ in photos] if isinstance(photos, list) else photos for photos in results]

    def largest(self, faces: list[Face]) -> list[Face]:
        """The faces that are recognised where all are asked for, from left to right."""
        return ordered(ordered(faces)[: self.limits.faces], "left to right")

    def check_number(self, people: int, photographs: int = 1) -> None:
        """Raise a FastInstantIDError for nobody, or for too many persons in a picture or photographs of one."""
        limits = self.limits
        if not 0 < people <= limits.people or photographs > limits.photos:
            raise FastInstantIDError(
                f"{people} persons: give 1 to {limits.people}, of {limits.photos} photographs each at most, as "
                "photos, persons or person_files"
            )

    def _within_limits(self, size: tuple[int, int]) -> tuple[int, ...]:
        scale = min(1.0, math.sqrt(self.limits.area / math.prod(size)))
        return tuple(max(64, int(side * scale) // 8 * 8) for side in size)

    def picture(self, asked: PictureRequest, people: list[Person], previews: bool = False) -> Job:
        """A job for one person in the photograph's pose, or for several side by side. It is not queued yet.

        Raises:
            FastInstantIDError: nobody, too many, a person of another recogniser, or a number beyond a limit.
        """
        limits = self.limits
        self.check_number(len(people), max((len(one.embeddings) for one in people), default=0))
        check_same_recognizer(people, self.analyzer.networks.recognizer_fingerprint)
        width, height = self._within_limits(sdxl_size(people[0].photo_size))
        usual = {"width": width, "height": height} | self.defaults
        asked = asked.model_copy(update={name: usual[name] for name in usual if getattr(asked, name) is None})
        size, steps = (asked.width or 0, asked.height or 0), asked.num_inference_steps or 0
        if math.prod(size) > limits.area or steps > limits.steps:
            raise FastInstantIDError(
                f"{size[0]} x {size[1]} pixels in {steps} steps: at most {limits.area} pixels and {limits.steps} steps "
                "are drawn here"
            )
        subjects = [Subject(one, asked.scale) for one in people]
        try:
            if len(people) == 1:
                keypoints = keypoint_picture(people[0].face, people[0].photo_size, size)
            else:
                scene = Scene(size, subjects)
                subjects, keypoints = scene.subjects, scene.keypoint_picture()
        except ValueError as error:  # of points far beside a small photograph
            raise FastInstantIDError(f"no place in {size[0]} x {size[1]} pixels: {error}") from error
        picture = Picture(asked, people, subjects, keypoints, previews)
        return Job(picture, picture.kind)

    def _draw(self, jobs: list[Job]) -> list[Any]:
        pictures: list[Picture] = [job.work for job in jobs]
        latents: Any = None

        def after(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal latents
            if self._ends.is_set() or all(job.future.done() for job in jobs):
                raise Left
            before, latents = latents, tensors["latents"]
            steps = pipe.num_timesteps
            for job in jobs:
                job.tell("step", {"step": step + 1, "steps": steps})
            if any(picture.previews for picture in pictures) and step % -(-steps // _PREVIEWS) == 0 < step:
                now = expected(pipe.scheduler, step, before, latents)
                for number, job in enumerate(jobs):
                    if job.work.previews:
                        job.tell("preview", {"step": step + 1, "jpeg": self._previews.jpeg(now[number])})
            return tensors

        images = self.instantid(
            [picture.asked.prompt for picture in pictures],
            [picture.subjects for picture in pictures],
            keypoints=[picture.keypoints for picture in pictures],
            negative_prompt=[picture.asked.negative_prompt for picture in pictures],
            seed=[picture.asked.seed for picture in pictures],
            profile=self.profile or None,
            callback_on_step_end=after,
            **pictures[0].options,
        ).images
        if not self.is_ready:
            self._previews.fit(latents[:1], images[0])
        return [Drawn(image, self._likeness(picture, image)) for picture, image in zip(pictures, images, strict=True)]

    def _likeness(self, picture: Picture, image: Image.Image) -> list[float] | None:
        return [*map(float, likeness_in(self.analyzer, image, picture.people)[0])] if picture.asked.likeness else None
