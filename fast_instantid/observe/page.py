"""Profiles as one HTML page that needs nothing else: neither files beside it nor the network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .stages import OUTSIDE, StageTotal
from .table import cache_words, format_bytes, format_share, format_time

if TYPE_CHECKING:
    from .compare import Comparison, StagePair
    from .profile import Profile

_TEMPLATE = Path(__file__).parent / "template"
_COLORS = 12  # of the style sheet
_BARS = 10


def profile_page(profile: Profile) -> str:
    """The page of one run: where the time went, the timeline, the table."""
    colors = _colors([profile])
    columns = ["time", "share", "itself", "calls", "a call", "on GPU", "bytes", "in cache", "allocated"]
    whole = profile.totals.whole
    rows = [(depth, total.name, _stage_cells(total, whole)) for depth, total in _tree(whole)]
    parts = {
        "title": escape(profile.title),
        "about": _about(profile, profile.notes()),
        "bars": _bars(profile, colors),
        "table": _table(columns, rows, colors),
    }
    return _page(parts, [("", profile)], colors)


def comparison_page(comparison: Comparison) -> str:
    """The page of two runs: both timelines over one axis, and the table of what changed."""
    from .compare import pair_cells

    runs = [("before", comparison.before), ("after", comparison.after)]
    colors = _colors([profile for _, profile in runs])
    columns = ["before", "after", "change", "calls", "on GPU", "bytes", "in cache"]
    rows = [(depth, pair.name, [_cell(text) for text in pair_cells(pair)]) for depth, pair in _tree(comparison.pairs())]
    about = "".join(
        f"<section><h2>{name}: {escape(profile.title)}</h2>{_about(profile, profile.notes())}</section>"
        for name, profile in runs
    )
    longest = max(total.self_time for _, profile in runs for total in profile.totals.by_name().values())
    bars = "".join(f"<section><h3>{name}</h3>{_bars(profile, colors, longest)}</section>" for name, profile in runs)
    parts = {
        "title": "Before and after",
        "about": f'<div class="pair">{about}</div>{_notes(comparison.warnings(), "warning")}',
        "bars": f'<div class="pair">{bars}</div>',
        "table": _table(columns, rows, colors),
    }
    return _page(parts, runs, colors)


def _page(parts: dict[str, str], runs: Sequence[tuple[str, Profile]], colors: dict[str, int]) -> str:
    script = (_TEMPLATE / "page.js").read_text("utf-8")
    data = {"names": list(colors), "colors": list(colors.values()), "runs": [_run(*run, colors) for run in runs]}
    # Inside a script element nothing is escaped for HTML; "<" must not be there at all.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = parts | {
        "style": (_TEMPLATE / "page.css").read_text("utf-8"),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "data": text,
    }
    # In one pass, so that what is filled in is never searched for places to fill.
    template = (_TEMPLATE / "page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def _run(label: str, profile: Profile, colors: dict[str, int]) -> dict[str, Any]:
    """What the timeline draws, as lists with an entry for each span. Times are nanoseconds."""
    numbers = {name: number for number, name in enumerate(colors)}
    spans, on_device = profile.spans, profile.on_device()
    return {
        "label": label,
        "duration": profile.duration,
        "threads": profile.threads,
        "name": [numbers[span.name] for span in spans],
        "parent": [span.parent for span in spans],
        "thread": [span.thread for span in spans],
        "start": [span.start for span in spans],
        "time": [span.duration for span in spans],
        "device": {number: times for number, times in enumerate(on_device) if times[0] >= 0},
        "facts": {number: span.facts for number, span in enumerate(spans) if span.facts},
    }


def _colors(profiles: Sequence[Profile]) -> dict[str, int]:
    """A number for the color of each stage: what takes most time comes first, so that large ones are told apart."""
    names = dict.fromkeys(name for profile in profiles for name in profile.totals.by_name() if name != OUTSIDE)
    return {name: number % _COLORS for number, name in enumerate(names)}


def _about(profile: Profile, notes: Sequence[str]) -> str:
    seconds = f'<p class="whole">{format_time(profile.duration)}</p>'
    return f'{seconds}<p class="where">{escape(profile.when_and_where())}</p>{_notes(notes, "note")}'


def _notes(notes: Sequence[str], kind: str) -> str:
    return "".join(f'<p class="{kind}">{escape(note)}</p>' for note in notes)


def _bars(profile: Profile, colors: dict[str, int], longest: int | None = None) -> str:
    """The largest stages by their own time, as bars: on the GPU where it took part, and on the host.

    Args:
        profile: the run.
        colors: of the stages.
        longest: nanoseconds of a bar over the whole width; by default the longest is.
    """
    by_name = profile.totals.by_name()
    on_host = {name: total.self_time for name, total in by_name.items()}
    on_gpu = {n: t.device_self_time for n, t in by_name.items() if t.device_self_time is not None}
    blocks = [("on the GPU", on_gpu)] if on_gpu else []
    blocks.append(("on the host" if on_gpu else "", on_host))
    return "".join(_bar_block(title, times, colors, longest) for title, times in blocks)


def _bar_block(title: str, times: dict[str, int], colors: dict[str, int], longest: int | None) -> str:
    whole = sum(times.values())
    largest = sorted(times.items(), key=lambda item: -item[1])
    rest = largest[_BARS:]
    shown = largest[:_BARS] + ([(f"{len(rest)} more", sum(time for _, time in rest))] if rest else [])
    scale = 100 / (longest or max(time for _, time in shown) or 1)
    lines = [
        f"<tr><th>{escape(name)}</th>"
        f'<td class="bar"><i class="{_color_class(name, colors)}" style="width:{min(100, scale * time):.2f}%"></i></td>'
        f"<td>{format_time(time)}</td><td>{format_share(time, whole)}</td></tr>"
        for name, time in shown
    ]
    caption = f"<caption>{title}</caption>" if title else ""
    return f'<table class="bars">{caption}{"".join(lines)}</table>'


def _table(columns: Sequence[str], rows: Sequence[tuple[int, str, list[str]]], colors: dict[str, int]) -> str:
    """Rows of a tree: depth, name, and cells that are HTML already. Empty columns are left out."""
    kept = [number for number in range(len(columns)) if any(cells[number] for _, _, cells in rows)]
    head = "".join(f"<th>{columns[number]}</th>" for number in kept)
    lines = [
        f'<tr data-depth="{depth}"><th style="--depth:{depth}"><i class="dot {_color_class(name, colors)}"></i>'
        f"<span>{escape(name)}</span></th>{''.join(f'<td>{cells[number]}</td>' for number in kept)}</tr>"
        for depth, name, cells in rows
    ]
    return f'<table class="tree"><thead><tr><th>stage</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _stage_cells(total: StageTotal, whole: StageTotal) -> list[str]:
    share = format_share(total.time, whole.time)
    width = min(100.0, 100 * total.time / whole.time) if whole.time else 0
    many = total.calls > 1
    return [
        format_time(total.time) + (" (cut off)" if total.unfinished else ""),
        f'<span class="share"><i style="width:{width:.2f}%"></i></span><span class="percent">{share}</span>',
        format_time(total.self_time) if total.inner and total is not whole else "",
        f"{total.calls:,}" if many else "",
        format_time(total.time / total.calls) if many else "",
        "" if total.device_time is None else format_time(total.device_time),
        format_bytes(total.facts["nbytes"]) if "nbytes" in total.facts else "",
        cache_words(total.facts),
        "" if total.allocated is None else format_bytes(total.allocated),
    ]


def _cell(text: str) -> str:
    change = text.rpartition(" ")[2]
    return f'<span class="{change}">{text}</span>' if change in ("faster", "slower") else escape(text)


def _color_class(name: str, colors: dict[str, int]) -> str:
    return f"c{colors[name]}" if name in colors else "none"


def _tree(root: Any) -> Iterator[tuple[int, Any]]:
    """Every node with its depth, outer ones first."""
    todo: list[tuple[int, StageTotal | StagePair]] = [(0, root)]
    while todo:
        depth, node = todo.pop()
        yield depth, node
        todo += [(depth + 1, inner) for inner in reversed(node.inner.values())]
