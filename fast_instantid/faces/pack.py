"""Search for the detector and the recogniser of a model pack, below any folder."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache import Cache
from ..errors import ModelFileError
from ..recorder import stage
from ..weights import Known, checksum, file_version, of_version
from .onnx.graph import Graph, Value, read_graph
from .onnx.module import check_operators
from .recognizer import EMBEDDING_DIM

logger = logging.getLogger("fast_instantid")

_GLINTR100 = "glintr100.onnx"
# Opened first, in this order, so that the landmark and gender networks of a usual pack never are. The content decides
# the kind of a network, not the name.
_USUAL_NAMES = ("scrfd_10g_bnkps.onnx", _GLINTR100, "det_10g.onnx", "w600k_r50.onnx", "det_500m.onnx", "w600k_mbf.onnx")
_ANTELOPEV2_BYTES = 260_665_334  # of its glintr100.onnx
_OTHER_RECOGNIZERS = {
    260_694_151: ("a7933ea5330113b01c9b60351d8f4c33003f145d8470ac5f0e52ee2effe25c60", "AuraFace's recogniser"),
    174_383_860: ("4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43", "buffalo_l's recogniser"),
    13_616_099: ("9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f", "buffalo_s's recogniser"),
}
"""Published recognisers of other embedding spaces, by their size in bytes: SHA-256 and name."""
_OUTPUTS_WITH_KEYPOINTS = (9, 15)  # of a detector: scores, boxes and keypoints at three or five strides
NEEDED = "antelopev2's scrfd_10g_bnkps.onnx and glintr100.onnx"
_MAX_FOLDERS = 1000  # at one depth: somebody may name the whole disk
_MAX_DEPTH = 4  # models/insightface/models/antelopev2/antelopev2, seen from models/insightface, and one to spare


@dataclass(frozen=True, eq=False)
class Pack:
    """The detector and the recogniser of an insightface model pack."""

    folder: Path
    detector: Graph
    recognizer: Graph
    damaged: tuple[str, ...] = ()
    """Damaged files that were skipped, each with the kind of damage."""

    def warn(self, cache: Cache | None = None) -> None:
        """Log a warning of damaged files, and of a recogniser that InstantID was not trained on."""
        warn_of_recognizer(self.recognizer.path, cache)
        if self.damaged:
            logger.warning("face model pack %s is used, in spite of %s", self.folder, "; ".join(self.damaged))


def find_pack(folder: str | os.PathLike[str], cache: Cache | None = None, warns: bool = True) -> Pack:
    """Find a model pack in ``folder`` or below it, and warn of problems; see :func:`look_for_pack`.

    Raises:
        ModelFileError: no folder with both networks; the message lists the folders tried and what is missing in each.
    """
    found = look_for_pack(folder, cache)
    if isinstance(found, str):
        raise ModelFileError(f"{found}. Needed are {NEEDED}: 'fast-instantid download antelopev2' gets it")
    if warns:
        found.warn(cache)
    return found


def look_for_pack(folder: str | os.PathLike[str], cache: Cache | None = None) -> Pack | str:
    """The pack in ``folder`` or below it, or the reason why there is none.

    Of several packs, antelopev2 is preferred, then the one nearest to the top. ``folder`` may be the pack itself, one
    that holds it (``antelopev2/antelopev2``), ComfyUI's ``models/insightface``, its ``models``, or ComfyUI itself. The
    reason lists the folders tried and what is missing in each. A file that ``cache`` knows is opened on first use.
    """
    folder = Path(os.path.expanduser(folder))
    try:
        start = next(path for path in (folder / "models/insightface", folder / "insightface", folder) if path.is_dir())
    except StopIteration:
        return f"{folder}: {'this is a file' if folder.exists() else 'no such folder'}"
    except OSError as error:
        return f"{folder}: cannot be read ({error.strerror}); check its permissions"
    damaged: list[str] = []
    with stage("find networks"):
        candidates, tried = _folders_with_onnx(start)
        for candidate in sorted(candidates, key=lambda path: "antelope" not in str(path.relative_to(start)).lower()):
            detector, recognizer, problems = _two_networks(candidate, cache)
            damaged += problems
            if detector and recognizer:
                return Pack(candidate, detector, recognizer, tuple(damaged))
            missing = [name for name, found in (("detector", detector), ("recogniser", recognizer)) if not found]
            tried.append("; ".join([f"{candidate} (no {' and no '.join(missing)})", *problems]))
    looked = f"looked in {', '.join(tried)}" if tried else f"found no .onnx file up to {_MAX_DEPTH} folders down"
    return f"{folder}: no face model pack there ({looked})"


def _folders_with_onnx(start: Path) -> tuple[list[Path], list[str]]:
    """Folders that hold .onnx files, nearest first; and unreadable folders, with the reason."""
    found: list[Path] = []
    unreadable: list[str] = []
    level = [start]
    for _ in range(_MAX_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            try:
                entries = sorted(folder.iterdir())
                below += [entry for entry in entries if entry.is_dir()]
            except OSError as error:
                unreadable.append(f"{folder} (cannot be read: {error.strerror})")
                continue
            if any(entry.suffix.lower() == ".onnx" for entry in entries):
                found.append(folder)
        level = below[:_MAX_FOLDERS]
        if len(below) > _MAX_FOLDERS:
            unreadable.append(f"and no further than {_MAX_FOLDERS:,} folders at one depth")
    return found, unreadable


def _two_networks(folder: Path, cache: Cache | None) -> tuple[Graph | None, Graph | None, list[str]]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".onnx")
    files.sort(key=lambda path: _USUAL_NAMES.index(path.name) if path.name in _USUAL_NAMES else len(_USUAL_NAMES))
    detector = recognizer = None
    problems: list[str] = []
    for path in files:
        if detector and recognizer:
            break
        try:
            graph = _open_graph(path, cache)
        except ModelFileError as error:
            problems.append(str(error))
            continue
        # SCRFD's outputs, with or without keypoints, and one picture as its input.
        shape = graph.inputs[0].shape if len(graph.inputs) == 1 else ()
        is_detector = len(shape) == 4 and shape[1] == 3 and len(graph.outputs) in (6, 10, *_OUTPUTS_WITH_KEYPOINTS)
        if detector is None and is_detector:
            if len(graph.outputs) in _OUTPUTS_WITH_KEYPOINTS:
                detector = graph
            else:
                problems.append(f"{path}: a face detector without the five keypoints that InstantID needs")
        elif recognizer is None and _is_recognizer(graph):
            width = [None, *graph.outputs[0].shape][-1]
            if width in (None, EMBEDDING_DIM):
                recognizer = graph
            else:
                problems.append(f"{path}: its embeddings have {width} numbers, InstantID reads {EMBEDDING_DIM}")
    return detector, recognizer, problems


class _KnownGraph(Known, Graph):
    """A graph of operators that the torch backend has; its file is opened when the network runs."""


def _open_graph(path: Path, cache: Cache | None) -> Graph:
    """As :func:`read_graph`. A file that an earlier process read with this disk cache is not opened yet."""
    if not (cache and cache.persistent and path.is_file()):
        return read_graph(path)
    read: list[Graph] = []

    def facts() -> dict[str, Any] | None:
        graph: Graph = of_version(read_graph(path), version)
        read.append(graph)
        try:
            check_operators(graph)
        except ModelFileError:  # said by the backend that cannot run it
            return None
        values = {name: [[v.name, v.shape] for v in getattr(graph, name)] for name in ("inputs", "outputs")}
        return values | {name: getattr(graph, name) for name in ("fingerprint", "scales_itself")}

    version = file_version(path)
    known = cache.facts(version, "graph", facts)
    if read or known is None:
        return read[0] if read else read_graph(path)
    for name in ("inputs", "outputs"):
        known[name] = tuple(Value(value, tuple(shape)) for value, shape in known[name])
    return _KnownGraph(read_graph, path, version, **known)


def _is_recognizer(graph: Graph) -> bool:
    """Whether a graph makes a vector of 128 numbers or more from a 112 x 112 crop.

    Landmark networks read 192 x 192 pixels, gender networks 96 x 96.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1 or graph.inputs[0].shape[1:] != (3, 112, 112):
        return False
    width = graph.outputs[0].shape[-1] if graph.outputs[0].shape else None
    return width is None or width >= 128


