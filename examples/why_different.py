"""What differs between the two published ways of InstantID, each measured on the shipped miniature.

    python -m examples.why_different docs/images/why_different.png
    python -m examples.why_different --measure

InstantX's pipeline keeps the identity inside of the face's box, acts on 70 layers, and adds no noise.
ComfyUI_InstantID acts everywhere, on 60 layers, and its node Apply InstantID adds noise of 0.35 to the unconditional
embedding. Six people are drawn from four prompts, each from the same seed with each difference.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fast_instantid import Approximations, InstantID, Person, miniature
from fast_instantid.people import likeness_in
from fast_instantid.people.face_box import face_box_in

PROMPTS = (
    "flat portrait, hilly green background, red jacket",
    "flat portrait, plain blue background, green jacket",
    "outlined portrait, hilly red background, blue shirt",
    "soft portrait, striped yellow background, purple jumper",
)
OUTER_LAYERS = Approximations(layers=["down_blocks", "up_blocks"])
WAYS: dict[str, dict[str, Any]] = {
    "everywhere, 70 layers, no noise": {},
    "inside of the face's box": {"enhance_non_face_region": True},
    "60 layers": {"approximations": OUTER_LAYERS},
    "noise 0.35": {"noise": 0.35},
    "60 layers, noise 0.35 (ComfyUI_InstantID's Apply InstantID)": {"approximations": OUTER_LAYERS, "noise": 0.35},
    "without the IdentityNet": {"keypoints": False},
    "IdentityNet alone": {"scale": 0.0},
    "no person": {"keypoints": False, "scale": 0.0},
}
_SIDE, _GAP, _LINE = 160, 8, 20


def draw(instantid: InstantID, person: Person, prompt: str, seed: int, options: dict[str, Any]) -> Image.Image:
    """Draw a person in one of the ways."""
    options = {"scale": 0.8, **options}
    noise = options.pop("noise", 0.0)
    if noise:
        # An identity has no face: the person's own keypoint picture is given with it.
        assert instantid.adapter is not None, "the miniature has one"
        identity = instantid.adapter.identity(person.rows, noise=noise)
        options["keypoints"] = keypoints(person)
        return instantid(prompt, identity, seed=seed, **options).images[0]
    return instantid(prompt, person, seed=seed, width=128, height=128, **options).images[0]


def keypoints(person: Person) -> Image.Image:
    """The keypoint picture of a person's photograph."""
    from fast_instantid.faces import keypoint_picture

    return keypoint_picture(person.face, person.photo_size, (128, 128))


def measure() -> None:
    """Print the table of docs/why_different.md."""
    instantid = InstantID.from_pretrained("miniature", device="cpu")
    people = [instantid.person(portrait) for portrait in miniature.files().portraits]
    rows: dict[str, list[tuple[float, bool, float]]] = {way: [] for way in WAYS}
    for number, person in enumerate(people):
        left, top, right, bottom = (round(128 * x) for x in face_box_in(person.face, person.photo_size, (128, 128)))
        outside = np.ones((128, 128), bool)
        outside[top:bottom, left:right] = False
        for seed, prompt in enumerate(PROMPTS):
            pictures = {way: draw(instantid, person, prompt, seed, options) for way, options in WAYS.items()}
            alone = np.asarray(pictures["no person"], float)
            for way, picture in pictures.items():
                alike = np.nan_to_num(likeness_in(instantid.faces, picture, people)[0], nan=0.0)
                away = np.abs(np.asarray(picture, float) - alone)[outside].mean()
                rows[way].append(
                    (float(alike[number]), int(alike.argmax()) == number and alike[number] > 0, float(away))
                )
        print(f"{person.name} is drawn", file=sys.stderr)
    print("| way | likeness | most like their own of six | outside of the face's box, away from the prompt alone |")
    print("| --- | --: | --: | --: |")
    for way, found in rows.items():
        alike, right, away = (np.mean(column) for column in zip(*found, strict=True))
        print(f"| {way} | {alike:.3f} | {round(right * len(found))} of {len(found)} | {away:.1f} of 255 |")


def main(output: Path) -> None:
    """Draw three people in each way, and write one sheet."""
    instantid = InstantID.from_pretrained("miniature", device="cpu")
    shown = [way for way in WAYS if way not in ("60 layers", "noise 0.35")]
    people = [instantid.person(portrait) for portrait in miniature.files().portraits[:3]]
    cell = _SIDE + _GAP
    paper = Image.new("RGB", (len(shown) * cell + _GAP, len(people) * cell + 3 * _LINE), (250, 248, 244))
    canvas, font = ImageDraw.Draw(paper), ImageFont.load_default(13)
    for column, way in enumerate(shown):
        words = way.replace(" (", "\\n(").replace(", ", ",\\n").replace(" of the", "\\nof the")
        canvas.multiline_text((_GAP + column * cell, 4), words.replace("\\n", "\n"), (38, 38, 46), font)
        for row, person in enumerate(people):
            picture = draw(instantid, person, PROMPTS[row], row, WAYS[way]).resize(
                (_SIDE, _SIDE), Image.Resampling.LANCZOS
            )
            paper.paste(picture, (_GAP + column * cell, 3 * _LINE + row * cell))
    paper.save(output, optimize=True)


if __name__ == "__main__":
    measure() if sys.argv[1] == "--measure" else main(Path(sys.argv[1]))
