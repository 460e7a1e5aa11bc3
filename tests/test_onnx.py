"""ONNX files: read as the onnx package reads them, run as onnxruntime runs them, refused with a reason."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from examples.tiny_faces import write_iresnet, write_mobile_face_net, write_scrfd
from fast_instantid.errors import ModelFileError
from fast_instantid.faces.onnx.graph import read_graph
from fast_instantid.faces.onnx.module import to_module


def test_graph_equals_what_the_onnx_package_reads(any_detector):
    ours, theirs = read_graph(any_detector), onnx.load(str(any_detector)).graph
    assert [(node.op, list(node.inputs), list(node.outputs)) for node in ours.nodes] == [
        (node.op_type, list(node.input), list(node.output)) for node in theirs.node
    ]
    for node, expected in zip(ours.nodes, theirs.node, strict=True):
        for attribute in expected.attribute:
            value = helper.get_attribute_value(attribute)
            if isinstance(value, onnx.TensorProto):
                np.testing.assert_array_equal(node.attributes[attribute.name], numpy_helper.to_array(value))
            else:
                expected_value = value.decode() if isinstance(value, bytes) else value
                assert node.attributes[attribute.name] == expected_value, (node.op, attribute.name)
    assert ours.initializers.keys() == {tensor.name for tensor in theirs.initializer}
    for tensor in theirs.initializer:
        np.testing.assert_array_equal(ours.initializers[tensor.name], numpy_helper.to_array(tensor))
    assert [value.name for value in ours.outputs] == [value.name for value in theirs.output]


@pytest.mark.parametrize("write", [write_iresnet, write_mobile_face_net], ids=["IResNet", "MobileFaceNet"])
@pytest.mark.parametrize("batch", [1, 3])
def test_recognisers_equal_onnxruntime(write, batch, tmp_path):
    path = write(tmp_path / "net.onnx")
    images = np.random.default_rng(0).standard_normal((batch, 3, 112, 112), np.float32)
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"images": images})[0]
    module = to_module(read_graph(path))
    got = module(torch.from_numpy(images))[0].numpy()
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_batch_norm_may_have_no_epsilon(tmp_path):
    """Some versions of torch refuse such a module; onnxruntime does not."""
    values = np.random.default_rng(0).uniform(0.5, 2, (4, 3)).astype(np.float32)
    names = ("scale", "shift", "mean", "variance")
    graph = helper.make_graph(
        [helper.make_node("BatchNormalization", ["x", *names], ["y"], epsilon=0.0)],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [numpy_helper.from_array(row, name) for row, name in zip(values, names, strict=True)],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    module = to_module(read_graph(path))
    norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert norms
    assert all(norm.eps > 0 for norm in norms)
    images = np.random.default_rng(1).standard_normal((2, 3, 4, 4), np.float32)
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": images})[0]
    np.testing.assert_allclose(module(torch.from_numpy(images))[0].numpy(), expected, rtol=1e-6, atol=1e-6)


def test_detectors_equal_onnxruntime_at_any_size(any_detector):
    session = onnxruntime.InferenceSession(str(any_detector))
    module = to_module(read_graph(any_detector))
    for height, width in ((320, 320), (256, 416)):
        images = np.random.default_rng(0).standard_normal((1, 3, height, width), np.float32)
        expected = session.run(None, {session.get_inputs()[0].name: images})
        for got, wanted in zip(module(torch.from_numpy(images)), expected, strict=True):
            assert got.shape == wanted.shape
            np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(wanted).max()))


def test_batch_norms_are_folded_into_convolutions_and_linear_layers(tmp_path):
    path = write_iresnet(tmp_path / "net.onnx")
    written = [node.op for node in read_graph(path).nodes]
    kept = [module for module in to_module(read_graph(path)).modules() if isinstance(module, torch.nn.BatchNorm2d)]
    foldable = sum(
        op == "BatchNormalization" and written[i - 1] in ("Conv", "Gemm") for i, op in enumerate(written) if i
    )
    assert foldable > len(kept) > 0
    assert len(kept) == written.count("BatchNormalization") - foldable


def test_batch_norms_whose_parameters_come_through_another_node(tmp_path):
    """torch's exporter shares equal weights between layers through Identity nodes."""
    shared = numpy_helper.from_array(np.float32([0.5, 2, 3, 0.1]), "shared")
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype("f4"), "weight")
    nodes = [
        helper.make_node("Identity", ["shared"], ["scale"]),
        helper.make_node("Conv", ["images", "weight"], ["x"]),
        helper.make_node("BatchNormalization", ["x", "scale", "shared", "shared", "shared"], ["y"]),
    ]
    path = save(tmp_path / "net.onnx", nodes, weights=[shared, weight])
    images = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype("f4")
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"images": images})[0]
    got = to_module(read_graph(path))(torch.from_numpy(images))[0].numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_the_module_compiles_without_a_graph_break(tmp_path):
    module = to_module(read_graph(write_scrfd(tmp_path / "net.onnx")))
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    images = torch.randn(2, 3, 64, 96)
    for got, expected in zip(compiled(images), module(images), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_module_holds_nothing_of_the_file(tmp_path, monkeypatch):
    """The file may be shortened afterwards, and reading the mapping would kill the process."""
    monkeypatch.setattr("fast_instantid.faces.onnx.graph.MAPPED_FROM", 0)  # as for a large file
    graph = read_graph(write_iresnet(tmp_path / "net.onnx"))
    module = to_module(graph)
    content = np.frombuffer(graph.content, np.uint8)
    tensors = [*module.parameters(), *module.buffers()]
    assert tensors
    assert not any(np.shares_memory(tensor.detach().numpy(), content) for tensor in tensors)


def save(path, nodes, *, weights=(), opset=11, shape=(1, 3, 8, 8)):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6), str(path))
    return path


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("Selu", ["images"], ["y"]), "operator Selu is not supported by the torch backend"),
        (
            helper.make_node("Resize", ["images", "", "scales"], ["y"], mode="linear"),
            r"operator Resize in the mode \['linear'",
        ),
        (
            helper.make_node("MaxPool", ["images"], ["y"], kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
            r"operator MaxPool with uneven padding \[0, 0, 1, 1\]",
        ),
        (
            helper.make_node("AveragePool", ["images"], ["y"], kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
            "operator AveragePool with auto_pad=SAME_UPPER",
        ),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_an_unknown_operator_or_form_is_named(tmp_path, node, message):
    scales = numpy_helper.from_array(np.float32([1, 1, 2, 2]), "scales")
    path = save(tmp_path / "net.onnx", [node], weights=[scales])
    with pytest.raises(ModelFileError, match=message):
        to_module(read_graph(path))


@pytest.mark.parametrize("keep", [1, 10, 0.3, 0.9, -1], ids=lambda keep: f"cut at {keep}")
def test_a_truncated_file_is_named(tmp_path, keep):
    data = write_iresnet(tmp_path / "whole.onnx").read_bytes()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ModelFileError, match=r"cut.onnx: not a complete ONNX file .* download it again"):
        read_graph(cut)


def test_damaged_bytes_never_crash_the_loader(tmp_path):
    whole = write_scrfd(tmp_path / "whole.onnx").read_bytes()
    damaged = tmp_path / "damaged.onnx"
    for seed in range(100):  # trials/ has more
        random = np.random.default_rng(seed)
        data = bytearray(whole if seed % 2 else random.bytes(2000))
        for position in random.integers(0, len(data), 1 + seed % 12):
            data[position] = random.integers(256)
        damaged.write_bytes(data)
        with contextlib.suppress(ModelFileError):  # and nothing else
            to_module(read_graph(damaged))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "this file is empty"), (b"<!DOCTYPE html>", "not a complete ONNX file"), (None, "no such file")],
)
def test_files_that_are_no_networks(tmp_path, content, message):
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        read_graph(path)
