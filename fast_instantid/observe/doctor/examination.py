"""All checks, one after the other. None of them can keep the others from being made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from . import faces, files, gpus, machine, packs, settings, versions
from .places import Places
from .report import Finding, Report

logger = logging.getLogger("fast_instantid")

Check = Callable[[Places], Iterable[Finding]]


@dataclass(frozen=True)
class _Topic:
    name: str
    checks: tuple[Check, ...]
    needs: tuple[str, ...] = ()
    """Packages without which its checks say nothing."""


_ALL = tuple(package.name for package in versions.NEEDED)
_TOPICS = (
    _Topic("Machine", machine.CHECKS),
    _Topic("Installed packages", versions.CHECKS),
    _Topic("Face networks", faces.CHECKS, needs=_ALL),
    _Topic("Model files", files.CHECKS, needs=_ALL),
    _Topic("Node packs", packs.CHECKS),
    _Topic("GPU", gpus.CHECKS),
    _Topic("Settings", settings.CHECKS, needs=("torch",)),
)


def examine(places: Places) -> Report:
    """Look at everything; never raises. Takes a few seconds, the first import of torch included.

    A check that fails is itself a finding. Nothing is written, and nothing uses the network.
    """
    unusable = versions.unusable()
    findings: list[Finding] = []
    for topic in _TOPICS:
        lacks = [name for name in topic.needs if name in unusable]
        if lacks:
            are = "is" if len(lacks) == 1 else "are"
            text = f"not examined: {', '.join(lacks)} {are} missing or cannot be loaded, see above"
            made: Iterable[Finding] = [Finding("note", text)]
        else:
            made = (finding for check in topic.checks for finding in _made_by(check, places))
        findings += [replace(finding, topic=topic.name) for finding in made]
    return Report(findings)


def _made_by(check: Check, places: Places) -> Iterator[Finding]:
    try:
        yield from check(places)
    except Exception as error:  # whatever it is: people ask a doctor because something is broken
        logger.debug("a check of the doctor failed", exc_info=True)
        name = check.__name__.strip("_").replace("_", " ")
        yield Finding(
            "warning",
            f'the check "{name}" failed: {type(error).__name__}: {error}'.splitlines()[0],
            "What it looks at may be all right or not: this is a fault of the doctor, or of a package that it asked.",
            "see whether the other findings explain it; if not, please report it with this text",
        )
