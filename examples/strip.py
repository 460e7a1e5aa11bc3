"""The strip on the README's first screen: a portrait, and pictures of the same person drawn by this package.

    python -m examples.strip docs/images/strip.png

Portrait and networks are those of the shipped miniature; every picture is 128 x 128 pixels, shown at twice that.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from fast_instantid import InstantID, miniature

PROMPTS = (
    "flat portrait, striped pink background, black jacket",
    "soft portrait, hilly green background, white jumper",
    "flat portrait, sunny yellow background, teal shirt",
)
_SIDE, _GAP, _LINE = 256, 12, 20


def main(output: Path) -> None:
    """Draw the person of a shipped portrait in three scenes."""
    instantid = InstantID.from_pretrained("miniature", device="cpu")
    photo = miniature.files().portraits[1]
    person = instantid.person(photo)
    seeded = [torch.Generator().manual_seed(3) for _ in PROMPTS]
    drawn = instantid(list(PROMPTS), person, generator=seeded).images
    tiles = [("one portrait", Image.open(photo)), *zip(PROMPTS, drawn, strict=True)]
    strip = Image.new("RGB", (len(tiles) * (_SIDE + _GAP) + _GAP, _SIDE + 2 * _GAP + 3 * _LINE), (250, 248, 244))
    canvas, font = ImageDraw.Draw(strip), ImageFont.load_default(15)
    for i, (caption, picture) in enumerate(tiles):
        left = _GAP + i * (_SIDE + _GAP)
        strip.paste(picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), (left, _GAP))
        for row, line in enumerate(caption.split(", ")):
            canvas.text((left, _SIDE + 1.5 * _GAP + row * _LINE), line, (38, 38, 46), font)
    strip.save(output, optimize=True)
    likeness = ", ".join(f"{person.likeness(instantid.person(image)):.2f}" for image in drawn)
    print(f"{output}: likeness to the photo {likeness}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
