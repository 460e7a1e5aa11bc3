"""The demo: pictures of one portrait's person in other scenes, and their likeness.

``fast-instantid demo`` runs it on the miniature. :func:`run` uses the library as any program does with other models.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import NoFaceError
from ..faces import FaceAnalyzer, keypoint_picture, largest
from ..identity import Adapter
from ..images import photos
from ..miniature import DRAWN_ONLY, GUIDANCE, SIZE, STEPS, MiniatureFiles
from ..people.person import cosine
from ..pipelines import InstantIDFiles, Sampling, generate, load_pipeline
from ..pipelines.generate import Progress
from ..placement import Placement

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
    likeness: float | None
    """Cosine between the embeddings of the portrait's face and of the face found here; None if none was found."""


@dataclass
class Demo:
    """Pictures, likenesses and times of the demo."""

    portrait: Image.Image
    keypoints: Image.Image
    pictures: list[Picture]
    strangers: list[float]
    """Likeness of the portrait to the shipped portraits of other people, for comparison."""
    seconds: dict[str, list[float]] = field(default_factory=dict[str, "list[float]"])
    """Times of each stage: the cold run, then the warm run if there is one."""


def run(
    files: MiniatureFiles,
    portrait: Path,
    prompts: Sequence[str] = PROMPTS,
    sampling: Sampling = SAMPLING,
    device: str | None = None,
    progress: Progress | None = None,
) -> Demo:
    """Draw the person of a portrait twice; the second run uses the caches.

    Args:
        files: the miniature.
        portrait: a picture file with a drawn face.
        prompts: one for each picture.
        sampling: options of the sampling.
        device: of all networks; the best one by default.
        progress: called after each step of each run.

    Raises:
        NoFaceError: no face was found in the portrait.
        ImageError: the portrait is not a picture.
        BackendError: the device is not available.
    """
    seconds: dict[str, list[float]] = {}
    place = Placement.resolve(device)

    with _timed("open the networks", seconds):
        analyzer = FaceAnalyzer.load(files.pack, device=place.device)
        adapter = Adapter.load(InstantIDFiles.find(files.instantid).adapter, place.device, place.dtype)
        pipe = load_pipeline(files.base, files.instantid, place.device, place.dtype)

    photo = photos(portrait)[0]
    for _ in ("cold", "warm"):
        with _timed("find the face", seconds):
            faces = analyzer.detect(photo)[0]
        if not faces:
            raise NoFaceError(f"{portrait}: no face found; {DRAWN_ONLY}")
        face = largest(faces)
        with _timed("recognise it", seconds):
            embedding = analyzer.embed(photo, face)
        with _timed("draw its keypoints", seconds):
            keypoints = keypoint_picture(face, photo, SIZE)
        with _timed("make the identity", seconds):
            identity = adapter.identity(embedding)
        with _timed(f"sample {len(prompts)} pictures, {sampling.num_inference_steps} steps", seconds):
            images = generate(pipe, identity, keypoints, prompts, sampling, progress)

    others = [other for other in photos(files.portraits) if other.key != photo.key]
    return Demo(
        Image.fromarray(photo.rgb),
        keypoints,
        [Picture(*drawn, likeness(analyzer, embedding[0], drawn[1])) for drawn in zip(prompts, images, strict=True)],
        [cosine(embedding[0], stranger) for stranger in analyzer.embed(others)],
        seconds,
    )


def likeness(analyzer: FaceAnalyzer, embedding: np.ndarray, picture: Image.Image) -> float | None:
    """Return the cosine of an embedding ``(512,)`` and that of a picture's largest face; None without a face."""
    faces = analyzer.detect(picture)[0]
    return cosine(embedding, analyzer.embed(picture, largest(faces))[0]) if faces else None


@contextmanager
def _timed(stage: str, seconds: dict[str, list[float]]) -> Generator[None]:
    start = time.perf_counter()
    yield
    seconds.setdefault(stage, []).append(time.perf_counter() - start)
