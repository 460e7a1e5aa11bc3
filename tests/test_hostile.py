"""Files and arguments of strangers: each was a traceback, a dead process, or a cost out of all proportion.

trials/test_fuzz_*.py look for more of their kind.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import time
import zipfile
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from examples.tiny_adapter import write_tiny_adapter
from fast_instantid import FaceAnalyzer, FastInstantIDError, ImageError, ModelFileError, keypoint_picture, load_image
from fast_instantid.cache import Cache
from fast_instantid.cli import main
from fast_instantid.faces.onnx.graph import read_graph
from fast_instantid.faces.onnx.network import load_network
from fast_instantid.identity.checkpoint import read_adapter
from fast_instantid.miniature import files
from fast_instantid.observe.doctor.headers import read_json
from fast_instantid.observe.profile import Profile
from fast_instantid.observe.samples import COLUMNS, read_csv
from fast_instantid.pipelines import InstantID  # noqa: F401  # before memory and time are measured
from fast_instantid.sources import local_path, models_folder
from fast_instantid.weights import read_tensors


@pytest.fixture(autouse=True)
def _cheap():
    """Each test takes at most 10 s of processor, and adds at most 300 MB to the memory of this process."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def network(path, *nodes, weights=None, opset=11, change=lambda model: None):
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [output], **attributes) for op, inputs, output, attributes in nodes],
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, 16, 16))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def run(path, backend="torch"):
    load_network(read_graph(path), backend, "cpu").run(torch.zeros(1, 16, 16, 3), 0.0, 1.0)


WEIGHTS = {"w": np.ones((4, 3, 3, 3), "f4"), "b": np.ones(4, "f4"), "one": np.ones(1, "f4"), "i": np.int64([5, -1])}
CONV = {
    "a stride of 0": {"strides": [0, 1]},
    "a negative stride": {"strides": [-1, 1]},
    "an enormous stride": {"strides": [2**62, 1]},
    "three strides": {"strides": [1, 1, 1]},
    "strides that are a float": {"strides": 1.0},
    "a dilation of 0": {"dilations": [0, 0]},
    "an enormous dilation": {"dilations": [2**40, 1]},
    "a negative pad": {"pads": [-20, 0, -20, 0]},
    "enormous pads": {"pads": [10**6] * 4},
    "two pads": {"pads": [1, 1]},
    "no groups": {"group": 0},
    "groups that do not divide": {"group": 3},
    "a kernel that is not the weight's": {"kernel_shape": [5, 5]},
    "a kernel larger than the picture": {"dilations": [10, 10]},
}


@pytest.mark.parametrize("attributes", CONV.values(), ids=CONV)
def test_a_convolution_that_no_kernel_may_be_given(tmp_path, attributes):
    path = network(tmp_path / "net.onnx", ("Conv", ["images", "w", "b"], "y", attributes), weights=WEIGHTS)
    with pytest.raises(ModelFileError, match=r"net\.onnx: .*Conv.*'y'"):
        run(path)


OTHERS = {
    "a pool's stride of 0": ("MaxPool", ["images"], {"kernel_shape": [2, 2], "strides": [0, 0]}),
    "a pool's dilation": ("MaxPool", ["images"], {"kernel_shape": [2, 2], "dilations": [2, 2]}),
    "a pool without a kernel": ("AveragePool", ["images"], {}),
    "a pool as wide as it likes": ("AveragePool", ["images"], {"kernel_shape": [1000, 1000], "pads": [500] * 4}),
    "pads wider than a pool": ("MaxPool", ["images"], {"kernel_shape": [2, 2], "pads": [9] * 4}),
    "an axis out of range": ("Concat", ["images", "images"], {"axis": 7}),
    "another axis to flatten": ("Flatten", ["images"], {"axis": 2}),
    "a perm that is none": ("Transpose", ["images"], {"perm": [0, 0, 1, 9]}),
    "no perm": ("Transpose", ["images"], {}),
    "shapes that do not broadcast": ("Add", ["images", "w"], {}),
    "one input of two": ("Add", ["images"], {}),
    "no input": ("Relu", [], {}),
    "an input that nobody makes": ("Relu", ["nothing"], {}),
    "its own output as input": ("Relu", ["y"], {}),
    "a weight of integers": ("Mul", ["images", "i"], {}),
    "a bias of another length": ("Conv", ["images", "w", "one"], {}),
    "a norm of another width": ("BatchNormalization", ["images", "b", "b", "b", "b"], {}),
    "a slope of another width": ("PRelu", ["images", "b"], {}),
    "a reshape to nothing": ("Reshape", ["images", "i"], {}),
    "a matrix of four dimensions": ("MatMul", ["images", "w"], {}),
    "a scale of nothing": ("Upsample", ["images", "one"], {"mode": "nearest"}),
    "a shape as an output": ("Shape", ["images"], {}),
    "a cast to a type that is none": ("Cast", ["b"], {"to": 99}),
}


