"""The picture of the guide to scenes: one person at ten angles, and two and three persons in one picture.

    python -m examples.scenes docs/images/scenes.png
    python -m examples.scenes --measure

The second line draws scenes of two and of three of the six persons, and counts the faces that are most like their own
person of all six. Persons and networks are those of the shipped miniature. Pictures are shown at 1.5 times their size.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fast_instantid import InstantID, Person, Pose, Scene, Subject, miniature
from fast_instantid.people import find_people, likeness_in
from fast_instantid.people.pose import ANGLES

PROMPT = "flat portrait, hilly green background, red jacket"
_SIDE, _GAP, _LINE = 192, 10, 20
_SEED = 3


def main(output: Path) -> None:
    """Draw and judge all of them, and write one sheet."""
    instantid = InstantID.from_pretrained("miniature", device="cpu")
    people = [instantid.person(portrait) for portrait in miniature.files().portraits]
    tiles: list[tuple[str, Image.Image]] = []
    for angle in [*ANGLES][:10]:
        scene = Scene((128, 128), [Subject(people[0], pose=Pose.of(angle, y=0.5, size=0.62))])
        tiles.append((angle, instantid(PROMPT, scene, seed=_SEED).images[0]))
    for width, shown in ((256, (0, 3)), (384, (1, 4, 5))):
        count = len(shown)
        turned = ["slightly right", *["front"] * (count - 2), "slightly left"]
        subjects = [
            Subject(people[number], pose=Pose.of(angle, x=(place + 0.5) / count, y=0.5, size=0.62))
            for place, (number, angle) in enumerate(zip(shown, turned, strict=True))
        ]
        image = instantid(PROMPT, Scene((width, 128), subjects), seed=_SEED).images[0]
        likeness = likeness_in(instantid.faces, image, [people[number] for number in shown])[0]
        said = ", ".join(f"{people[number].name} {value:.2f}" for number, value in zip(shown, likeness, strict=True))
        tiles.append((f"likeness: {said}", image))
    paper = Image.new("RGB", (5 * (_SIDE + _GAP) + _GAP, 3 * (_SIDE + _GAP + _LINE) + _GAP), (250, 248, 244))
    canvas, font = ImageDraw.Draw(paper), ImageFont.load_default(14)
    left, top = _GAP, _GAP
    for words, image in tiles:
        size = _SIDE * image.width // image.height, _SIDE
        if left + size[0] > paper.width:
            left, top = _GAP, top + _SIDE + _LINE + _GAP
        paper.paste(image.resize(size, Image.Resampling.LANCZOS), (left, top))
        canvas.text((left, top + _SIDE + 3), words, (38, 38, 46), font)
        left += size[0] + _GAP
    paper.save(output, optimize=True)
    print("\n".join(words for words, _ in tiles))


def own_faces(instantid: InstantID, people: Sequence[Person], shown: Sequence[int], steps: int = 8) -> int:
    """Draw some of the people beside each other, and count the faces most like the person of that place."""
    count, width = len(shown), 128 * len(shown)
    subjects = [
        Subject(people[number], pose=Pose(x=(place + 0.5) / count, y=0.5, size=0.62))
        for place, number in enumerate(shown)
    ]
    image = instantid(PROMPT, Scene((width, 128), subjects), seed=_SEED, num_inference_steps=steps).images[0]
    right = 0
    for found in find_people(instantid.faces, image):
        place = min(int(found.keypoints[:, 0].mean() / 128), count - 1)
        right += int(np.argmax([found.likeness(person) for person in people])) == shown[place]
    return right


def measure() -> None:
    """Print the counts for all pairs, and for every third three."""
    instantid = InstantID.from_pretrained("miniature", device="cpu")
    people = [instantid.person(portrait) for portrait in miniature.files().portraits]
    for count, step in ((2, 1), (3, 3)):
        scenes = [*combinations(range(len(people)), count)][::step]
        right = sum(own_faces(instantid, people, shown) for shown in scenes)
        print(f"{len(scenes)} scenes of {count}: {right} of {count * len(scenes)} faces are most like their own person")


if __name__ == "__main__":
    measure() if sys.argv[1] == "--measure" else main(Path(sys.argv[1]))
