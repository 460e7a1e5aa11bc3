"""The demo: pictures of one portrait's person in other scenes, and their likeness.

``fast-instantid demo`` runs it on the miniature. :func:`run` uses the library as any program does with other models.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..cache import Cache
from ..errors import NoFaceError
from ..faces import keypoint_picture
from ..images import photos
from ..miniature import DRAWN_ONLY, GUIDANCE, SIZE, STEPS, MiniatureFiles
from ..people import Person, likeness_in
from ..pipelines import InstantID, Sampling, generate
from ..pipelines.generate import Progress

PROMPTS = (
    "flat portrait, starry blue background, red jacket",
    "outlined portrait, sunny yellow background, teal shirt",
    "soft portrait, hilly green background, white jumper",
    "flat portrait, striped pink background, black jacket",
)
SAMPLING = Sampling(num_inference_steps=STEPS, guidance_scale=GUIDANCE)


@dataclass(frozen=True)
class Picture:
    """A picture of the demo."""

    prompt: str
    image: Image.Image
    likeness: float
    """Cosine between the embeddings of its person and of the face found here; NaN if none was found."""
    person: Person


@dataclass
class Demo:
    """Pictures, likenesses and times of the demo."""

    person: Person
    """Of the portrait."""
    portrait: Image.Image
    keypoints: Image.Image
    pictures: list[Picture]
    strangers: list[float]
    """Likeness of the portrait to the shipped portraits of other people, for comparison."""
    seconds: dict[str, list[float]] = field(default_factory=dict[str, "list[float]"])
    """Duration of each stage, and of its repetition if it was repeated."""


def run(
    files: MiniatureFiles,
    portrait: Path,
    other: Path | None = None,
    prompts: Sequence[str] = PROMPTS,
    sampling: Sampling = SAMPLING,
    device: str | None = None,
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> Demo:
    """Draw the person of a portrait. The person is found twice, to show the effect of the cache.

    Args:
        files: the miniature.
        portrait: a picture file with a drawn face.
        other: a portrait of another person, who is in the last picture of the same batch.
        prompts: one picture is drawn for each.
        sampling: how.
        device: where everything runs; the best one there is by default.
        progress: called after each step.
        cache: keeps faces and identities; the one of this process by default.

    Raises:
        NoFaceError: no face was found in the portrait.
        ImageError: the portrait is not a picture.
        BackendError: the device is not available.
    """
    seconds: dict[str, list[float]] = {}
    with _timed("open the networks", seconds):
        instantid = InstantID.from_pretrained(files.instantid, files.base, files.pack, device=device, cache=cache)
    photo = photos(portrait)[0]
    for _ in ("first time", "again"):
        try:
            with _timed("find the person", seconds):
                person = instantid.person(photo)
        except NoFaceError as error:
            raise NoFaceError(f"{portrait}: no face found; {DRAWN_ONLY}") from error
        with _timed("draw the keypoints", seconds):
            keypoints = keypoint_picture(person.face, person.photo_size, SIZE)
        with _timed("make the identity", seconds):
            instantid.identity(person)
    people = [person] * len(prompts)
    if other is not None:
        people[-1] = instantid.person(other)
    with _timed(f"sample {len(prompts)} pictures, {sampling.num_inference_steps} steps", seconds):
        images = generate(instantid, [[one] for one in people], keypoints, prompts, sampling, progress)

    analyzer = instantid.faces
    assert analyzer is not None, "from_pretrained loads one"
    likeness = [likeness_in(analyzer, image, [one]).item() for image, one in zip(images, people, strict=True)]
    strangers = [instantid.person(other) for other in photos(files.portraits) if other.key != photo.key]
    return Demo(
        person,
        Image.fromarray(photo.rgb),
        keypoints,
        [Picture(*each) for each in zip(prompts, images, likeness, people, strict=True)],
        [person.likeness(stranger) for stranger in strangers],
        seconds,
    )


@contextmanager
def _timed(stage: str, seconds: dict[str, list[float]]) -> Generator[None]:
    start = time.perf_counter()
    yield
    seconds.setdefault(stage, []).append(time.perf_counter() - start)