@pytest.mark.parametrize(("op", "inputs", "attributes"), OTHERS.values(), ids=OTHERS)
def test_another_node_that_cannot_run(tmp_path, op, inputs, attributes):
    path = network(tmp_path / "net.onnx", (op, inputs, "y", attributes), weights=WEIGHTS)
    with pytest.raises(ModelFileError, match=r"net\.onnx: "):
        run(path)


def test_steps_backwards_through_a_shape(tmp_path):
    weights = {name: np.int64([value]) for name, value in {"start": 3, "end": 0, "axis": 0, "step": -1}.items()}
    shape = ("Shape", ["images"], "s", {}), ("Slice", ["s", "start", "end", "axis", "step"], "t", {})
    path = network(tmp_path / "net.onnx", *shape, ("Reshape", ["images", "t"], "y", {}), weights=weights)
    with pytest.raises(ModelFileError, match=r"operator Slice .* in other steps than 1"):
        run(path)


DOUBLED = {
    "concatenations": ("Concat", "images", {"axis": 0}),
    "concatenations of weights": ("Concat", "w", {"axis": 2}),
    "enlargements": ("Upsample", "images", {"mode": "nearest"}),
}


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
@pytest.mark.parametrize(("op", "first", "attributes"), DOUBLED.values(), ids=DOUBLED)
def test_thirty_nodes_that_double(tmp_path, op, first, attributes, backend):
    names = [first, *(f"v{i}" for i in range(29)), "y"]
    second = "scales" if op == "Upsample" else None
    nodes = [(op, [name, second or name], output, attributes) for name, output in pairwise(names)]
    weights = {**WEIGHTS, "scales": np.float32([1, 1, 2, 2])}
    path = network(tmp_path / "net.onnx", *nodes, weights=weights, opset=9)
    with pytest.raises(ModelFileError, match=rf"net\.onnx: {op} 'v\d+' cannot run .* are too many"):
        run(path, backend)


def test_a_broadcast_to_the_square(tmp_path):
    nodes = ("Flatten", ["images"], "row", {}), ("MatMul", ["row", "m"], "wide", {})
    square = ("Transpose", ["wide"], "column", {"perm": [1, 0]}), ("Add", ["wide", "column"], "y", {})
    path = network(tmp_path / "net.onnx", *nodes, *square, weights={"m": np.ones((768, 5000), "f4")})
    with pytest.raises(ModelFileError, match=r"Add 'y' cannot run .*25,0\d\d,\d{3} numbers"):
        run(path)


def test_one_weight_that_many_nodes_copy(tmp_path):
    casts = [("Cast", ["w"], f"v{i}", {"to": TensorProto.DOUBLE}) for i in range(5000)]
    path = network(tmp_path / "net.onnx", *casts, ("Relu", ["images"], "y", {}), weights={"w": np.ones(10**5, "f4")})
    with pytest.raises(ModelFileError, match="read more than eight times the file"):
        run(path)


def _graph_attribute(model):
    attribute = model.graph.node[0].attribute.add()
    attribute.name, attribute.type, attribute.g.name = "body", onnx.AttributeProto.GRAPH, "inner"


def _external(where):
    def change(model):
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = "location", where

    return change


