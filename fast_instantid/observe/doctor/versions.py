"""Installed packages: there, new enough, tested with, and not in each other's way."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

from .machine import gpu_beside, import_module, import_torch, is_missing
from .places import Places, clone_around, pip, quoted
from .report import Finding

Version = tuple[int, ...]

TESTED_PYTHON = "3.11"
TESTED_COMFYUI = ("0.3.64", "0.8.0")
OPENCV = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
"""All of them bring the one module ``cv2``."""


@dataclass(frozen=True)
class Package:
    """What this release was tested with."""

    name: str
    minimum: str
    tested: Sequence[str]
    """Versions, as far as they matter: 2.13 stands for all 2.13.x."""
    needed_for: str = ""
    """Empty where nothing works without it."""

    @property
    def module(self) -> str:
        return {"pillow": "PIL", "opencv-python-headless": "cv2"}.get(self.name, self.name)


PACKAGES = (
    Package("torch", "2.2", ("2.11", "2.13")),
    Package("numpy", "1.24", ("2.4",)),
    Package("pillow", "10.1", ("13.0",)),
    Package("safetensors", "0.4.3", ("0.8",)),
    Package("opencv-python-headless", "4.8", ("4.11",)),
    Package("xxhash", "3.0", ("4.1",)),
    Package("diffusers", "0.31", ("0.42",), "generate"),
    Package("transformers", "4.44", ("5.23",), "generate"),
    Package("accelerate", "0.33", ("1.15",), "generate"),
    Package("huggingface-hub", "0.25", ("2.4",), "download"),
    Package("onnxruntime", "1.18", ("1.32",), "--backend onnxruntime"),
    Package("onnx", "1.15", ("1.23",), "--backend onnxruntime"),
    Package("nvidia-ml-py", "12.535", ("13.615",), "watch on NVIDIA's GPUs"),
    Package("matplotlib", "3.7", ("3.11",), "the plot of watch"),
)
"""Kept equal to pyproject.toml and constraints.txt by a test."""
ORACLE = Package("insightface", "2.1", ("2.1",))
"""Not needed; the tests compare our faces with its."""

NEEDED = tuple(package for package in PACKAGES if not package.needed_for)
_OF_COMFYUI = ("numpy", "pillow", "safetensors")  # which it needs too
_OPENCV_TO_INSTALL = '"opencv-python-headless<4.12"'  # 4.12 caps numpy, and 5 demands numpy 2
_ONNXRUNTIMES = re.compile(r"onnxruntime(-|$)|ort-")


def installed() -> dict[str, list[metadata.Distribution]]:
    """Every distribution that Python would see, by its normalised name; more than one where a name is there twice."""
    found: dict[str, list[metadata.Distribution]] = defaultdict(list)
    for distribution in metadata.distributions():
        try:
            name = distribution.metadata["Name"]
        except Exception:  # one that is damaged, such as by a name that is no UTF-8, is no reason to miss the others
            continue
        if name:  # what an interrupted pip leaves behind has none
            found[normalised(name)].append(distribution)
    return found


def normalised(name: str) -> str:
    """As PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def release(version: str) -> Version:
    """``(2, 13, 0)`` of ``2.13.0+cu130``; empty where it cannot be told."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(map(int, match[1].split("."))) if match else ()


def unusable() -> list[str]:
    """Names of those without which nothing works, and which cannot be imported."""
    modules = ((package.name, _import(package)) for package in NEEDED)
    return [name for name, module in modules if isinstance(module, Exception)]


def missing(places: Places) -> Iterator[Finding]:
    """What nothing works without, and is not there: one finding and one command. Torch has a finding of its own."""
    names: list[str] = []
    for package in NEEDED[1:]:
        module = _import(package)
        if is_missing(package.module, module):
            names.append(package.name)
        elif isinstance(module, Exception) and package.module != "cv2":  # of which more is known below
            yield Finding(
                "broken",
                f"{package.name} is installed, but cannot be loaded: {_first_line(module)}",
                "Nothing works without it. Mostly, a part of it is missing or belongs to another version.",
                pip("install --force-reinstall --no-deps", package.name),
            )
    if names:
        yield Finding(
            "broken",
            f"not installed: {', '.join(names)}",
            f"Nothing works without {'it' if len(names) == 1 else 'them'}. Looked for by {sys.executable}.",
            how_to_install(names),
        )


def how_to_install(names: Sequence[str]) -> str:
    """One command for packages of ``NEEDED`` that are missing; a clone has a list of some of them."""
    clone = clone_around()
    list_ = None if clone is None else clone / "requirements.txt"
    listed = re.findall(r"^[\w-]+", list_.read_text(encoding="utf-8"), re.M) if list_ and list_.is_file() else []
    rest = [_to_install(package) for package in NEEDED if package.name in names and package.name not in listed]
    from_list = ["-r", quoted(list_)] if list_ and set(names) & set(listed) else []
    command = pip("install", *from_list, *rest)
    if clone is None or not set(names) & set(_OF_COMFYUI):
        return command
    return f"if ComfyUI works, it has them: run the doctor with ComfyUI's own Python\nif this is that Python: {command}"


def needed(places: Places) -> Iterator[Finding]:
    """Those without which nothing works."""
    present, broken = _versions(), unusable()
    good: list[str] = []
    for package in PACKAGES:
        version = present.get(package.name)
        if version is None:
            continue
        if () < release(version) < release(package.minimum):
            yield Finding(
                "broken" if not package.needed_for else "warning",
                f"{package.name} {version} is too old",
                f"{package.minimum} or newer is needed{f' for {package.needed_for}' if package.needed_for else ''}.",
                pip("install --upgrade", _to_install(package)),
            )
        elif not package.needed_for and package.name not in broken:
            good.append(f"{package.name} {version}")
    if good:
        yield Finding("ok", ", ".join(good))


def not_there(places: Places) -> Iterator[Finding]:
    """What could be installed for more."""
    present = _versions()
    nvidia = gpu_beside()[0] == "nvidia"
    missing: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        if package.needed_for and package.name not in present and (nvidia or package.name != "nvidia-ml-py"):
            gpu = "-gpu" if nvidia and package.name == "onnxruntime" else ""  # the plain one has the CPU alone
            missing[package.needed_for].append(package.name + gpu)
    if missing and places.host == "diffusers":
        names = [name for group in missing.values() for name in group]
        each = "; ".join(f"{purpose} ({', '.join(group)})" for purpose, group in missing.items())
        yield Finding(
            "note",
            f"not installed, and needed only for: {each}",
            do=f"if you want these: {pip('install', *names)}",
        )


def untested(places: Places) -> Iterator[Finding]:
    """Versions that this release was not tested with, in one line."""
    present = _versions()
    others: list[str] = []
    python = platform.python_version()
    if not _is_one_of(python, (TESTED_PYTHON,)):
        others.append(f"Python {python} ({TESTED_PYTHON})")
    for package in (*PACKAGES, ORACLE):
        version = present.get(package.name)
        if version is not None and not _is_one_of(version, package.tested):
            others.append(f"{package.name} {version} ({' and '.join(package.tested)})")
    for folder in places.custom_nodes[:1]:
        version = _comfyui_version(folder.parent)
        if version is not None and version not in TESTED_COMFYUI:
            others.append(f"ComfyUI {version} ({' and '.join(TESTED_COMFYUI)})")
    if others:
        yield Finding("note", f"other than this release was tested with, in brackets: {', '.join(others)}")


def opencv(places: Places) -> Iterator[Finding]:
    present = installed()
    there = [name for name in OPENCV if name in present]
    again = f"{pip('uninstall', *there)}, then: {pip('install', _OPENCV_TO_INSTALL)}"
    error = import_module("cv2")
    numpy_is_there = not isinstance(import_module("numpy"), Exception)
    if isinstance(error, Exception):
        if there and numpy_is_there and not is_missing("cv2", error):  # else the reason has been said
            yield Finding(
                "broken",
                f"{there[0]} {present[there[0]][0].version} is installed, but cannot be loaded: {_first_line(error)}",
                "Faces are aligned by it. Mostly, it does not fit numpy (OpenCV 5 needs numpy 2), or a library of the "
                "system is missing (libGL, which the package opencv-python-headless does without).",
                again,
            )
        return
    if len(there) > 1:
        versions = [f"{name} {present[name][0].version}" for name in there]
        yield Finding(
            "note" if len({present[name][0].version for name in there}) == 1 else "warning",
            f"{len(there)} packages bring the module cv2: {', '.join(versions)}",
            "They overwrite each other's files. That works while they are of the same version, until one is updated or "
            "uninstalled.",
            again,
        )


def twice(places: Places) -> Iterator[Finding]:
    """Packages with two copies on Python's path; the first one is used."""
    names = {package.name for package in PACKAGES} | {"torchvision", "torchaudio", "triton", *OPENCV}
    for name, copies in installed().items():
        folders = {os.path.realpath(str(copy.locate_file(""))): copy.version for copy in reversed(copies)}
        if (name in names or _ONNXRUNTIMES.match(name)) and len(folders) > 1:
            listed = ", ".join(f"{version} in {folder}" for folder, version in reversed(folders.items()))
            yield Finding(
                "warning",
                f"{name} is installed {len(folders)} times: {listed}",
                "Python takes the first. Files of both can get mixed, and pip speaks of one of them only.",
                f"{pip('uninstall', name)} removes the first; repeat it until one is left",
            )


CHECKS = (missing, needed, opencv, twice, not_there, untested)


def _versions() -> dict[str, str]:
    """Of the copies that Python uses, by name; any OpenCV and any onnxruntime stands for its kind."""
    present = {name: copies[0].version for name, copies in installed().items() if copies[0].version}
    for name in OPENCV:
        if name in present:
            present.setdefault("opencv-python-headless", present[name])
    for name in sorted(present):
        if name.startswith(("onnxruntime-", "ort-")):
            present.setdefault("onnxruntime", present[name])
    return present


def _import(package: Package) -> ModuleType | Exception:
    return import_torch() if package.name == "torch" else import_module(package.module)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _to_install(package: Package) -> str:
    return _OPENCV_TO_INSTALL if package.name in OPENCV else package.name


def _is_one_of(version: str, tested: Sequence[str]) -> bool:
    return any(release(version)[: len(release(one))] == release(one) for one in tested)


def _comfyui_version(comfyui: Path) -> str | None:
    try:
        match = re.search(r'__version__\s*=\s*"([^"]+)"', (comfyui / "comfyui_version.py").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return match[1] if match else None
