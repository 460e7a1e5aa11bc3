"""What an examination found, for people and for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from ... import __version__
from ..table import printable

Level = Literal["ok", "note", "warning", "broken"]
"""``broken``: InstantID cannot work as asked, or draws another person. ``warning``: it works, but worse than it could,
or something may go wrong. ``note``: worth knowing."""

JSON_VERSION = 1
"""Of the document of :meth:`Report.to_json`: raised when a key goes or changes its meaning, not when one is added."""

_COLOURS: dict[Level, str] = {"ok": "32", "note": "36", "warning": "33", "broken": "1;31"}
_LABELS: dict[Level, str] = {"ok": "ok", "note": "note", "warning": "WARNING", "broken": "BROKEN"}
_COUNTED: tuple[tuple[Level, str, str], ...] = (
    ("broken", "broken", "broken"),
    ("warning", "warning", "warnings"),
    ("note", "note", "notes"),
)
_LABEL_WIDTH = 9
_INDENT = " " * (2 + _LABEL_WIDTH)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    found: str
    """What is there, or is not. One line."""
    why: str = ""
    """Why it matters; empty where all is well."""
    do: str = ""
    """What to do about it; may have several lines."""
    topic: str = ""
    """Filled in by the examination."""


@dataclass(frozen=True)
class Report:
    """All findings, in the order of their topics."""

    findings: Sequence[Finding]

    @property
    def broken(self) -> bool:
        """InstantID cannot work as asked, or would draw another person."""
        return self.count("broken") > 0

    def count(self, level: Level) -> int:
        return sum(finding.level == level for finding in self.findings)

    @property
    def conclusion(self) -> str:
        """One line, which ends in the number of problems by level."""
        counted = [(self.count(level), one, more) for level, one, more in _COUNTED]
        counts = [f"{count} {one if count == 1 else more}" for count, one, more in counted if count]
        return f"{self._verdict} In all: {', '.join(counts)}." if counts else self._verdict

    @property
    def _verdict(self) -> str:
        if self.broken:
            todo = [finding for finding in self.findings if finding.level == "broken"]
            if len(todo) == 1:
                return f"InstantID cannot work as asked: {todo[0].found}. BROKEN above says what to do."
            return (
                f"InstantID cannot work as asked, for {len(todo)} reasons: see BROKEN above, and begin with the first."
            )
        if warnings := self.count("warning"):
            things = "one thing" if warnings == 1 else f"{warnings} things"
            return f"Nothing broken was found. {things.capitalize()} could be better: see WARNING above."
        return "All is well."

    def text(self, width: int = 100, colours: bool = False) -> str:
        """For people: topic by topic, a line for what is well, and what to do about the rest.

        Args:
            width: in characters; paths and commands longer than that stay in one piece.
            colours: with ANSI escapes, as terminals understand them.
        """
        lines = [f"Fast InstantID {__version__}, examined by its doctor"]
        for topic, findings in groupby(self.findings, lambda finding: finding.topic):
            lines += ["", topic]
            for finding in findings:
                lines += _lines(finding, width, colours)
        return "\n".join([*lines, "", *textwrap.wrap(printable(self.conclusion), width)])

    def to_json(self) -> str:
        """For programs: one document with the keys ``version`` (of its form), ``package``, ``broken``, ``conclusion``,
        ``counts`` (by level) and ``findings``, each with ``topic``, ``level``, ``found``, ``why`` and ``do``."""
        levels: tuple[Level, ...] = ("ok", "note", "warning", "broken")
        names = ("topic", "level", "found", "why", "do")
        document = {
            "version": JSON_VERSION,
            "package": __version__,
            "broken": self.broken,
            "conclusion": self.conclusion,
            "counts": {level: self.count(level) for level in levels},
            "findings": [{name: getattr(finding, name) for name in names} for finding in self.findings],
        }
        return json.dumps(document, indent=1)


def _lines(finding: Finding, width: int, colours: bool) -> list[str]:
    label = _LABELS[finding.level].ljust(_LABEL_WIDTH)
    if colours:
        label = f"\033[{_COLOURS[finding.level]}m{label}\033[0m"
    found = _wrapped(finding.found, width)
    lines = [f"  {label}{found[0]}", *(_INDENT + line for line in found[1:])]
    lines += [_INDENT + line for line in _wrapped(finding.why, width)]
    for prefix, paragraph in zip(["Do: ", *["    "] * finding.do.count("\n")], finding.do.splitlines(), strict=False):
        wrapped = _wrapped(paragraph, width - len(prefix))
        lines += [f"{_INDENT}{prefix if i == 0 else '    '}{line}" for i, line in enumerate(wrapped)]
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """Words stay in one piece, so that paths can be copied."""
    return textwrap.wrap(printable(text), max(width - len(_INDENT), 40), break_long_words=False, break_on_hyphens=False)
