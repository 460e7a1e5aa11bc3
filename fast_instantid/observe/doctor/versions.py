"""Checks of the installed packages against the requirements that this package declares."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata

from ..report import Finding
from .machine import first_line, gpu_vendor, import_module
from .places import ROOT, Places, comfyui_around, pip

NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "pillow": "PIL",
    "safetensors": "safetensors",
    "opencv-python-headless": "cv2",
    "xxhash": "xxhash",
}
"""Packages without which nothing works, and their modules."""
_EXTRAS = ("diffusers", "onnxruntime", "download", "observe")
_OPENCV = '"opencv-python-headless<4.12"'  # 4.12 caps numpy, and 5 demands numpy 2


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


def declared() -> dict[str, str]:
    """Return the requirements, such as ``numpy>=1.24``, each with its extra or ""."""
    project = ROOT / "pyproject.toml"
    if project.is_file():  # a clone, for which pip has no metadata
        lists = dict(re.findall(r"^(\w+) = \[(.*?)\]", project.read_text(encoding="utf-8"), re.M | re.S))
        named = {"": lists["dependencies"], **{extra: lists[extra] for extra in _EXTRAS}}
        return {line: extra for extra, lines in named.items() for line in re.findall(r'"([^"]+)"', lines)}
    parts = [line.partition(";") for line in metadata.requires("fast-instantid") or []]
    named = {line.strip(): re.search(r"extra == ['\"](\w+)", marker) for line, _, marker in parts}
    return {line: extra[1] if extra else "" for line, extra in named.items() if not extra or extra[1] in _EXTRAS}


def needed(places: Places) -> Iterator[Finding]:
    """Check that the needed packages can be imported: one finding for all that are missing."""
    present, missing, good = installed(), list[str](), list[str]()
    for name, module in NEEDED.items():
        result = import_module(module)
        if not isinstance(result, Exception):
            good.append(f"{name} {present.get(name, '')}".strip())
        elif isinstance(result, ModuleNotFoundError) and result.name == module:
            missing.append(name)
        elif name != "torch" and "numpy" not in missing:  # torch is reported above, and OpenCV needs numpy
            yield Finding(
                "broken",
                f"{name} is installed, but cannot be loaded: {first_line(result)}",
                "Nothing works without it. Usually it does not fit numpy (OpenCV 5 needs numpy 2), or a library of the "
                "system is missing (libGL, which opencv-python-headless does not need).",
                pip("install --force-reinstall --no-deps", _OPENCV if module == "cv2" else name),
            )
    yield Finding("ok", ", ".join(good) or "none of the needed packages")
    missing = [name for name in missing if name != "torch"]  # reported above
    if missing:
        inside = "ComfyUI has some of them: run the doctor with ComfyUI's own Python\nif this is that Python: "
        names = (_OPENCV if name.startswith("opencv") else name for name in missing)
        yield Finding(
            "broken",
            f"not installed: {', '.join(missing)}",
            f"Nothing works without {'it' if len(missing) == 1 else 'them'}. Looked for by {sys.executable}.",
            f"{inside if comfyui_around() else ''}{pip('install', *names)}",
        )


def bounds(places: Places) -> Iterator[Finding]:
    """Compare versions with the declared bounds. Needs ``packaging``, which diffusers and transformers bring."""
    present, absent, nvidia = installed(), dict[str, list[str]](), gpu_vendor() == "NVIDIA"
    try:
        from packaging.requirements import Requirement
        from packaging.version import InvalidVersion, Version
    except ImportError:
        yield Finding(
            "note", "versions were not compared: the package packaging is missing", do=pip("install packaging")
        )
        return
    for line, extra in declared().items():
        requirement = Requirement(line)
        name, version = requirement.name, present.get(requirement.name)
        if version is None:
            other = any(known.startswith(f"{name}-") for known in present)  # another build, such as onnxruntime-gpu
            if extra and not other and (nvidia or name != "nvidia-ml-py"):
                absent.setdefault(extra, []).append(f"{name}-gpu" if nvidia and name == "onnxruntime" else name)
            continue
        with suppress(InvalidVersion):
            if requirement.specifier.contains(Version(version), prereleases=True):
                continue
            yield Finding(
                "broken" if name in NEEDED else "warning",
                f"{name} {version} is installed; {requirement.specifier} is needed{f' for {extra}' if extra else ''}",
                "Other versions lack functions that are used here.",
                pip("install", f'"{line}"'),
            )
    if absent and places.host == "diffusers":
        each = "; ".join(f"{extra} ({', '.join(names)})" for extra, names in absent.items())
        do = f"if you want these: {pip('install', *(name for names in absent.values() for name in names))}"
        yield Finding("note", f"not installed, for optional extras: {each}", "", do)
