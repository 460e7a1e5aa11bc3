"""What the benchmark of likeness says to people: tables, the page in the documentation, and a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_TILE, _GAP, _HEAD, _MARGIN = 160, 6, 64, 12
_PAPER, _INK, _GREEN, _RED = (250, 248, 244), (38, 38, 46), (30, 126, 84), (186, 60, 52)


def print_rows(rows: Sequence[dict[str, Any]], faces: Sequence[dict[str, Any]]) -> None:
    """The tables of the page, on the screen."""
    for table in tables({"results": [*rows, *faces]}):
        print(f"\n{table}")
    print()


def tables(document: dict[str, Any]) -> list[str]:
    """Three tables in Markdown: pictures, recogniser, detectors."""
    rows = document["results"]
    pictures = [row for row in rows if row["kind"] == "pictures"]
    usual = pictures[0]["counts"]
    lines = [_picture_line(row, usual) for row in pictures]
    head = "| | work left | first of 50 | likeness | change | from, to | keypoints near | pixels change by |"
    first = "\n".join([head, "| --- | --- | --: | --: | --: | --: | --: | --: |", *lines])
    head = "| | pictures | cosine to fp32: median | lowest |"
    cosines = [
        f"| {row['name']} | {row['pictures']} | {row['cosine']['median']:.5f} | {row['cosine']['min']:.5f} |"
        for row in rows
        if row["kind"] == "recogniser"
    ]
    second = "\n".join([head, "| --- | --: | --: | --: |", *cosines])
    head = "| | faces | lost | new | keypoints move: median | at most | of the eye distance, at most | boxes, at most |"
    detectors = [_detector_line(row) for row in rows if row["kind"] == "detector"]
    return [first, second, "\n".join([head, "| --- | --: | --: | --: | --: | --: | --: | --: |", *detectors])]


def _picture_line(row: dict[str, Any], usual: dict[str, float]) -> str:
    change, counts = row["change"], row["counts"]
    names = {
        "identity_attentions": "identity attentions",
        "identity_net_runs": "IdentityNet runs",
        "detector_pixels": "detector pixels",
    }
    work = [
        f"{counts[key]:,.0f} of {usual[key]:,.0f} {name}" for key, name in names.items() if counts[key] != usual[key]
    ]
    if row["options"].get("dtype"):
        work.append("16 bits of 32 in the face networks")
    has_changed = bool(change["min"] or change["max"])
    cells = [
        row["name"],
        ", ".join(work) or "all",
        f"{100 * row['first_rate']:.0f} %",
        f"{row['likeness']:.3f}",
        f"{change['mean']:+.3f} ± {change['standard_error']:.3f}" if has_changed else "0",
        f"{change['min']:+.2f}, {change['max']:+.2f}" if has_changed else "",
        f"{100 * row['near_rate']:.0f} %",
        f"{row['pixel_change']['mean']:.1f} of 255",
    ]
    return f"| {' | '.join(cells)} |"


def _detector_line(row: dict[str, Any]) -> str:
    if "not_measured" in row:
        return f"| {row['name']} | not measured: {row['not_measured']} | | | | | | |"
    cells = [row["name"], row["faces"], row["lost"], row["new"]]
    if "keypoint_shift_px" in row:
        shift, eyes = row["keypoint_shift_px"], row["keypoint_shift_of_eye_distance"]
        cells += [f"{shift['median']:.2f} px", f"{shift['max']:.2f} px", f"{100 * eyes['max']:.1f} %"]
        cells.append(f"{row['box_shift_px']['max']:.2f} px")
    else:
        cells += [""] * 4
    return f"| {' | '.join(map(str, cells))} |"


def write_page(path: Path, document: dict[str, Any]) -> None:
    """Put the tables between their marks in a page."""
    text = path.read_text()
    for name, table in zip(("pictures", "recogniser", "detectors"), tables(document), strict=True):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, found = re.subn(
            pattern, lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text, flags=re.DOTALL
        )
        if found != 1:
            raise SystemExit(f"{path}: expected one <!-- {name} --> ... <!-- /{name} -->, found {found}")
    path.write_text(text)


def grid(portraits: Sequence[np.ndarray], results: Sequence[Any], variants: Sequence[str]) -> Image.Image:
    """Rows are people: the portrait given, and the first picture of each variant, with its likeness.

    Args:
        portraits: ``(H, W, 3)`` uint8 of persons 0, 1, ...
        results: of these persons, see ``likeness.Result``.
    """
    of = {(result.person, result.variant): result for result in results}
    step = _TILE + _GAP
    size = 2 * _MARGIN + (1 + len(variants)) * step, 2 * _MARGIN + _HEAD + len(portraits) * (step + 18)
    paper = Image.new("RGB", size, _PAPER)
    canvas, font = ImageDraw.Draw(paper), ImageFont.load_default(14)
    for column, name in enumerate(["portrait given", *variants]):
        for line, words in enumerate(_lines(name, font)):
            canvas.text((_MARGIN + column * step, _MARGIN + 18 * line), words, _INK, font)
    for row, given in enumerate(portraits):
        top = _MARGIN + _HEAD + row * (step + 18)
        paper.paste(_fitted(given), (_MARGIN, top))
        for column, name in enumerate(variants, 1):
            result, left = of[row, name], _MARGIN + column * step
            paper.paste(_fitted(result.pictures[0]), (left, top))
            drawing = result.drawings[0]
            color = _GREEN if drawing.first else _RED
            canvas.text((left, top + _TILE), f"likeness {drawing.likeness:.2f}", color, font)
    return paper


def _fitted(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture).resize((_TILE, _TILE), Image.Resampling.LANCZOS)


def _lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Words in lines that fit over a picture."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > _TILE and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
