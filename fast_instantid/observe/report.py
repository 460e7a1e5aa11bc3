"""Findings of the doctor, as text and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Literal, get_args

from .. import __version__
from .table import printable

Level = Literal["ok", "note", "warning", "broken"]
"""``broken``: InstantID fails as asked, or draws another person. ``warning``: it is slow, or something may go wrong.
``note``: good to know."""

JSON_VERSION = 1  # raised when a key of :meth:`Report.to_json` goes or changes its meaning, not when one is added

_INDENT = " " * 11


@dataclass(frozen=True)
class Finding:
    """One result of a check."""

    level: Level
    found: str  # the fact, in one line
    why: str = ""  # why it matters; empty if all is well
    do: str = ""  # what to do; may have several lines
    topic: str = ""  # filled in by the examination


@dataclass(frozen=True)
class Report:
    """All findings, ordered by topic."""

    findings: Sequence[Finding]

    @property
    def broken(self) -> bool:
        """Whether InstantID would fail as asked, or draw another person."""
        return any(finding.level == "broken" for finding in self.findings)

    @property
    def counts(self) -> dict[Level, int]:
        """The number of findings by level."""
        return {level: sum(finding.level == level for finding in self.findings) for level in get_args(Level)}

    @property
    def conclusion(self) -> str:
        """The result in one line, with the number of findings by level."""
        broken = [finding.found for finding in self.findings if finding.level == "broken"]
        if broken:
            verdict = f"InstantID does not work as asked: {broken[0]}. Do what BROKEN says above, first things first."
        elif self.counts["warning"]:
            verdict = "InstantID works, but something could be better: see WARNING above."
        else:
            verdict = "All is well."
        counts = ", ".join(f"{level}: {n}" for level, n in self.counts.items() if n and level != "ok")
        return f"{verdict} In all: {counts}." if counts else verdict

    def text(self, width: int = 100) -> str:
        """Format the report for people, in lines of ``width`` characters. Longer paths and commands are not broken."""
        lines = [f"Fast InstantID {__version__}, examined by its doctor"]
        for topic, findings in groupby(self.findings, lambda finding: finding.topic):
            lines += ["", topic]
            for finding in findings:
                label = (finding.level if finding.level in ("ok", "note") else finding.level.upper()).ljust(9)
                found, *more = _wrapped(finding.found, width)
                lines += [f"  {label}{found}", *(_INDENT + line for line in [*more, *_wrapped(finding.why, width)])]
                do = [line for paragraph in finding.do.splitlines() for line in _wrapped(paragraph, width - 4)]
                lines += [f"{_INDENT}{'    ' if number else 'Do: '}{line}" for number, line in enumerate(do)]
        return "\n".join([*lines, "", *textwrap.wrap(printable(self.conclusion), width)])

    def to_json(self) -> str:
        """Format the report as one JSON document: ``version``, ``package``, ``broken``, ``conclusion``, ``counts`` by
        level, and ``findings``, each with ``topic``, ``level``, ``found``, ``why`` and ``do``."""
        document = {
            "version": JSON_VERSION,
            "package": __version__,
            "broken": self.broken,
            "conclusion": self.conclusion,
            "counts": self.counts,
            "findings": [asdict(finding) for finding in self.findings],
        }
        return json.dumps(document, indent=1)


def _wrapped(text: str, width: int) -> list[str]:
    """Wrap between words only, so that paths can be copied."""
    return textwrap.wrap(printable(text), max(width - len(_INDENT), 40), break_long_words=False, break_on_hyphens=False)
