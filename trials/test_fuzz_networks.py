"""Damaged ONNX files: either the network runs, or this package's own error names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from examples.onnx_writer import OnnxWriter
from examples.tiny_faces import write_iresnet, write_scrfd
from fast_instantid import Cache, FaceAnalyzer
from fast_instantid.faces.onnx.graph import read_graph
from fast_instantid.faces.onnx.network import TorchNetwork
from trials.bounded import only_our_errors, run_forked
from trials.conftest import Trial
from trials.mutations import damaged

SIDE = 16
NUMBERS = (0, -1, 1, 2, 3, 7, 64, 1025, 10**6, 2**31 - 1, 2**31, 2**62, -(2**63))
FLOATS = (0.0, -1.0, 1.0, 2.0, 1e-30, 1e30, float("inf"), float("nan"))
OPERATORS = (
    *("Conv", "Gemm", "MatMul", "BatchNormalization", "PRelu", "Relu", "Sigmoid", "Add", "Sub", "Mul", "Div"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "Upsample", "Flatten", "Reshape", "Transpose"),
    *("Shape", "Gather", "Slice", "Unsqueeze", "Concat", "Constant", "Identity", "Dropout", "Cast", "Loop", ""),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A network with each operator that the package knows, for ``(1, 3, 16, 16)``."""
    net = OnnxWriter(0)
    x = net.op("Sub", ["images", net.const(np.float32(127.5))])
    x = net.prelu(net.norm(net.conv(x, 3, 8), 8), 8)
    pads = {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "strides": [2, 2], "dilations": [1, 1], "group": 4}
    y = net.op("Conv", [x, net.const(net.normal(8, 2, 3, 3))], **pads)
    y = net.relu(net.norm(y, 8))
    y = net.op("MaxPool", [y], kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0], ceil_mode=1)
    y = net.op("AveragePool", [y], kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1], count_include_pad=1)
    scales = net.const(np.float32([1, 1, 2, 2]))
    modes = {"coordinate_transformation_mode": "asymmetric", "mode": "nearest", "nearest_mode": "floor"}
    net.op("Resize", [y, net.const(np.empty(0, np.float32)), scales], **modes)
    z = net.op("Concat", [net.upsample_to(y, x), x], axis=1)
    z = net.op("Mul", [net.op("Sigmoid", [z]), net.const(np.ones((1, 16, 1, 1), np.float32))])
    rows = net.op("Reshape", [net.op("Transpose", [z], perm=[2, 3, 0, 1]), net.const(np.int64([-1, 16]))])
    net.op("MatMul", [rows, net.const(net.normal(16, 4))], output="rows")
    flat = net.op("Flatten", [net.op("GlobalAveragePool", [z])], axis=1)
    flat = net.op("Dropout", [net.op("Identity", [net.norm(net.linear(flat, 16, 8), 8)])])
    half = net.op("Cast", [net.const(np.ones(8, np.float16))], to=TensorProto.FLOAT)
    net.op("Add", [flat, half], output="flat")
    path = net.save(
        tmp_path_factory.mktemp("network") / "net.onnx",
        [1, 3, SIDE, SIDE],
        {"rows": [SIDE * SIDE, 4], "flat": [1, 8]},
    )
    return path.read_bytes()


def run(path: Path) -> list[np.ndarray]:
    network = TorchNetwork(read_graph(path), torch.device("cpu"))
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (1, SIDE, SIDE, 3), np.uint8))
    return [*network.run(picture, 127.5, 1 / 128), *network.run(picture, 127.5, 1 / 128)]