FILES = {
    "negative dims": lambda model: model.graph.initializer[0].dims.__setitem__(0, -4),
    "enormous dims": lambda model: model.graph.initializer[0].dims.extend([2**62, 2**62]),
    "a hundred dims": lambda model: model.graph.initializer[0].dims.extend([1] * 100),
    "too little data": lambda model: setattr(model.graph.initializer[0], "raw_data", b"\0\0\0"),
    "a type that is none": lambda model: setattr(model.graph.initializer[0], "data_type", 99),
    "numbers out of range": lambda model: model.graph.initializer.add(
        name="x", dims=[1], data_type=TensorProto.INT32, int64_data=[2**60]
    ),
    "two weights of one name": lambda model: model.graph.initializer.append(model.graph.initializer[0]),
    "data outside of the folder": _external("../../etc/passwd"),
    "data at an absolute path": _external("/dev/zero"),
    "data in a file that is missing": _external("weights.bin"),
    "a graph in a node": _graph_attribute,
    "a node of another domain": lambda model: setattr(model.graph.node[0], "domain", "com.example"),
    "two nodes of one output": lambda model: model.graph.node.append(model.graph.node[0]),
    "an output of the input's name": lambda model: model.graph.node[0].output.__setitem__(0, "images"),
    "a node without outputs": lambda model: model.graph.node[0].ClearField("output"),
    "an opset of 0": lambda model: setattr(model.opset_import[0], "version", 0),
    "no opset": lambda model: model.ClearField("opset_import"),
    "functions": lambda model: model.functions.add(),
}


@pytest.mark.parametrize("change", FILES.values(), ids=FILES)
def test_a_network_that_is_refused_as_a_file(tmp_path, change):
    conv = ("Conv", ["images", "w", "b"], "y", {})
    path = network(tmp_path / "net.onnx", conv, weights=WEIGHTS, change=change)
    with pytest.raises(ModelFileError, match=r"net\.onnx: "):
        run(path)


def test_millions_of_fields_in_a_small_file(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"\x7a\x00" * 2_000_000)
    with pytest.raises(ModelFileError, match="more than 65,536 fields"):
        read_graph(tmp_path / "net.onnx")


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tensors(tmp_path):
    return read_tensors(write_tiny_adapter(tmp_path / "whole.bin", channels=[32, 64]))


def _shared(tensor):
    for _ in range(64):
        tensor = {"a": tensor, "b": tensor}
    return tensor


