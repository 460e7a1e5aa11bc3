"""The demo's pictures on one sheet, with captions."""

from __future__ import annotations

import math
import textwrap

from PIL import Image, ImageDraw, ImageFont

from ..people import likeness_word
from . import Demo

_TILE = 288  # side of a picture on the sheet, in pixels
_GAP, _MARGIN = 22, 28
_INSET = 84
_CAPTION = 62  # height below a picture: two lines of words and one of numbers
_LETTERS = 40  # in a line of a caption
_PAPER, _INK, _GREY, _GREEN, _RED = (250, 248, 244), (38, 38, 46), (128, 126, 132), (30, 126, 84), (186, 60, 52)


def sheet(demo: Demo) -> Image.Image:
    """Return a sheet: the portrait above its keypoints, and beside them the pictures in two rows."""
    columns = math.ceil(len(demo.pictures) / 2)
    width = 2 * _MARGIN + (columns + 1) * _TILE + columns * _GAP
    paper = Image.new("RGB", (width, 2 * (_MARGIN + _TILE + _CAPTION) + _GAP), _PAPER)
    stranger = max(demo.strangers, default=0.0)
    strangers = f"other people's likeness: up to {stranger:.2f}" if demo.strangers else ""
    _place(paper, 0, 0, demo.portrait, "the portrait", strangers, _GREY)
    _place(paper, 0, 1, demo.keypoints, "its keypoints: where the face goes", "", _GREY)
    for i, picture in enumerate(demo.pictures):
        word = likeness_word(picture.likeness)
        note = word if math.isnan(picture.likeness) else f"likeness {picture.likeness:.2f}, {word}"
        color = _GREEN if picture.likeness > stranger else _RED
        image = picture.image.resize((_TILE, _TILE), Image.Resampling.LANCZOS)
        if picture.person is not demo.person and picture.person.picture is not None:
            image.paste(picture.person.picture.resize((_INSET, _INSET)), (_TILE - _INSET, _TILE - _INSET))
            note = f"{picture.person.name}, same batch: {note}"
        _place(paper, 1 + i % columns, i // columns, image, picture.prompt, note, color)
    return paper


def _place(
    paper: Image.Image, column: int, row: int, picture: Image.Image, words: str, note: str, color: tuple[int, int, int]
) -> None:
    """Paste a picture into its square and write its caption."""
    left, top = _MARGIN + column * (_TILE + _GAP), _MARGIN + row * (_TILE + _CAPTION + _GAP)
    scale = _TILE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    paper.paste(picture.resize(size, Image.Resampling.LANCZOS), (left, top))
    canvas, font = ImageDraw.Draw(paper), ImageFont.load_default(14)
    top += _TILE + 6
    for line in textwrap.wrap(words, _LETTERS, max_lines=2, placeholder=" …"):
        canvas.text((left, top), line, _INK, font)
        top += 18
    canvas.text((left, top), note, color, font)
