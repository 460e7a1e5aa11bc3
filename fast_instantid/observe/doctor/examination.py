"""All checks, one after the other. A check that raises becomes a finding itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from .. import node_packs
from ..report import Finding, Report
from . import machine, versions
from .places import Places

logger = logging.getLogger("fast_instantid")

Check = Callable[[Places], Iterable[Finding]]


def _face_networks(places: Places) -> Iterable[Finding]:
    from .faces import backend

    return backend(places)


def _model_files(places: Places) -> Iterable[Finding]:
    from .files import model_files

    return model_files(places)


# Topics, their checks, and whether these import the packages that are always needed.
_TOPICS: tuple[tuple[str, tuple[Check, ...], bool], ...] = (
    ("Machine", (machine.torch_and_device, machine.dynamic_vram), False),
    ("Installed packages", (versions.needed,), False),
    ("Face networks", (_face_networks,), True),
    ("Model files", (_model_files,), True),
    ("Node packs", (node_packs.node_packs,), False),
)


def examine(places: Places) -> Report:
    """Run all checks. Takes seconds, writes nothing, uses no network, and never raises."""
    modules = {name: machine.import_module(module) for name, module in versions.NEEDED.items()}
    unusable = [name for name, module in modules.items() if isinstance(module, Exception)]
    without = [Finding("note", f"not examined without {', '.join(unusable)}, see above")]
    return Report(
        [
            replace(finding, topic=topic)
            for topic, checks, needs_packages in _TOPICS
            for check in checks
            for finding in (without if needs_packages and unusable else _made_by(check, places))
        ]
    )


def _made_by(check: Check, places: Places) -> Iterator[Finding]:
    try:
        yield from check(places)
    except Exception as error:  # people run a doctor because something is broken
        logger.debug("a check of the doctor failed", exc_info=True)
        name = check.__name__.strip("_").replace("_", " ")
        yield Finding(
            "warning",
            f'the check "{name}" failed: {type(error).__name__}: {error}'.splitlines()[0],
            "The doctor, or a package that it asked, has an error.",
            "see whether another finding explains it; if not, please report it with this text",
        )
