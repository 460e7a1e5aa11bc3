"""Tables of committed results, written into a page of the documentation.

A table stands between ``<!-- table: NAME -->`` and ``<!-- /table -->``. NAME is that of a file under results/, without
its suffix. ``<!-- table: NAME | ROW | ROW -->`` takes these rows only, or those of a kind. In a result of the suite
"gpu", whose rows are results, the first ROW names one. ``stages`` in place of ``table`` shows where our time goes. A
test holds pages to their results.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.common import ROOT
from benchmarks.report.tables import stages, table
from fast_instantid.files import atomic_write

RESULTS = ROOT / "benchmarks" / "results"
_MARK = r"(?P<begin><!-- (?P<kind>table|stages): (?P<name>\S+)(?P<rows>.*?) -->\n).*?(?P<end><!-- /(?P=kind) -->)"


def run(page: Path) -> None:
    """Write the page's tables again."""
    text = filled(page.read_text())
    with atomic_write(page) as temporary:
        Path(temporary).write_text(text)
    print(f"written: {page}")


def filled(text: str) -> str:
    """A page with the tables that its marks name.

    Raises:
        SystemExit: a mark names no result, more than one, or a row that is not in it.
    """
    return re.sub(_MARK, _table_at, text, flags=re.DOTALL)


def _table_at(mark: re.Match[str]) -> str:
    name = mark["name"]
    found = [*RESULTS.rglob(f"{name}.json")]
    if len(found) != 1:
        raise SystemExit(f"the page names the result {name!r}, of which there are {len(found)} in {RESULTS}")
    document = json.loads(found[0].read_text())
    wanted = mark["rows"].split(" | ")[1:]
    if document["suite"] == "gpu":
        [document] = [row["measured"][0] for row in document["results"] if row["name"] == wanted[0]]
        wanted = wanted[1:]
    if missing := set(wanted) - {row[key] for row in document["results"] for key in ("name", "kind") if key in row}:
        raise SystemExit(f"the result {name!r} has no row {missing.pop()!r}")
    write = {"table": table, "stages": stages}[mark["kind"]]
    return f"{mark['begin']}{write(document, wanted)}\n{mark['end']}"
