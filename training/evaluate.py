"""Evaluation of the miniature on people that it was never trained on, through the code that users run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fast_instantid import Adapter, Face, FaceAnalyzer
from fast_instantid.faces import draw_keypoints, largest
from fast_instantid.miniature import GUIDANCE, STEPS
from fast_instantid.pipelines import InstantIDFiles, Sampling, Subject, generate, load_pipeline
from training.data import TEST, person
from training.world import COLORS, SIZE, Portrait, Pose, Scene, draw

CANDIDATES = 50
_NEAR = 0.1  # of the width of a picture


@dataclass
class Drawing:
    """The measured properties of one drawn picture."""

    prompt: str
    first: bool
    """Whether the right candidate has the highest likeness."""
    likeness: float
    """Cosine to another portrait of the person; 0 where no face was found."""
    likeness_to_others: float
    """Mean likeness to the other candidates."""
    near: bool
    """Each of the five keypoints found lies within a tenth of the width from where it was asked for."""
    background: bool
    clothes: bool


def portrait(number: int, picture: int) -> Portrait:
    """A picture of a person of the test set; ``picture`` counts those of the same person."""
    random = np.random.default_rng([TEST, number, 10 + picture])
    return draw(person(TEST, number), Pose.random(random), Scene.random(random), picture)


def control(number: int) -> np.ndarray:
    """Return keypoints ``(5, 2)`` of another person, in a pose with room for clothes."""
    random = np.random.default_rng([TEST, number, 3])
    pose = Pose.random(random)
    pose = replace(pose, y=min(pose.y, 58), scale=min(pose.scale, 34))
    return draw(person(TEST, 1000 + number), pose, Scene.random(random)).keypoints


def recognition(pack: Path, people: int = 400) -> dict[str, float]:
    """Measure the recogniser on two portraits of each person, with faces found by the detector.

    ``auc``: of the cosine, between pairs of the same and pairs of different people. ``first_of_50``: how often the same
    person is the most alike of 50.
    """
    analyzer = FaceAnalyzer.load(pack, device="cpu")
    one, other = (
        np.stack([embedding(analyzer, portrait(number, picture).picture) for number in range(people)])
        for picture in range(2)
    )
    cosines = one @ other.T
    same, different = np.diagonal(cosines), cosines[~np.eye(people, dtype=bool)]
    auc = np.mean([(different < value).mean() + (different == value).mean() / 2 for value in same])
    ranks = [
        cosines[i, i] > cosines[i, [j for j in range(start, start + CANDIDATES) if j != i]].max()
        for start in range(0, people, CANDIDATES)
        for i in range(start, start + CANDIDATES)
    ]
    return {"auc": float(auc), "first_of_50": float(np.mean(ranks))}


def generation(weights: Path, people: int = 100, identity: bool = True, processes: int = 2) -> list[Drawing]:
    """Draw two pictures of each person with other prompts, another person's keypoints and default weights.

    Args:
        identity: False draws no person: adapter weight 0, and the tokens of a zero embedding in the IdentityNet.
    """
    jobs = [(weights, start, people, identity) for start in range(processes)]
    drawings: list[Drawing] = []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for number, part in enumerate(pool.imap(_draw_every, [(*job, processes) for job in jobs])):
            drawings += part
            print(f"drawn: part {number + 1} of {processes}", flush=True)
    return drawings


def rates(drawings: list[Drawing]) -> dict[str, float]:
    """The mean of each number over all pictures."""
    rows = [{name: float(value) for name, value in asdict(d).items() if name != "prompt"} for d in drawings]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def judge_of_colors(pictures: int = 200) -> dict[str, float]:
    """Return the accuracy of the colour measurement on pictures of the world itself."""
    right = []
    for number in range(pictures):
        random = np.random.default_rng([TEST, number, 4])
        scene, pose = Scene.random(random), Pose.random(random)
        pose = replace(pose, y=min(pose.y, 58), scale=min(pose.scale, 34))
        drawn = draw(person(TEST, number), pose, scene, number)
        right.append(judged_colors(drawn.picture, drawn.keypoints, scene))
    background, clothes = np.mean(right, axis=0)
    return {"background": float(background), "clothes": float(clothes)}


def judged_colors(picture: np.ndarray, keypoints: np.ndarray, scene: Scene) -> tuple[bool, bool]:
    """Whether background and clothes are nearest to the colour of their name.

    The background is judged in the upper corner away from the face, clothes in the lowest rows beside the neck. A motif
    or a jacket brings a second shade: it is enough if one of the shades has the name.
    """
    x = keypoints[:, 0].mean()
    corner = picture[:28, :22] if x > SIZE / 2 else picture[:28, -22:]
    chest = picture[-6:, max(0, int(x) - 36) : int(x) + 36]
    return _mostly(corner, scene.background), _mostly(chest, scene.clothes_color)


def _mostly(pixels: np.ndarray, name: str) -> bool:
    """Whether at least a third of the pixels are nearer to this colour than to any other."""
    table = np.array(list(COLORS.values()), np.float32)
    distances = np.linalg.norm(pixels.reshape(-1, 1, 3).astype(np.float32) - table, axis=-1)
    return bool((distances.argmin(1) == list(COLORS).index(name)).mean() >= 1 / 3)


def embedding(analyzer: FaceAnalyzer, picture: np.ndarray) -> np.ndarray:
    """Return the unit embedding ``(512,)`` of the largest face, or zeros without a face."""
    faces = analyzer.detect(picture)[0]
    if not faces:
        return np.zeros(512, np.float32)
    values = analyzer.embed(picture, largest(faces))[0]
    return values / np.linalg.norm(values)


def _draw_every(job: tuple[Path, int, int, bool, int]) -> list[Drawing]:
    torch.set_num_threads(1)
    return list(_drawings(*job))


def _drawings(weights: Path, start: int, people: int, with_identity: bool, processes: int) -> Iterator[Drawing]:
    analyzer = FaceAnalyzer.load(weights / "antelopev2", device="cpu")
    adapter = Adapter.load(InstantIDFiles.find(weights / "instantid").adapter, "cpu", torch.float32)
    pipe: Any = load_pipeline(weights / "base", weights / "instantid", "cpu", torch.float32)
    gallery = gallery_of(analyzer)
    for number in range(start, people, processes):
        given = analyzer.embed(portrait(number, 0).picture)
        identity = adapter.identity(given if with_identity else np.zeros(512, np.float32))
        who = Subject(identity) if with_identity else Subject(identity, weight=0.0)
        points = control(number)
        random = np.random.default_rng([TEST, number, 5])
        scenes = [Scene.random(random) for _ in range(2)]
        sampling = Sampling(num_inference_steps=STEPS, guidance_scale=GUIDANCE, seed=number)
        keypoints = Image.fromarray(draw_keypoints((SIZE, SIZE), points))
        drawn = generate(pipe, [who], keypoints, [scene.caption for scene in scenes], sampling)
        for scene, picture in zip(scenes, drawn, strict=True):
            yield judged(
                analyzer, np.asarray(picture), number % CANDIDATES, gallery[number // CANDIDATES], points, scene
            )


def gallery_of(analyzer: FaceAnalyzer) -> list[np.ndarray]:
    """For each fifty people, ``(50, 512)`` of length 1: a portrait of each other than the one that is given."""
    rows = []
    for number in range(2 * CANDIDATES):
        drawn = portrait(number, 1)
        row = analyzer.embed(drawn.picture, Face(np.zeros(4, np.float32), drawn.keypoints, 1.0))[0]
        rows.append(row / np.linalg.norm(row))
    return [np.stack(rows[:CANDIDATES]), np.stack(rows[CANDIDATES:])]


def judged(
    analyzer: FaceAnalyzer, picture: np.ndarray, right: int, gallery: np.ndarray, asked: np.ndarray, scene: Scene
) -> Drawing:
    cosines = gallery @ embedding(analyzer, picture)
    faces = analyzer.detect(picture)[0]
    distances = np.linalg.norm(largest(faces).kps - asked, axis=1) if faces else np.array([np.inf])
    background, clothes = judged_colors(picture, asked, scene)
    return Drawing(
        prompt=scene.caption,
        first=bool(faces) and int(cosines.argmax()) == right,
        likeness=float(cosines[right]),
        likeness_to_others=float(np.delete(cosines, right).mean()),
        near=bool(distances.max() <= _NEAR * SIZE),
        background=background,
        clothes=clothes,
    )
