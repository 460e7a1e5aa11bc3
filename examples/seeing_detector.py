"""A detector of antelopev2's size that finds the faces of real photographs, without trained weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import compose, helper, numpy_helper

from examples.tiny_faces import SCRFD_10G, write_scrfd, write_skin_detector


def write_seeing_detector(path: Path) -> None:
    """A detector that does the work of SCRFD-10G and finds the faces of real photographs.

    With random weights SCRFD sees faces anywhere. So its outputs are added, too small to count, to those of a small
    detector that takes blobs of the colour of skin for faces.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = onnx.load(write_scrfd(Path(folder) / "work.onnx", **SCRFD_10G))
        answer = onnx.load(write_skin_detector(Path(folder) / "answer.onnx"))
    outputs = [output.name for output in answer.graph.output]
    [image] = [value.name for value in answer.graph.input]
    work, answer = (compose.add_prefix(model, prefix) for model, prefix in ((work, "work/"), (answer, "answer/")))
    for model, prefix in ((work, "work/"), (answer, "answer/")):
        for node in model.graph.node:
            node.input[:] = [image if name == prefix + image else name for name in node.input]
    graph = answer.graph
    graph.node.extend(work.graph.node)
    for name in outputs:
        graph.node.append(helper.make_node("Mul", [f"work/{name}", "tiny"], [f"tiny/{name}"]))
        graph.node.append(helper.make_node("Add", [f"answer/{name}", f"tiny/{name}"], [name]))
    graph.initializer.extend([*work.graph.initializer, numpy_helper.from_array(np.float32(1e-30), "tiny")])
    graph.input[0].name = image
    for output, name in zip(graph.output, outputs, strict=True):
        output.name = name
    onnx.checker.check_model(answer)
    onnx.save(answer, str(path))
