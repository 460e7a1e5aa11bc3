"""The picture of the guide's section on animation: a head that turns, drawn as one batch.

    python -m examples.animation docs/images/animation.png
    python -m examples.animation turning.webp
    python -m examples.animation --measure

All frames have one person, one prompt and one noise; only their keypoint pictures differ. The third line measures
how well the frames follow a track, and what smoothing does to a track that is as noisy as a video's. Persons and
networks are those of the shipped miniature.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fast_instantid import InstantID, Person, Pose, miniature
from fast_instantid.faces import draw_keypoints
from fast_instantid.people import find_faces, followed, likeness_in, pose_track, smoothed

PROMPT = "flat portrait, hilly green background, red jacket"
SIZE = (128, 128)
_SHOWN, _SEED, _FRAMES = 160, 3, 12
KEY_POSES = [
    Pose(0.36, 0.5, 0.5, yaw=-35, roll=-12),
    Pose(0.5, 0.46, 0.66),
    Pose(0.64, 0.5, 0.5, yaw=35, roll=12),
]


def frames_of(instantid: InstantID, person: Person, track: np.ndarray, steps: int = 20) -> list[Image.Image]:
    """A picture for each frame of a track ``(F, 5, 2)``, from one noise."""
    drawn = [Image.fromarray(draw_keypoints(SIZE, points)) for points in track]
    noise = [torch.Generator().manual_seed(_SEED) for _ in drawn]
    prompts = [PROMPT] * len(drawn)
    return instantid(prompts, person, keypoints=drawn, generator=noise, num_inference_steps=steps).images


def followed_in(instantid: InstantID, frames: list[Image.Image]) -> np.ndarray:
    """The keypoints ``(F, 5, 2)`` that the detector finds in the frames."""
    return smoothed(followed(find_faces(instantid.faces, frames)), 0)


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Mean distance of keypoints, in distances between the eyes."""
    eyes = np.linalg.norm(wanted[:, 1] - wanted[:, 0], axis=1)
    return float((np.linalg.norm(found - wanted, axis=2) / eyes[:, None]).mean())


def jitter(track: np.ndarray) -> float:
    """Root mean square of the second differences of the keypoints, in pixels."""
    return float(np.sqrt(np.mean(np.diff(track, 2, axis=0) ** 2)))


def main(output: Path) -> None:
    """Draw the frames, and write a strip of them below their keypoint pictures, or an animation."""
    instantid = InstantID.from_pretrained("miniature", device="cpu")
    person = instantid.person(miniature.files().portraits[0])
    strip = output.suffix == ".png"
    track = pose_track(KEY_POSES if strip else [*KEY_POSES, *KEY_POSES[1::-1]], 7 if strip else _FRAMES, SIZE)
    frames = frames_of(instantid, person, track)
    if not strip:
        frames[0].save(output, save_all=True, append_images=frames[1:], duration=80, loop=0)
        return
    paper = Image.new("RGB", (len(track) * _SHOWN, 2 * _SHOWN))
    for number, (points, frame) in enumerate(zip(track, frames, strict=True)):
        for row, tile in enumerate((Image.fromarray(draw_keypoints(SIZE, points)), frame)):
            paper.paste(tile.resize((_SHOWN, _SHOWN), Image.Resampling.LANCZOS), (number * _SHOWN, row * _SHOWN))
    paper.save(output, optimize=True)


def measure() -> None:
    """Print pose errors, likeness, and jitter of the frames of a clean, a noisy and a smoothed track."""
    instantid = InstantID.from_pretrained("miniature", device="cpu")
    person = instantid.person(miniature.files().portraits[0])
    clean = pose_track(KEY_POSES, _FRAMES, SIZE)
    noisy = clean + np.random.default_rng(0).normal(0, 1, clean.shape).astype(np.float32)
    for name, track in (("clean", clean), ("noisy", noisy), ("smoothed", smoothed(noisy))):
        frames = frames_of(instantid, person, track, steps=8)
        likeness = likeness_in(instantid.faces, frames, [person])[:, 0]
        found = followed_in(instantid, frames)
        print(
            f"{name}: {error(found, clean):.3f} distances between the eyes off the clean track, jitter "
            f"{jitter(track):.2f} px wanted and {jitter(found):.2f} px drawn, likeness {np.median(likeness):.2f} "
            f"({likeness.min():.2f} to {likeness.max():.2f})"
        )


if __name__ == "__main__":
    measure() if sys.argv[1] == "--measure" else main(Path(sys.argv[1]))
