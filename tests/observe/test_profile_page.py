"""The page of a profile in headless Chromium: what it says, that it can be used, and that it asks for nothing."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fast_instantid.observe.compare import Comparison
from fast_instantid.observe.profile import Profile
from fast_instantid.recorder import Span

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: put it on the path, or its file name into the variable CHROMIUM"
)
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{{data}}"
TITLE = f"fast-instantid generate --prompt '{EVIL}' & more"


@pytest.fixture
def profile() -> Profile:
    """20 ms: a thread that loads and samples, another one that decodes, and a GPU that is behind."""
    ms = 1_000_000
    spans = [
        Span("load", -1, 0, 0, 4 * ms, facts={"nbytes": 3 << 20}),
        Span(EVIL, -1, 1, 1 * ms, 8 * ms),
        Span("sampling", -1, 0, 5 * ms, 15 * ms, 6 * ms, 14 * ms, {"allocated": 5 << 30}),
        Span("UNet", 2, 0, 6 * ms, 8 * ms, 8 * ms, 10 * ms, {"hits": 1, "misses": 1}),
        Span("identity branch", 3, 0, 7 * ms, 2 * ms, 9 * ms, 4 * ms),
        Span("UNet", 2, 0, 15 * ms, 4 * ms, 18 * ms, 2 * ms),
    ]
    about = {"": "Linux x86_64", "torch": "2.9 <b>"}
    return Profile(TITLE, spans, 20 * ms, 1.7e9, ["MainThread", "reader"], 3, "interrupted", about)


def saved(profile: Profile | Comparison, folder: Path) -> str:
    path = folder / "page.html"
    profile.save(path)
    return path.read_text("utf-8")


def dom(page: str, folder: Path, script: str = "") -> str:
    """The document as Chromium has it after loading, and after a script of the test's own."""
    if script:
        # Only scripts that the page knows may run in it; this one is let in.
        page = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", page)
        # A pointer that is made up cannot be captured.
        script = f"Element.prototype.setPointerCapture = () => {{}}; {script}"
        page = page.replace("</body>", f"<script>{script}</script></body>")
    path = folder / "shown.html"
    path.write_text(page, "utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom"]
    options += ["--window-size=1200,900", "--enable-logging=stderr"]
    result = subprocess.run(
        [CHROMIUM, *options, f"--user-data-dir={folder.parent / 'chromium'}", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "CONSOLE" not in result.stderr, result.stderr  # no error, no blocked request
    return result.stdout


class _Tables(HTMLParser):
    """The rows of all tables, as lists of their texts, and those that are hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.hidden: list[bool] = []
        self._in_cell = False

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
            self.hidden.append("hidden" in dict(attributes))
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_cell:
            self.rows[-1][-1] += data


def rows(document: str) -> dict[str, list[str]]:
    """The rows of the tree (which come after the bars) by the name of their stage."""
    parser = _Tables()
    parser.feed(document)
    found = [row for row in parser.rows if row]
    start = next(number for number, row in enumerate(found) if row[0] == "stage")
    return {row[0].lstrip("▾▸"): row[1:] for row in found[start:]}


def visible(document: str) -> list[str]:
    parser = _Tables()
    parser.feed(document[document.index('class="tree"') :])
    return [row[0].lstrip("▾▸") for row, hidden in zip(parser.rows, parser.hidden, strict=True) if row and not hidden][
        1:
    ]


def tip(document: str) -> str:
    found = re.search(r'<div id="tip"([^>]*)>(.*?)</div>', document, re.DOTALL)
    return "" if "hidden" in found[1] else html.unescape(re.sub("<[^>]+>", "|", found[2]))


def point(x: float, y: int, kind: str = "pointermove", more: str = "") -> str:
    """Script: the pointer at a part of the width of the timeline, and at a height in pixels."""
    return (
        "{const canvas = document.querySelector('canvas'), box = canvas.getBoundingClientRect();"
        f"canvas.dispatchEvent(new PointerEvent('{kind}', {{bubbles: true, clientX: box.left + {x} * box.width,"
        f"clientY: box.top + {y}{more}}}));}}"
    )


def test_the_page_needs_no_network_and_no_other_file(profile, tmp_path):
    for page in (saved(profile, tmp_path), saved(Comparison(profile, profile), tmp_path)):
        assert not re.search(
            r"https?://|//[a-z]+\.|@import|url\(|<link|<iframe|<img", page.replace(html.escape(EVIL), "")
        )
        assert not re.search(r"""\b(?:src|href)\s*=""", page.replace(html.escape(EVIL), "").split('id="data">')[0])
        assert "default-src 'none'" in page


def test_nothing_that_was_recorded_is_markup(profile, tmp_path):
    page = saved(profile, tmp_path)
    assert page.count("</script>") == 2  # of the data and of the page's own script
    assert "<img" not in page
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert EVIL in json.loads(data)["names"]


def test_the_table_is_there_without_any_script(profile, tmp_path):
    page = saved(profile, tmp_path)
    assert '<section id="timeline" hidden>' in page
    assert "<noscript>" in page
    table = rows(page)
    assert table["stage"] == ["time", "share", "itself", "calls", "a call", "on GPU", "bytes", "in cache", "allocated"]
    assert table["whole run"][:2] == ["20.0 ms", "100.0 %"]
    assert table["load"][6] == "3.00 MiB"
    assert table["UNet"] == ["12.0 ms", "60.0 %", "10.0 ms", "2", "6.00 ms", "12.0 ms", "", "1 of 2", ""]
    assert table["sampling"][-1] == "5.00 GiB"
    assert EVIL in table
    assert table["not inside any stage"][0] == "0 µs"


@needs_chromium
def test_chromium_shows_the_page_without_a_complaint(profile, tmp_path):
    page = saved(profile, tmp_path)
    document = dom(page, tmp_path)
    assert f"<title>{html.escape(TITLE, quote=False)} - Fast InstantID profile</title>" in document
    assert rows(document) == rows(page)
    text = html.unescape(re.sub("<[^>]+>", "", document))
    for words in ("3 stages beyond the first 6", "did not end as it should (interrupted)", "torch 2.9 <b>"):
        assert words in text
    assert re.search(r'<section id="timeline">', document), "the timeline stayed hidden"


@needs_chromium
@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0.1, 54, ["load", "bytes||3.00 MiB", "on the host||4.00 ms"]),
        (
            0.5,
            54,
            ["sampling", "begins at||5.00 ms", "on the GPU||14.0 ms, from 6.00 ms", "allocated at its end||5.00 GiB"],
        ),
        (0.5, 72, ["UNet", "inside||sampling", "hits||1", "misses||1", "on the host||8.00 ms"]),
        (0.4, 90, ["identity branch", "inside||sampling > UNet"]),
        (0.3, 132, [EVIL, "begins at||1.00 ms"]),
        (0.6, 176, ["sampling", "on the GPU||14.0 ms"]),
        (0.22, 54, []),
        (0.5, 4, []),
    ],
)
def test_pointing_at_a_stage_tells_what_is_known_of_it(profile, tmp_path, x, y, expected):
    shown = tip(dom(saved(profile, tmp_path), tmp_path, point(x, y)))
    assert all(words in shown for words in expected), shown
    assert bool(shown) == bool(expected)


@needs_chromium
def test_zooming_and_moving_change_what_is_under_the_pointer(profile, tmp_path):
    page = saved(profile, tmp_path)
    wheel = (
        "{const canvas = document.querySelector('canvas'), box = canvas.getBoundingClientRect();"
        "for (let turn = 0; turn < 20; turn++) canvas.dispatchEvent(new WheelEvent('wheel', {bubbles: true,"
        "cancelable: true, deltaY: -300, clientX: box.left + 0.1 * box.width, clientY: box.top + 50}));}"
    )
    assert "load" in tip(dom(page, tmp_path, wheel + point(0.9, 54)))  # all over the width
    whole = "document.querySelector('[data-zoom=\"0\"]').click();"
    assert "sampling" in tip(dom(page, tmp_path, wheel + whole + point(0.9, 54)))
    click = point(0.1, 54, "pointerdown") + point(0.1, 54, "pointerup")
    assert "load" in tip(dom(page, tmp_path, click + point(0.9, 54)))
    zoomed = "document.querySelector('[data-zoom=\"0.5\"]').click();"  # 5 to 15 ms
    assert "sampling" in tip(dom(page, tmp_path, zoomed + point(0.02, 54)))
    drag = point(0.5, 54, "pointerdown") + point(0.9, 54, more=", buttons: 1") + point(0.9, 54, "pointerup")
    assert "load" in tip(dom(page, tmp_path, zoomed + drag + point(0.2, 54)))  # 1 to 11 ms


@needs_chromium
def test_the_table_folds(profile, tmp_path):
    page = saved(profile, tmp_path)
    everything = ["whole run", "load", EVIL, "sampling", "UNet", "identity branch", "not inside any stage"]
    assert visible(dom(page, tmp_path)) == everything
    fold = "document.querySelectorAll('.fold')[{}].click();"
    assert visible(dom(page, tmp_path, fold.format(2))) == [name for name in everything if name != "identity branch"]
    assert visible(dom(page, tmp_path, fold.format(0))) == ["whole run"]
    twice = fold.format(2) + fold.format(1) + fold.format(1)
    assert visible(dom(page, tmp_path, twice)) == [name for name in everything if name != "identity branch"]
    button = "document.getElementById('fold').click();"
    assert visible(dom(page, tmp_path, button)) == ["whole run", "load", EVIL, "sampling", "not inside any stage"]
    assert visible(dom(page, tmp_path, button + button)) == everything


@needs_chromium
def test_before_and_after_are_on_one_page(profile, tmp_path):
    half = [replace(span, start=span.start // 2, duration=span.duration // 2) for span in profile.spans]
    after = replace(profile, spans=half, duration=profile.duration // 2, about={"torch": "2.8"})
    page = saved(Comparison(profile, after), tmp_path)
    document = dom(page, tmp_path)
    assert rows(document)["UNet"][:4] == ["12.0 ms", "6.00 ms", "2.00x faster", "2"]
    assert "The versions differ: torch 2.9 &lt;b&gt; and 2.8." in document
    # The second run is drawn below the first, over the same 20 ms: it ends in the middle.
    rows_of_first = 24 + (20 + 3 * 18 + 6) + (20 + 18 + 6) + (20 + 3 * 18 + 6)
    below = rows_of_first + 20 + 8
    assert "run||after" in tip(dom(page, tmp_path, point(0.4, below)))
    assert tip(dom(page, tmp_path, point(0.6, below))) == ""
    assert "run||before" in tip(dom(page, tmp_path, point(0.6, 54)))


@needs_chromium
def test_a_run_without_stages_is_a_page_too(tmp_path):
    nothing = Profile("nothing", [], 1000, 0, [])
    assert "No stage was met" in dom(saved(nothing, tmp_path), tmp_path)
    assert "whole run" in rows(dom(saved(Comparison(nothing, nothing), tmp_path), tmp_path))


@needs_chromium
def test_200_000_stages_are_drawn_at_once(tmp_path):
    spans = [Span("sampling", -1, 0, 0, 200_000_000)]
    spans += [Span(f"layer {number % 70}", 0, 0, 1000 * number, 900) for number in range(199_999)]
    page = saved(Profile("large", spans, 200_000_000, 0, ["MainThread"]), tmp_path)
    assert len(page) < 20_000_000
    script = (
        "window.requestAnimationFrame = (draw) => draw();"  # at once, so that the time of drawing is taken
        "const began = performance.now(); document.querySelector('[data-zoom=\"0.5\"]').click();"
        "document.body.dataset.took = performance.now() - began;" + point(0.5, 72)
    )
    document = dom(page, tmp_path, script)
    shown = tip(document)
    assert "layer" in shown
    assert re.search(r"\d+ more here: zoom in", shown)
    assert 0 < float(re.search(r'data-took="([\d.]+)"', document)[1]) < 1000  # some 10 ms
