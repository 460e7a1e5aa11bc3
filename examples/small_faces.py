"""The picture of the guide to small faces: before, the crop, after, and a hard paste beside it.

    python -m examples.small_faces docs/images/small_faces.png
    python -m examples.small_faces --measure

The picture to improve shows three people of the miniature's world, with faces of 80 pixels, blurred. The miniature
draws each of them again, at its 128 pixels. The second line prints likeness and seams at several strengths.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fast_instantid import Crop, InstantID, Scene, Subject, detail, miniature
from fast_instantid.faces import Face
from fast_instantid.people import cosine, find_faces, ordered
from fast_instantid.pipelines.load import inpainting
from training import world
from training.world import _draw_background  # pyright: ignore[reportPrivateUsage]

SCENE = world.Scene("green", "hilly", "jacket", "red", "flat")
_PADDING = 1.7
_OPTIONS: dict[str, Any] = {"seed": 3, "num_inference_steps": 20}
_SIDE, _SCALE, _BLUR = 512, 2, 8
_GAP, _LINE, _SHOWN = 10, 20, (4, 0, 304, 256)


def crowd(seed: int = 0) -> tuple[Image.Image, list[Image.Image]]:
    """A blurred picture of three people, 512 pixels wide, and a portrait of each."""
    random = np.random.default_rng(seed)
    people = [world.Person.random(random) for _ in range(3)]
    canvas = Image.new("RGB", (_SIDE * _SCALE, _SIDE * _SCALE))
    _draw_background(canvas, SCENE, np.random.default_rng(1))
    for number, person in enumerate(people):
        pose = world.Pose(100 + 155 * number, 170 + 30 * (number % 2), 34, 0, 0, 0.5)
        world.draw_person(world.Brush(canvas, pose, "flat", _SCALE), person, SCENE, np.random.default_rng(number))
    other = world.Scene("blue", "plain", "shirt", "white", "flat")
    portraits = [world.draw(one, world.Pose(64, 64, 33, 0, 0, 0.5), other).picture for one in people]
    small = canvas.reduce(_SCALE).crop((0, 60, _SIDE, 380)).reduce(_BLUR)
    blurred = small.resize((_SIDE, 320), Image.Resampling.BICUBIC)
    return blurred, [Image.fromarray(portrait) for portrait in portraits]


def seam(before: Image.Image, after: Image.Image, crop: Crop) -> float:
    """Mean step of the change where a crop's mask ends, in levels of 255; there is no change beyond."""
    white, black = Image.new("RGB", crop.size, "white"), Image.new("RGB", before.size)
    inside = np.pad(np.asarray(crop.paste(black, white, (crop.mask > 0).float()))[..., 0] > 127, 1)
    around = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    change = np.abs(np.asarray(after).astype(float) - np.asarray(before)).mean(axis=2)
    return float(change[inside[1:-1, 1:-1] & ~around].mean())


def measure() -> None:
    """Print likeness and seams: of three other persons in place of the three in the picture, at several strengths."""
    instantid, picture, faces = _setting()
    people = [instantid.person(miniature.files().portraits[number]) for number in (0, 3, 5)]
    persons = [instantid.person(np.asarray(portrait)) for portrait in crowd()[1]]
    for who, given in (("the same persons", persons), ("other persons", people)):
        _print(instantid, f"{who}, before", picture, picture, faces, given)
        for strength in (0.3, 0.5, 0.7, 1.0):
            options: dict[str, Any] = {**_OPTIONS, "strength": strength, "padding": _PADDING}
            after = detail(instantid, picture, SCENE.caption, given, **options)
            _print(instantid, f"{who}, strength {strength}", picture, after, faces, given)


def _print(
    instantid: InstantID, what: str, before: Image.Image, after: Image.Image, faces: list[Face], people: list[Any]
) -> None:
    assert instantid.faces is not None
    rows = instantid.faces.embed([after] * len(faces), [face.kps for face in faces])
    alike = np.array([[cosine(person.embedding, row) for person in people] for row in rows])
    own = int((alike.argmax(axis=1) == np.arange(len(people))).sum())
    seams = [seam(before, after, Crop.of(face, before.size, 128, _PADDING)) for face in faces]
    print(f"{what}: likeness {alike.diagonal().mean():.2f}, {own} of 3 their own, seam {np.mean(seams):.2f}")


def _setting() -> tuple[InstantID, Image.Image, list[Face]]:
    instantid, (picture, _) = InstantID.from_pretrained("miniature", device="cpu"), crowd()
    assert instantid.faces is not None
    return instantid, picture, ordered(find_faces(instantid.faces, picture)[0], "left to right")


def main(output: Path) -> None:
    """Draw one person into the place of another, and write one sheet."""
    instantid, picture, faces = _setting()
    person = instantid.person(miniature.files().portraits[5])
    crop = Crop.of(faces[0], picture.size, 128, _PADDING)
    before = crop.cut(picture)
    painter = InstantID(inpainting(instantid.pipe), 0, adapter=instantid.adapter, defaults=instantid.defaults)
    drawn = painter(
        SCENE.caption,
        Scene(crop.size, [Subject(person, pose=crop.keypoints(faces[0]))]),
        image=before,
        mask_image=Image.fromarray((crop.mask > 0).byte().mul(255).numpy()),
        strength=0.9,
        **_OPTIONS,
    ).images[0]
    soft, hard = crop.paste(picture, drawn), crop.paste(picture, drawn, (crop.mask > 0).float())
    tiles = {
        "before": picture.crop(_SHOWN),
        "the face, cut out": before,
        "another person, drawn": drawn,
        f"put back: a step of {seam(picture, soft, crop):.2f}": soft.crop(_SHOWN),
        f"a hard paste: {seam(picture, hard, crop):.1f} of 255": hard.crop(_SHOWN),
    }
    height = _SHOWN[3] - _SHOWN[1]
    widths = [tile.width * height // tile.height for tile in tiles.values()]
    paper = Image.new("RGB", (sum(widths) + _GAP * (len(widths) + 1), height + _LINE + 2 * _GAP), (250, 248, 244))
    canvas, font, left = ImageDraw.Draw(paper), ImageFont.load_default(14), _GAP
    for (words, tile), width in zip(tiles.items(), widths, strict=True):
        paper.paste(tile.resize((width, height), Image.Resampling.LANCZOS), (left, _GAP))
        canvas.text((left, _GAP + height + 3), words, (38, 38, 46), font)
        left += width + _GAP
    paper.save(output, optimize=True)
    print("\n".join(tiles))


if __name__ == "__main__":
    measure() if sys.argv[1] == "--measure" else main(Path(sys.argv[1]))
