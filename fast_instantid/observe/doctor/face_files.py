"""Checks of the face models: antelopev2's detector and recogniser."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ...errors import ModelFileError
from ...faces.onnx.graph import Graph, read_graph
from ...faces.pack import Pack, look_for_pack, other_recognizer
from ..report import Finding
from .headers import files_below
from .places import Places

# Convolutions of an IResNet: one at the start, two in each block, one where a block halves the picture
# (insightface, arcface_torch/backbones/iresnet.py).
_IRESNET_100, _IRESNET_50 = 1 + 2 * (3 + 13 + 30 + 3) + 4, 1 + 2 * (3 + 4 + 14 + 3) + 4
_OTHER_PERSON = "InstantID was trained on antelopev2's glintr100. Another recogniser gives another person."


def faces(places: Places) -> Iterator[Finding]:
    """Check the first pack in the folders. Yields nothing if there is no file of one."""
    reasons: list[str] = []
    for folder in places.faces:
        found = look_for_pack(folder)
        if isinstance(found, Pack):
            yield from _about_pack(found, places)
            return
        reasons.append(found)
    # No pack: say which part of one is there, and what is wrong with it.
    do = places.how_to_fetch("antelopev2", _destination(places))
    beside = [folder.with_name("antelopev2.zip") for folder in places.faces]
    below = [path for path in files_below(places.faces, (".zip",)) if path.stem.lower().startswith(("ant", "buf"))]
    archives = [*below, *filter(os.path.isfile, beside)]
    networks = list(files_below(places.faces, (".onnx",)))
    if archives and not networks:
        if zipfile.is_zipfile(archives[0]):
            text, do = f"the face models are still packed: {archives[0]}", f"unpack it into {_destination(places)}"
        else:
            text, do = f"{archives[0]} is damaged: it is not a complete zip archive", f"delete it, then: {do}"
        yield Finding("broken", text, "The face models are read from a folder.", do)
    if not networks:
        return
    graphs: list[Graph] = []
    problems: dict[Path, str] = {}
    for path in networks:
        try:
            graphs.append(read_graph(path))
        except ModelFileError as error:
            problems[path] = str(error)
    if problems:
        again = (
            f"unpack {archives[0]} again, over it"
            if archives
            else f"delete {', '.join(map(str, problems))}, then: {do}"
        )
        yield Finding("broken", "; ".join(problems.values()), "The face models are not complete without it.", again)
    else:
        has_detector = any(len(graph.outputs) > 1 for graph in graphs)
        missing = "a recogniser (glintr100.onnx)" if has_detector else "a face detector (scrfd_10g_bnkps.onnx)"
        yield Finding("broken", f"the face models are not complete: {missing} is missing", f"{'. '.join(reasons)}.", do)


def _about_pack(pack: Pack, places: Places) -> Iterator[Finding]:
    recognizer = pack.recognizer.path
    convolutions = sum(node.op == "Conv" for node in pack.recognizer.nodes)
    do = places.how_to_fetch("antelopev2", _destination(places))
    # A download keeps files of the same name.
    if recognizer.name == "glintr100.onnx":
        do = f"delete {recognizer}, then: {do}"
    kind = other_recognizer(recognizer)
    if convolutions == _IRESNET_50:
        kind = kind or "the recogniser of a buffalo pack"
    if convolutions == _IRESNET_100 and not kind:
        yield Finding("ok", f"face models: {pack.folder} ({pack.detector.path.name}, {recognizer.name})")
    else:
        kind = kind or f"a network of {convolutions} convolutions"
        text = f"{recognizer} is {kind}, not antelopev2's glintr100 ({_IRESNET_100} convolutions)"
        yield Finding("broken" if "buffalo" in kind else "warning", text, _OTHER_PERSON, do)
    if pack.damaged:
        text = f"damaged files beside the face models in {pack.folder}: {'; '.join(pack.damaged)}"
        yield Finding("warning", text, "They are not used, but another pack may read them.", "delete them")


def _destination(places: Places) -> Path:
    if places.host == "comfyui":
        return places.models / "insightface" / "models" / "antelopev2"
    return places.faces[0] if places.faces else places.models / "antelopev2"
