"""The face models: antelopev2's detector and recogniser, wherever and however they were unpacked."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ModelFileError
from .headers import files_below
from .places import Places
from .report import Finding

if TYPE_CHECKING:
    from ...faces.onnx.graph import Graph
    from ...faces.pack import Pack

# Convolutions of an IResNet: one at the start, two in each block, one where a block halves the picture
# (insightface, arcface_torch/backbones/iresnet.py).
_IRESNET_100, _IRESNET_50 = 1 + 2 * (3 + 13 + 30 + 3) + 4, 1 + 2 * (3 + 4 + 14 + 3) + 4
_OTHER_PERSON = (
    "InstantID was trained on antelopev2's glintr100. The numbers of another recogniser mean another person to it: "
    "pictures will not look like the one on the photo."
)


def faces(places: Places) -> Iterator[Finding]:
    """Nothing where there is nothing."""
    from ...faces.pack import Pack, look_for_pack

    reasons: list[str] = []
    for folder in places.faces:
        with _warnings_of_package() as warnings:
            found = look_for_pack(folder)
        if isinstance(found, Pack):
            yield from _about_pack(found, folder, places)
            for warning in warnings:
                if "in spite of" in warning:
                    yield Finding(
                        "warning",
                        warning,
                        "Files there are damaged; a whole pack was found all the same.",
                        "delete them",
                    )
            return
        reasons.append(found)
    yield from _why_none(places, reasons)


def _about_pack(pack: Pack, folder: Path, places: Places) -> Iterator[Finding]:
    from ...faces.pack import is_of_buffalo

    convolutions = sum(node.op == "Conv" for node in pack.recognizer.nodes)
    do = places.how_to_fetch("antelopev2", _destination(places))
    if pack.recognizer.path.name == "glintr100.onnx":
        do = places.how_to_replace([pack.recognizer.path], do)
    if is_of_buffalo(pack.recognizer):
        yield Finding(
            "broken",
            f"the face models in {pack.folder} are a buffalo pack, and not antelopev2: {pack.recognizer.path.name}",
            _OTHER_PERSON,
            do,
        )
    elif convolutions == _IRESNET_50:
        yield Finding(
            "broken",
            f"{pack.recognizer.path} is not glintr100, whatever its name: it has the layers of an IResNet-50, as the "
            "recogniser of buffalo_l",
            _OTHER_PERSON,
            do,
        )
    elif convolutions != _IRESNET_100:
        yield Finding(
            "warning",
            f"{pack.recognizer.path} is not glintr100: it has {convolutions} convolutions, an IResNet-100 has "
            f"{_IRESNET_100}",
            _OTHER_PERSON,
            do,
        )
    else:
        names = f"{pack.detector.path.name}, {pack.recognizer.path.name}"
        yield Finding("ok", f"face models: {pack.folder} ({names})")
    if pack.folder.parent.name.lower() == pack.folder.name.lower():
        yield Finding(
            "note",
            f"the face models lie one folder too deep: {pack.folder}",
            "We find them there. insightface, and packs that use it, do not.",
            f"move them up into {pack.folder.parent} if you use such packs",
        )


def _why_none(places: Places, reasons: list[str]) -> Iterator[Finding]:
    """What of a pack there is."""
    do = places.how_to_fetch("antelopev2", _destination(places))
    beside = [folder.with_name("antelopev2.zip") for folder in places.faces]
    zipped = [path for path in (*files_below(places.faces, (".zip",)), *beside) if _holds_networks(path)]
    networks = list(files_below(places.faces, (".onnx",)))
    if zipped and not networks and not zipfile.is_zipfile(zipped[0]):
        yield Finding(
            "broken",
            f"{zipped[0]} is damaged: it is no whole zip archive",
            "The face models should be in it.",
            f"delete it, then: {do}",
        )
        return
    if zipped and not networks:
        yield Finding(
            "broken",
            f"the face models are still packed: {zipped[0]}",
            "They are read from a folder.",
            f"unpack it into {_destination(places)}",
        )
        return
    if not networks:
        return
    graphs = {path: _readable(path) for path in networks}
    problems = {path: graph for path, graph in graphs.items() if isinstance(graph, str)}
    whole = [graph for graph in graphs.values() if not isinstance(graph, str)]
    if problems:
        yield Finding(
            "broken",
            "; ".join(problems.values()),
            "The face models are not complete without that.",
            f"unpack {zipped[0]} again, over it" if zipped else places.how_to_replace([*problems], do),
        )
    else:
        has_detector = any(len(graph.outputs) > 1 for graph in whole)
        missing = "a recogniser (glintr100.onnx)" if has_detector else "a face detector (scrfd_10g_bnkps.onnx)"
        yield Finding("broken", f"the face models are not complete: {missing} is missing", f"{'. '.join(reasons)}.", do)


def _readable(path: Path) -> Graph | str:
    """The network in a file, or what the file is instead."""
    from ...faces.onnx.graph import read_graph

    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror}); check its permissions"
    if head.startswith(b"version https://git-lfs"):
        return f"{path}: a Git LFS pointer, not the file it points to"
    if head.lstrip()[:1] == b"<":
        return f"{path}: a web page saved in place of the file"
    try:
        return read_graph(path)
    except ModelFileError as error:
        return str(error)


def _destination(places: Places) -> Path:
    if places.host == "comfyui":
        return places.models / "insightface" / "models" / "antelopev2"
    return places.faces[0] if places.faces else places.models / "antelopev2"


def _holds_networks(path: Path) -> bool:
    """Or should, by its name."""
    if not os.path.isfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.lower().endswith(".onnx") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return path.stem.lower().startswith(("antelope", "buffalo"))


@contextmanager
def _warnings_of_package() -> Generator[list[str]]:
    """What the code that is asked would log; here it becomes findings."""
    logger = logging.getLogger("fast_instantid")
    messages: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        messages.append(record.getMessage())
        return False

    logger.addFilter(keep)
    try:
        yield messages
    finally:
        logger.removeFilter(keep)
