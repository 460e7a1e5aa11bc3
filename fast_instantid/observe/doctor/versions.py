"""Checks of the installed packages. ``pip check`` compares their versions with the declared bounds."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata

from ...errors import first_line
from ..report import Finding
from .machine import import_module
from .places import Places, comfyui_around, pip

NEEDED = {"torch": "torch", "numpy": "numpy", "pillow": "PIL", "safetensors": "safetensors"}
"""Packages without which nothing works, and their modules."""


def installed() -> dict[str, str]:
    """Return the version of each distribution that Python sees, by its normalised name (PEP 503)."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        try:
            name = distribution.metadata["Name"]
        except Exception:  # damaged metadata of one must not hide the others
            continue
        if name:  # an interrupted pip leaves some without
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found


def needed(places: Places) -> Iterator[Finding]:
    """Check that the needed packages can be imported: one finding for all that are missing."""
    present, missing, good = installed(), list[str](), list[str]()
    for name, module in NEEDED.items():
        result = import_module(module)
        if not isinstance(result, Exception):
            good.append(f"{name} {present.get(name, '')}".strip())
        elif isinstance(result, ModuleNotFoundError) and result.name == module:
            missing.append(name)
        elif name != "torch":  # reported above
            yield Finding(
                "broken",
                f"{name} is installed, but cannot be loaded: {first_line(result)}",
                "Nothing works without it. Usually it does not fit another package, or was installed in part.",
                pip("install --force-reinstall --no-deps", name),
            )
    yield Finding("ok", ", ".join(good) or "none of the needed packages")
    missing = [name for name in missing if name != "torch"]  # reported above
    if missing:
        inside = "ComfyUI has some of them: run the doctor with ComfyUI's own Python\nif this is that Python: "
        yield Finding(
            "broken",
            f"not installed: {', '.join(missing)}",
            f"Nothing works without {'it' if len(missing) == 1 else 'them'}. Looked for by {sys.executable}.",
            f"{inside if comfyui_around() else ''}{pip('install', *missing)}",
        )
