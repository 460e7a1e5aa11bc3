"""Tables for the terminal: aligned, in units that people read."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from .stages import Totals

_WIDEST_NAME = 60


class _Node(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def inner(self) -> Mapping[str, Any]: ...


_AnyNode = TypeVar("_AnyNode", bound=_Node)


def format_time(nanoseconds: float) -> str:
    """``12.3 s``, ``4.56 ms`` or ``789 µs``, with three digits that count."""
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if abs(nanoseconds) >= 0.9995 * size:
            return f"{_three_digits(nanoseconds / size)} {unit}"
    return f"{_three_digits(nanoseconds / 1e3)} µs"


def format_bytes(number: float) -> str:
    """``1.50 GiB``, ``640 KiB`` or ``12 B``."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(number) >= 0.9995 * size:
            return f"{_three_digits(number / size)} {unit}"
    return f"{number:.0f} B"


def format_share(part: float, whole: float) -> str:
    """In percent of the whole; nothing where there is no whole."""
    return f"{100 * part / whole:.1f} %" if whole else ""


def cache_words(facts: dict[str, float]) -> str:
    """``3 of 4`` that were asked for were in the cache; nothing where it was not asked."""
    hits = facts.get("hits", 0) + facts.get("disk_hits", 0)
    asked = hits + facts.get("misses", 0)
    return f"{hits:.0f} of {asked:.0f}" if asked else ""


def printable(text: str) -> str:
    """On one line, without what would move the cursor."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def branches(root: _AnyNode) -> Iterator[tuple[str, _AnyNode]]:
    """Each node of a tree with its name behind the branches that lead to it."""
    todo: list[tuple[str, str, _AnyNode]] = [("", "", root)]
    while todo:
        branch, below, node = todo.pop()
        yield branch + printable(node.name), node
        last_first: list[_AnyNode] = [*node.inner.values()][::-1]
        for number, inner in enumerate(last_first):
            todo.append((below + ("├─ " if number else "└─ "), below + ("│  " if number else "   "), inner))


def stage_table(totals: Totals) -> str:
    """A line for each stage. Columns of which nothing is known are left out."""
    whole = totals.whole
    rows = [["stage", "time", "share", "itself", "calls", "a call", "on GPU", "bytes", "in cache", "allocated"]]
    for name, total in branches(whole):
        unfinished = " (cut off)" if total.unfinished else ""
        rows.append(
            [
                name + unfinished,
                format_time(total.time),
                format_share(total.time, whole.time),
                format_time(total.self_time) if total.inner and total is not whole else "",
                f"{total.calls:,}" if total.calls > 1 else "",
                format_time(total.time / total.calls) if total.calls > 1 else "",
                "" if total.device_time is None else format_time(total.device_time),
                format_bytes(total.facts["nbytes"]) if "nbytes" in total.facts else "",
                cache_words(total.facts),
                "" if total.allocated is None else format_bytes(total.allocated),
            ]
        )
    return align(rows)


def align(rows: Sequence[Sequence[str]]) -> str:
    """Columns beside each other: the first to the left, the others to the right; empty ones are left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    shown: list[list[str]] = []
    for number, column in enumerate(columns):
        cells = [_shortened(cell, _WIDEST_NAME) for cell in column]
        width = max(map(_width, cells))
        gaps = [" " * (width - _width(cell)) for cell in cells]
        shown.append([cell + gap if number == 0 else gap + cell for cell, gap in zip(cells, gaps, strict=True)])
    return "\n".join("  ".join(row).rstrip() for row in zip(*shown, strict=True))


def _three_digits(number: float) -> str:
    if number == 0:
        return "0"
    digits = 0 if abs(number) >= 99.95 else 1 if abs(number) >= 9.995 else 2
    return f"{number:,.{digits}f}"


def _width(text: str) -> int:
    """Columns that a terminal takes for it: two for East Asian letters, none for accents of their own."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def _shortened(text: str, width: int) -> str:
    while _width(text) > width:
        text = text[: max(0, len(text) - 2 - (_width(text) - width) // 2)] + "…"
    return text