def mutated(content: bytes, source: Trial) -> bytes:
    """A valid file with one to four changes to its nodes, weights, inputs and outputs."""
    model = onnx.load_from_string(content)
    graph = model.graph
    for _ in range(source.choice((1, 1, 2, 4))):
        if not graph.node or not graph.initializer:
            break
        node, other = source.choice(graph.node), source.choice(graph.node)
        weight = source.choice(graph.initializer)
        kind = source.randrange(18)
        if kind <= 4 and node.attribute:
            _change_attribute(source.choice(node.attribute), source)
        elif kind == 5 and node.attribute:
            del node.attribute[source.randrange(len(node.attribute))]
        elif kind == 6:
            node.op_type = source.choice(OPERATORS)
        elif kind == 7 and node.input:
            names = [name for n in graph.node for name in (*n.input, *n.output)]
            node.input[source.randrange(len(node.input))] = source.choice([*names, "", "nothing"])
        elif kind == 8 and node.output:
            node.output[0] = source.choice([*other.output, *other.input, "", "new"])
        elif kind == 9:
            del graph.node[source.randrange(len(graph.node))]
        elif kind == 10:
            graph.node.insert(source.randrange(len(graph.node)), other)
        elif kind == 11 and weight.dims:
            weight.dims[source.randrange(len(weight.dims))] = source.choice(NUMBERS)
        elif kind == 12:
            weight.data_type = source.randrange(24)
        elif kind == 13:
            weight.raw_data = damaged(weight.raw_data, source)
        elif kind == 14:
            _change_storage(weight, source)
        elif kind == 15:
            dims = source.choice([*graph.input, *graph.output]).type.tensor_type.shape.dim
            if dims:
                source.choice(dims).dim_value = source.choice(NUMBERS)
        elif kind == 16:
            model.opset_import[0].version = source.choice(NUMBERS)
        else:
            _grow(graph, source)
    return model.SerializeToString()


def _change_attribute(attribute: onnx.AttributeProto, source: Trial) -> None:
    kind = source.randrange(5)
    if kind <= 1 and attribute.ints:
        attribute.ints[source.randrange(len(attribute.ints))] = source.choice(NUMBERS)
    elif kind <= 1:
        attribute.i, attribute.f = source.choice(NUMBERS), source.choice(FLOATS)
    elif kind == 2:
        attribute.type = source.randrange(15)
    elif kind == 3:
        attribute.ints.extend(source.choices(NUMBERS, k=source.choice((1, 3, 100))))
    else:
        attribute.name = source.choice(("strides", "pads", "dilations", "group", "axis", "perm", "kernel_shape", "x"))


def _change_storage(weight: onnx.TensorProto, source: Trial) -> None:
    where = ("../secret", "/etc/passwd", "weights.bin", "/dev/zero", "")
    weight.data_location = TensorProto.EXTERNAL if source.random() < 0.7 else TensorProto.DEFAULT
    entry = weight.external_data.add()
    entry.key, entry.value = source.choice(("location", "offset", "length")), source.choice(where)


def _grow(graph: onnx.GraphProto, source: Trial) -> None:
    """Thirty nodes, each twice the size of the one before."""
    output = source.choice([name for node in graph.node for name in node.output])
    for i in range(30):
        value, op = f"grown{i}", source.choice(("Concat", "Concat", "Add", "MatMul"))
        attributes = {"axis": source.choice((0, 1, 2, 3))} if op == "Concat" else {}
        graph.node.append(onnx.helper.make_node(op, [output, output], [value], **attributes))
        output = value
    graph.output[0].name = output


def test_mutated_networks_run_or_are_refused(trials, small, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(small)
    assert len(run(path)) == 4, "the network as it is"

    def trial(source: Trial) -> None:
        path.write_bytes(mutated(small, source) if source.random() < 0.7 else damaged(small, source))
        with only_our_errors():
            run(path)

    run_forked(trials, trial)


def test_damaged_face_packs_find_faces_or_are_refused(trials, tmp_path):
    """The whole way of a photograph, since each network's results are the input of what follows."""
    pack, picture = tmp_path / "pack", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    pack.mkdir()
    whole = {path: path.read_bytes() for path in (write_scrfd(pack / "a.onnx"), write_iresnet(pack / "b.onnx"))}
    faces = [{"kps": [[20, 20], [40, 20], [30, 30], [22, 42], [38, 42]], "bbox": [10, 10, 50, 60], "det_score": 1.0}]

    def trial(source: Trial) -> None:
        for path, content in whole.items():
            path.write_bytes(content)
        path, content = source.choice([*whole.items()])
        path.write_bytes(mutated(content, source) if source.random() < 0.7 else damaged(content, source))
        with only_our_errors():
            analyzer = FaceAnalyzer.load(pack, device="cpu", sizes=None, cache=Cache())
            for size in ((64, 64), (96, 64)):
                analyzer.networks.detector.threshold = 0.0
                analyzer.networks.detector.detect([picture], size)
            analyzer.embed([picture], faces)

    run_forked(trials, trial, 20)
