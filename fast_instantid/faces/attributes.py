"""Gender, age and landmarks, for code that was written for insightface.

InstantID needs none of them. The networks are looked for when other code asks, and run on the CPU.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import BackendError, ModelFileError
from .face import field
from .onnx.graph import Graph, read_graph
from .onnx.network import TorchNetwork
from .pixels import warp

logger = logging.getLogger("fast_instantid")

_TASKS_BY_WIDTH = {3: "genderage", 212: "landmark_2d_106", 3309: "landmark_3d_68"}  # of a network's output
TASKS = {
    **{"embedding": "recognition", "gender": "genderage", "age": "genderage"},
    **{name: name for name in ("landmark_2d_106", "landmark_3d_68", "pose")},
}
"""insightface's networks by the item of a face that they compute. It derives the pose from a mean face of its own."""


class AttributeNetwork:
    """A network of ``FaceAnalysis.models`` that reads an upright crop (insightface, model_zoo/landmark.py)."""

    def __init__(self, taskname: str, graph: Graph) -> None:
        self.taskname = taskname
        self.input_size = graph.inputs[0].shape[:1:-1]
        # Networks exported from MXNet scale the picture themselves, some by a normalisation of the input.
        scales = graph.scales_itself or any(
            node.op == "BatchNormalization" and node.inputs[0] == graph.inputs[0].name for node in graph.nodes[:3]
        )
        self._scaling = (0.0, 1.0) if scales else (127.5, 1 / 128)
        self._network = TorchNetwork(graph, torch.device("cpu"))

    def prepare(self, ctx_id: int = 0, **_: Any) -> None:
        """Does nothing: it runs on the CPU."""

    def get(self, img: np.ndarray, face: Any) -> Any:
        """Set and return the items of a face of a BGR picture: gender and age, or landmarks ``(n, 2 or 3)``.

        Raises:
            ModelFileError: the network cannot run, or its results are NaN or infinite.
        """
        box, side = field(face, "bbox"), self.input_size[0] or 0
        scale = side / (1.5 * max(box[2:] - box[:2]))
        shift = side / 2 - scale * (box[:2] + box[2:]) / 2
        crop = warp([img], [np.column_stack([np.eye(2) * scale, shift])], side)
        numbers = self._network.run(crop.flip(-1), *self._scaling)[0][0]
        if self.taskname == "genderage":
            face["gender"], face["age"] = np.argmax(numbers[:2]), round(float(numbers[2]) * 100)
            return face["gender"], face["age"]
        count, dimensions = (106, 2) if self.taskname == "landmark_2d_106" else (68, 3)
        points = numbers.reshape(-1, dimensions)[-count:] * (side // 2)
        points[:, :2] += side // 2 - shift
        face[self.taskname] = (points / scale).astype(np.float32)
        return face[self.taskname]


def attribute_networks(folder: Path) -> dict[str, AttributeNetwork]:
    """Find the networks for gender, age and landmarks in a pack's folder, by what they return."""
    found: dict[str, AttributeNetwork] = {}
    for path in sorted(folder.glob("*.onnx")):
        try:
            graph = read_graph(path)
            shape, widths = graph.inputs[0].shape, [[0, *output.shape][-1] for output in graph.outputs]
            if len(widths) == 1 and len(shape) == 4 and all(shape[2:]) and widths[0] in _TASKS_BY_WIDTH:
                task = _TASKS_BY_WIDTH[widths[0]]
                found.setdefault(task, AttributeNetwork(task, graph))
        except (ModelFileError, BackendError) as error:
            logger.warning("not used for gender, age or landmarks: %s", error)
    return found


@functools.cache
def say_missing(task: str, folder: Path, why: str) -> None:
    """Log, once, that faces have no items of a task."""
    logger.warning("other code asks faces for %s, which no network in %s computes (%s): None", task, folder, why)
