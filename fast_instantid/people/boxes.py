"""A preview for choosing: the photograph with a numbered box around each face."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import FastInstantIDError
from ..faces.face import field
from ..images import OneImage, one_photo
from .choice import ordered

_COLOR, _EDGE = (255, 214, 0), (0, 0, 0)
_FONT_SHARE, _SMALLEST_FONT = 0.025, 12  # of the longer side: legible in a window


def numbered(image: OneImage, faces: Sequence[Any], texts: Sequence[str] | None = None) -> Image.Image:
    """The photograph with a box around each face and its number: the one that ``choose=`` takes, 0 at the left.

    Args:
        faces: those of the photograph, ours or insightface's, in any order.
        texts: a text for each face, in the sequence of ``faces``, in place of the numbers; letters without
            their accents, as Pillow's own font has no others.

    Returns:
        RGB, of the size of the photograph.

    Raises:
        FastInstantIDError: an image that cannot be read, or several; too few or too many texts.
    """
    photo = one_photo(image)
    if texts is not None and len(texts) != len(faces):
        raise FastInstantIDError(f"{len(texts)} texts for {len(faces)} faces: give one for each")
    picture = Image.fromarray(photo.rgb)
    draw = ImageDraw.Draw(picture)
    size = max(_SMALLEST_FONT, round(_FONT_SHARE * max(photo.size)))
    font, line = ImageFont.load_default(size), max(1, size // 8)
    order = ordered(faces, "left to right")
    said = map(str, range(len(faces)))
    if texts is not None:
        text_of = dict(zip(map(id, faces), texts, strict=True))
        said = [text_of[id(face)] for face in order]
    boxes = [np.rint(np.sort(np.reshape(field(face, "bbox"), (2, 2)), axis=0)).astype(int) for face in order]
    for box in boxes:
        draw.rectangle((*(box[0] - 1), *(box[1] + 1)), outline=_EDGE, width=line + 2)
        draw.rectangle((*box[0], *box[1]), outline=_COLOR, width=line)
    for text, box in zip(said, boxes, strict=True):  # above all boxes
        text = unicodedata.normalize("NFKD", text).encode("ascii", "replace").decode()  # all that Pillow's font has
        width, height = (int(side) + 4 * line for side in draw.textbbox((0, 0), text, font, anchor="lt")[2:])
        left = np.clip(box[0, 0], 0, max(photo.width - width, 0))
        top = np.clip(box[0, 1] - height, 0, max(photo.height - height, 0))
        draw.rectangle((left, top, left + width, top + height), fill=_COLOR)
        draw.text((left + 2 * line, top + 2 * line), text, _EDGE, font, anchor="lt")
    return picture
