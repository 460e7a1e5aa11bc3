"""Face networks in oneDNN's layout compute the same as with torch's own layers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from examples.tiny_faces import write_iresnet, write_scrfd
from fast_instantid.faces.onnx.graph import Graph, read_graph
from fast_instantid.faces.onnx.module import to_module
from fast_instantid.faces.onnx.network import TorchNetwork, load_network
from fast_instantid.faces.onnx.onednn import OneDNNConv2d, use_onednn
from fast_instantid.placement import has_onednn

needs_onednn = pytest.mark.skipif(not has_onednn(torch.float32), reason="needs torch with oneDNN on an x86 CPU")


def has_fixed_size(graph: Graph) -> bool:
    return None not in graph.inputs[0].shape[2:]


@pytest.fixture(params=[write_scrfd, write_iresnet], ids=["detector", "recogniser"])
def graph(request, tmp_path: Path) -> Graph:
    return read_graph(request.param(tmp_path / "network.onnx"))


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_onednn_equals_plain(graph, dtype):
    if not has_onednn(dtype):
        pytest.skip(f"this CPU has no {dtype}")
    plain = to_module(graph).to(dtype)
    converted = use_onednn(copy.deepcopy(plain), has_fixed_size(graph))
    side = graph.inputs[0].shape[2] or 64
    for batch, size in ((1, side), (3, side), (1, side if graph.inputs[0].shape[2] else 96)):
        images = torch.randn(batch, 3, size, size).to(dtype).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            for expected, found in zip(plain(images), converted(images), strict=True):
                # Where torch has a kernel of its own for a layer this small, last bits differ. They are rounding errors
                # of sums, so they scale with the largest values, and one element may be any fraction of its own error.
                error = (found - expected).norm() / expected.norm()
                assert error <= (5e-6 if dtype == torch.float32 else 0.02)


@needs_onednn
def test_every_convolution_is_converted_and_its_relu_with_it(graph):
    network = TorchNetwork(graph, torch.device("cpu"))
    layers = [*network.module.modules()]
    assert any(isinstance(layer, OneDNNConv2d) for layer in layers)
    assert not any(isinstance(layer, nn.Conv2d) for layer in layers)
    assert isinstance(network.module, fx.GraphModule)
    relus = [node for node in network.module.graph.nodes if node.target is F.relu]
    assert not any(node.args[0].op == "call_module" and len(node.args[0].users) == 1 for node in relus)


@needs_onednn
@pytest.mark.parametrize("fixed_size", [True, False])
def test_results_do_not_depend_on_the_size_that_came_first(tmp_path, fixed_size):
    graph = read_graph(write_scrfd(tmp_path / "network.onnx"))
    small, large = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 160, 160)
    orders = [(small, large), (large, small)]
    outputs = []
    for first, second in orders:
        network = use_onednn(to_module(graph), fixed_size)
        with torch.inference_mode():
            found = {len(images[0, 0]): network(images) for images in (first, second)}
        outputs.append(found)
    for side in (64, 160):
        assert all(torch.equal(one, other) for one, other in zip(outputs[0][side], outputs[1][side], strict=True))


@needs_onednn
def test_weights_are_reordered_once_for_a_fixed_size_and_never_by_the_reference_code(tmp_path, capfd):
    """A recogniser's layout fits its kernels; a detector's stays plain, which oneDNN reorders by generated code."""
    files = {
        "recogniser": write_iresnet(tmp_path / "recogniser.onnx", widths=(64, 128, 256, 512), blocks=(1, 1, 1, 1)),
        "detector": write_scrfd(tmp_path / "detector.onnx"),
    }
    for name, path in files.items():
        network = TorchNetwork(read_graph(path), torch.device("cpu"))
        pictures = torch.zeros((1, 112, 112, 3) if name == "recogniser" else (1, 640, 640, 3), dtype=torch.uint8)
        network.run(pictures, 127.5, 1 / 127.5)
        capfd.readouterr()
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            network.run(pictures, 127.5, 1 / 127.5)
        executed = [line for line in capfd.readouterr().out.splitlines() if ",exec,cpu," in line]
        assert sum(",convolution," in line for line in executed) > 10
        reorders = [line for line in executed if ",reorder," in line]
        assert not any(",simple:" in line for line in reorders)
        assert name == "detector" or not reorders


def test_without_onednn_the_layers_are_torchs_own(graph, monkeypatch):
    monkeypatch.setattr("fast_instantid.faces.onnx.network.has_onednn", lambda dtype: False)
    module = load_network(graph, "torch", "cpu").module
    assert any(isinstance(layer, nn.Conv2d) for layer in module.modules())
