"""What the site shows other than GitHub does."""

from __future__ import annotations

import posixpath
import re
from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Name files outside of docs/ by their path: the site does not have them."""
    folder = posixpath.dirname(page.file.src_uri)

    def outside(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, link["target"]))
        return link[0] if path.startswith("docs/") else f"{link['text']} (`{path}`)"

    return re.sub(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>\.\./[^)#]+)(#[^)]*)?\)", outside, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Show Sphinx's roles in docstrings (``:meth:`InstantID.attach```) as code."""
    html = re.sub(r":(?:meth|class|func|data|mod|attr):(?=<code>)", "", html)
    return re.sub(r"<code>~(?:\w+\.)*", "<code>", html)
