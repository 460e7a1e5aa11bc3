"""ONNX files at half their size: weights stored as float16, computed with as float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_LEAST = 256  # numbers; smaller tensors are biases and norms, whose size does not matter


def store_half(path: Path) -> None:
    """Replace each large float32 weight by a float16 one and a Cast, in place."""
    model = onnx.load(path)
    casts = []
    for weight in model.graph.initializer:
        array = numpy_helper.to_array(weight)
        if array.dtype != np.float32 or array.size < _LEAST:
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    for i, cast in enumerate(casts):
        model.graph.node.insert(i, cast)
    onnx.save(model, path)