class Named:
    """Pickles as a dictionary of one item, whose name is not hashed before it is loaded."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return OrderedDict, (), None, None, iter([(self.name, 1)])


def _nested():
    pair = ()
    for _ in range(64):
        pair = (pair, pair)
    return pair


ADAPTERS = {
    "a list": lambda tensors: [*tensors.values()],
    "one tensor": lambda tensors: tensors["image_proj.latents"],
    "shared dictionaries": lambda tensors: _shared({"a": torch.ones(1)}),
    "nested tuples as a name": lambda tensors: {**tensors, "a": Named(_nested())},
    "a long name of many": lambda tensors: {"x" * 10**6: dict.fromkeys(map(str, range(10_000)), torch.ones(1))},
    "12,000 tensors": lambda tensors: {str(i): torch.ones(1) for i in range(12_000)},
    "a tensor without data": lambda tensors: {**tensors, "image_proj.latents": torch.empty(1, 16, 64, device="meta")},
    "a sparse tensor": lambda tensors: {**tensors, "image_proj.proj_in.weight": torch.ones(64, 512).to_sparse()},
    "a quantised tensor": lambda tensors: {
        **tensors, "image_proj.proj_in.weight": torch.quantize_per_tensor(torch.ones(64, 512), 1, 0, torch.qint8)
    },
    "one number in place of a weight": lambda tensors: {
        **tensors, "image_proj.proj_in.weight": torch.ones(1).expand(2**30, 512)
    },
    "weights of nothing": lambda tensors: {
        **tensors, **{f"ip_adapter.1.to_{part}_ip.weight": torch.ones(0, 64) for part in "kv"}
    },
    "a resampler of nothing": lambda tensors: {**tensors, "image_proj.layers.0.0.to_q.weight": torch.ones(0, 64)},
    "a dimension too many": lambda tensors: {**tensors, "image_proj.latents": torch.ones(1, 1, 16, 64)},
}  # fmt: skip


@pytest.mark.parametrize("change", ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_that_is_refused(tmp_path, tensors, change):
    torch.save(change(tensors), tmp_path / "adapter.bin")
    with pytest.raises(ModelFileError, match=r"adapter\.bin: ") as raised:
        read_adapter(tmp_path / "adapter.bin")
    assert len(str(raised.value)) < 2000


NAMES = {
    "5,000 layers of a resampler": ([f"image_proj.layers.{i}.x" for i in range(5000)], "5,000 layers"),
    "5,000 layers of a UNet": ([f"ip_adapter.{i}.to_k_ip.weight" for i in range(5000)], "not all odd ones"),
    "half a layer": (["ip_adapter.5.to_k_ip.weight"], "layer 5 lacks its key or value"),
    "a number of 5,000 digits": ([f"ip_adapter.{'9' * 5000}.to_k_ip.weight"], None),
    "a number in another script": (["ip_adapter.\N{ARABIC-INDIC DIGIT FIVE}.to_k_ip.weight"], None),
}


@pytest.mark.parametrize(("names", "message"), NAMES.values(), ids=NAMES)
def test_an_adapter_with_further_names(tmp_path, tensors, names, message):
    """A number that is none is left out, as any other name that is not an adapter's."""
    path = tmp_path / "adapter.safetensors"
    save_file({name: tensor.clone() for name, tensor in tensors.items()} | {n: torch.ones(1) for n in names}, path)
    if message is None:
        assert len(read_adapter(path).layers) == 2
        return
    with pytest.raises(ModelFileError, match=message) as raised:
        read_adapter(path)
    assert len(str(raised.value)) < 2000


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("call", [Calls(bytearray, 10**10), Calls(OrderedDict, [("a", 1)]), Calls(os.getcwd)])
def test_a_pickle_that_calls_functions(tmp_path, call):
    path = tmp_path / "adapter.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("adapter/data.pkl", pickle.dumps({"a": call}, 2))
        archive.writestr("adapter/version", "3")
    with pytest.raises(ModelFileError, match=r"adapter\.bin: "):
        read_tensors(path)


# --- other files, and arguments ---------------------------------------------------------------------------------------


def _pipe(folder):
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


READERS = [load_image, read_tensors, read_adapter, read_graph, Profile.load, read_csv, read_json, FaceAnalyzer.load]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__qualname__)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nothing", "long name", "null character"])
def test_a_path_that_is_no_file(tmp_path, read, kind):
    paths = {"device": "/dev/zero", "folder": tmp_path, "nothing": tmp_path / "none"}
    path = _pipe(tmp_path) if kind == "pipe" else paths.get(kind, tmp_path / ("x" * 5000 if "long" in kind else "\0"))
    # The doctor's and the command line's own readers let the system's errors through, which are caught there.
    others = (OSError, ValueError) if read in (Profile.load, read_csv, read_json) else ()
    with pytest.raises((ModelFileError, ImageError, FastInstantIDError, *others)):
        read(path)


@pytest.mark.parametrize("name", ["~no-such-user/x", "x" * 5000, "a\0b", "", "https://example.com/../../x", "a/b/c/d"])
def test_a_source_that_is_no_name(name):
    with pytest.raises(ModelFileError, match="expected a pack"):
        local_path(name or "no such folder", "a pack")


def test_the_home_of_a_user_who_is_not_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = Path("~no-such-user", "x")
    monkeypatch.setenv("FAST_INSTANTID_MODELS", str(folder))
    assert models_folder() == folder
    assert Cache(directory=folder).get("0" * 32, lambda: {"x": torch.ones(1)})["x"] == 1


