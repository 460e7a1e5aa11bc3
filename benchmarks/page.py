"""Tables of committed results, written into a page of the documentation.

A table stands between ``<!-- table: NAME -->`` and ``<!-- /table -->``; NAME is that of a file under results/,
without its suffix. ``<!-- table: NAME | ROW | ROW -->`` takes these rows only. In place of ``table``, ``stages``
tells where our time goes; ``fork`` says that a fork was measured instead of the reference, for which goals don't
hold. A test holds pages to their results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.budgets import IMPORT_SECONDS, MUSTS
from benchmarks.common import SIDES
from fast_instantid.files import atomic_write

RESULTS = Path(__file__).resolve().parent / "results"
_LEFT_OUT = ": evaluation"  # is in ": in all"
_LARGEST = 5  # stages


def run(page: Path) -> None:
    """Write the page's tables again."""
    text = filled(page.read_text())
    with atomic_write(page) as temporary:
        Path(temporary).write_text(text)
    print(f"written: {page}")


def filled(text: str) -> str:
    """A page with the tables that its marks name.

    Raises:
        SystemExit: a mark names no result, or more than one, or a row that is not in it.
    """
    mark = (
        r"(?P<begin><!-- (?P<kind>table|stages|fork): (?P<name>\S+)(?P<rows>.*?) -->\n).*?(?P<end><!-- /(?P=kind) -->)"
    )
    return re.sub(mark, _table_at, text, flags=re.DOTALL)


def _table_at(mark: re.Match[str]) -> str:
    name = mark["name"]
    found = [*RESULTS.rglob(f"{name}.json")]
    if len(found) != 1:
        raise SystemExit(f"the page names the result {name!r}, of which there are {len(found)} in {RESULTS}")
    document = json.loads(found[0].read_text())
    wanted = mark["rows"].split(" | ")[1:]
    if missing := set(wanted) - {row["name"] for row in document["results"]}:
        raise SystemExit(f"the result {name!r} has no row {missing.pop()!r}")
    write = {"table": table, "stages": stages, "fork": partial(table, reference="fork")}[mark["kind"]]
    return f"{mark['begin']}{write(document, wanted)}\n{mark['end']}"


def table(document: Mapping[str, Any], wanted: Collection[str] = (), reference: str = "reference") -> str:
    """Rows of a result in Markdown: those that are wanted, or all.

    Args:
        reference: what it is called. Goals are shown beside "reference" only.
    """
    rows = _rows(document, wanted)
    if document["suite"] == "memory":
        head = ["", reference, "ours", "compare with"]
        lines = [_bytes_cells(row) for row in rows]
    else:
        head = ["", reference, "ours", "limit", "ratio (min to max)", "must"]
        musts = MUSTS.get(document["suite"], {})
        lines = [[*_seconds_cells(row, musts.get(row["name"]))] for row in rows]
        if reference != "reference":
            head, lines = head[:-1], [line[:-1] for line in lines]
    rule = "| --- |" + " --: |" * (len(head) - 1)
    return "\n".join([_line(head), rule, *map(_line, lines)])


def stages(document: Mapping[str, Any], wanted: Collection[str] = ()) -> str:
    """The largest parts of our time in rows that tell them."""
    lines = []
    for row in _rows(document, wanted):
        parts = row.get("ours_stages_seconds", {})
        largest = sorted(parts.items(), key=lambda part: -part[1])[:_LARGEST]
        shares = [f"{name} {100 * share / sum(parts.values()):.0f} %" for name, share in largest]
        lines += [_line([_title(row), ", ".join(shares)])] if shares else []
    return "\n".join([_line(("", "where ours spends its time")), "| --- | --- |", *lines])


def _rows(document: Mapping[str, Any], wanted: Collection[str]) -> list[Mapping[str, Any]]:
    rows = [row for row in document["results"] if not row["name"].endswith(_LEFT_OUT)]
    return [row for row in rows if not wanted or row["name"] in wanted]


def _title(row: Mapping[str, Any]) -> str:
    return row["name"].replace(": nodes", ", before sampling").replace(": in all", ", with 20 steps")


def _seconds_cells(row: Mapping[str, Any], must: float | None) -> Iterator[str]:
    yield _title(row)
    for side in SIDES:
        yield seconds(row[f"{side}_seconds"]["median"]) if f"{side}_seconds" in row else ""
    ratio = row.get("ratio")
    yield f"{number(ratio['median'])}x ({number(ratio['min'])} to {number(ratio['max'])})" if ratio else ""
    if "import" in row["name"]:
        goal, is_missed = f"{IMPORT_SECONDS} s", row["ours_seconds"]["median"] > IMPORT_SECONDS
    else:
        goal, is_missed = f"{must}x" if must else "", bool(ratio and must and ratio["median"] < must)
    yield f"**{goal}, missed**" if is_missed else goal


def _bytes_cells(row: Mapping[str, Any]) -> list[str]:
    sides = [f"{row[key] / 1e6:,.2f} MB" if key in row else "" for key in ("reference_bytes", "ours_bytes")]
    return [row["name"], *sides, f"{row['of']}: {row['of_bytes'] / 1e6:.2f} MB" if "of" in row else ""]


def seconds(value: float) -> str:
    """For people: 4.2 ms, 310 ms, 1.45 s, 12.3 s."""
    if value < 1:
        return f"{1000 * value:.1f} ms" if value < 0.01 else f"{1000 * value:.0f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def number(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


def _line(cells: Any) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)