def checksum_of(path: Path, cache: Cache | None) -> str:
    """SHA-256 of a file. One that an earlier process hashed with this disk cache is not opened."""
    if cache is None:
        return checksum(path)
    return cache.facts(file_version(path), "sha256", lambda: checksum(path))


def other_recognizer(path: Path, cache: Cache | None = None) -> str:
    """Name a recogniser that is not antelopev2's; "" for antelopev2's, and for an unknown one of another name.

    Published files are told by their content. Only a file of the size of one is hashed.
    """
    nbytes = path.stat().st_size
    expected, name = _OTHER_RECOGNIZERS.get(nbytes, ("", ""))
    if name and checksum_of(path, cache) == expected:
        return name
    if path.name.startswith("w600k_") or ("buffalo" in path.parent.name.lower() and path.name != _GLINTR100):
        return "the recogniser of a buffalo pack"
    if path.name == _GLINTR100 and nbytes != _ANTELOPEV2_BYTES and nbytes > _ANTELOPEV2_BYTES // 3:
        return f"a recogniser of {nbytes:,} bytes, where the published one has {_ANTELOPEV2_BYTES:,}"
    return ""


def warn_of_recognizer(path: Path, cache: Cache | None = None) -> None:
    """Log a warning of a recogniser that InstantID was not trained on."""
    if name := other_recognizer(path, cache):
        told = "%s is %s. InstantID was trained on antelopev2's glintr100: another embedding space, another person"
        logger.warning(told, path, name)
