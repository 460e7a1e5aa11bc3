"""The table of stages for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .stages import StageTotal

_WIDEST_NAME = 60


def format_time(nanoseconds: float) -> str:
    """Format a duration with three significant digits: ``12.3 s``, ``4.56 ms`` or ``789 µs``."""
    unit, size = next((pair for pair in (("s", 1e9), ("ms", 1e6)) if nanoseconds >= 0.9995 * pair[1]), ("µs", 1e3))
    return f"{_three_digits(nanoseconds / size)} {unit}"


def format_bytes(number: float) -> str:
    """Format a size with three significant digits: ``1.50 GiB``, ``640 KiB`` or ``12 B``."""
    sizes = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
    return next((f"{_three_digits(number / size)} {unit}" for unit, size in sizes if number >= size), f"{number:.0f} B")


def cache_words(facts: dict[str, float]) -> str:
    """Format the cache's hits as ``3 of 4`` lookups; empty if there was no lookup."""
    hits = facts.get("hits", 0) + facts.get("disk_hits", 0)
    asked = hits + facts.get("misses", 0)
    return f"{hits:.0f} of {asked:.0f}" if asked else ""


def printable(text: str) -> str:
    """Replace control characters, so that the text stays on one line."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def stage_table(whole: StageTotal) -> str:
    """Format one line per stage. Columns without a value are left out."""
    rows = [["stage", "time", "share", "itself", "calls", "a call", "on GPU", "bytes", "in cache", "allocated"]]
    for name, total in branches(whole):
        rows.append(
            [
                name + (" (cut off)" if total.unfinished else ""),
                format_time(total.time),
                f"{100 * total.time / whole.time:.1f} %" if whole.time else "",
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
    """Align columns: the first to the left, the others to the right. Columns with only a title are left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines: list[str] = []
    for first, *others in zip(*columns, strict=True):
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def branches(root: StageTotal) -> Iterator[tuple[str, StageTotal]]:
    """Yield each stage, outer stages first, with its name behind the branches that lead to it.

    Branches are drawn up to 100 stages deep, or the lines of deep recordings would grow with the square of their depth.
    """
    todo: list[tuple[str, str, StageTotal]] = [("", "", root)]
    while todo:
        branch, below, total = todo.pop()
        yield branch + printable(total.name)[:_WIDEST_NAME], total
        below = below[:300]
        for number, inner in enumerate(reversed(total.inner.values())):
            todo.append((below + ("├─ " if number else "└─ "), below + ("│  " if number else "   "), inner))


def _three_digits(number: float) -> str:
    if not number:
        return "0"
    digits = 0 if abs(number) >= 99.95 else 1 if abs(number) >= 9.995 else 2
    return f"{number:,.{digits}f}"