def test_a_profile_of_three_thousand_nested_stages(tmp_path):
    profile = {
        "otherData": {
            **{"format": "fast-instantid profile", "version": 1, "title": "t", "duration": 9, "started_at": 1.0},
            **{"threads": ["main"], "dropped": 0, "ended_early": "", "about": {}},
        },
        "traceEvents": [
            {"ph": "X", "pid": 1, "tid": 0, "name": f"s{i}", "ts": i, "dur": 1, "args": {"parent": i - 1}}
            for i in range(3000)
        ],
    }
    (tmp_path / "run.json").write_text(json.dumps(profile))
    start = time.process_time()
    lines = Profile.load(tmp_path / "run.json").tree().splitlines()
    assert sum("s2999 " in line for line in lines) == 1
    assert max(map(len, lines)) < 500
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "line", ['"' + "x" * 200_000 + '",a,1', "0,a,nan,,,,,,", "0,a,1,inf,,,,,", "9" * 5000 + ",a,1"]
)
def test_a_recording_with_a_damaged_line(tmp_path, line):
    (tmp_path / "watch.csv").write_text(f"{','.join(COLUMNS)}\n{line}\n")
    with pytest.raises(FastInstantIDError, match=r"watch\.csv: line [12] is damaged"):
        read_csv(tmp_path / "watch.csv")


def test_json_that_is_nested_too_deeply(tmp_path):
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("size", [(10**20, 8), (8, -1), (2**31, 2**31)])
def test_a_picture_of_an_impossible_size(size):
    keypoints = np.float32([[20, 20], [40, 20], [30, 30], [22, 42], [38, 42]])
    with pytest.raises(ValueError, match="no side may exceed 32766"):
        keypoint_picture(keypoints, (64, 64), size)
    with pytest.raises(ValueError, match="expected five points"):
        keypoint_picture(keypoints[:4], (64, 64))


GENERATE = ["generate", "--base", "miniature", "--photo", "photo.png", "--prompt", "a", "-o", "out.png"]
ARGUMENTS = {
    "a size of 20 digits": (*GENERATE, "--size", "99999999999999999992x8"),
    "digits of another script": (*GENERATE, "--size", "\N{ARABIC-INDIC DIGIT EIGHT}x8"),
    "no device": (*GENERATE, "--device", "meta"),
    "a device out of range": (*GENERATE, "--device", "cuda:99"),
    "a device of 20 digits": (*GENERATE, "--device", "cpu:99999999999999999999"),
    "a seed of 30 digits": (*GENERATE, "--seed", "9" * 30),
    "steps of 20 digits": (*GENERATE, "--steps", "9" * 20),
    "faces of 20 digits": ("embed", "--pack", "miniature", "photo.png", "--face-sizes", "9" * 20),
    "a negative side": ("embed", "--pack", "miniature", "photo.png", "--face-sizes", "-64"),
    "an empty name": ("embed", "--pack", "miniature", ""),
    "a long name": ("embed", "--pack", "miniature", "x" * 5000),
    "a user who is not there": ("embed", "--pack", "~no-such-user/x", "photo.png"),
    "no folder for the output": ("keypoints", "--pack", "miniature", "photo.png", "-o", "none/out.png"),
    "the photo as output": ("keypoints", "--pack", "miniature", "photo.png", "-o", "photo.png"),
    "a folder as output": ("keypoints", "--pack", "miniature", "photo.png", "-o", "."),
    "an output that is too long": ("keypoints", "--pack", "miniature", "photo.png", "-o", "x" * 5000 + ".png"),
    "a device as profile": ("profile", "--show", "/dev/zero"),
    "a device as recording": ("watch", "--replay", "/dev/zero"),
    "a device as adapter": ("convert", "/dev/zero"),
    "a NUL": ("embed", "--pack", "mini\0ature", "photo.png"),
    "a NUL in the output": ("keypoints", "--pack", "miniature", "photo.png", "-o", "a\0b.png"),
}


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_an_argument_that_is_refused(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    load_image(files().portraits[0]).save("photo.png")
    try:
        code = main([*arguments])
    except SystemExit as error:  # argparse's own refusal
        code = error.code
    assert code in (1, 2)
    said = capsys.readouterr().err
    assert "error: " in said
    assert len(said) < 20_000
