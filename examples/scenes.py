"""The picture of the guide to scenes: one person at eleven angles, and two and three persons in one picture.

    python -m examples.scenes docs/images/scenes.png

Persons and networks are those of the shipped miniature; every picture is shown at one and a half of its size.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fast_instantid import InstantID, Pose, Scene, Subject, miniature
from fast_instantid.people import likeness_in
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
