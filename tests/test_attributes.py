"""Gender, age and landmarks: faces have what insightface's have, when code that was written for it asks."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from insightface.app import FaceAnalysis

from examples.tiny_faces import write_landmark_net
from fast_instantid import Cache, FaceAnalyzer

NETWORKS = {"1k3d68.onnx": (3309, 192), "2d106det.onnx": (212, 192), "genderage.onnx": (3, 96)}
ITEMS = ("gender", "age", "landmark_2d_106", "landmark_3d_68")


def as_of_mxnet(path: Path, how: str) -> None:
    """Let a network scale the picture itself: by a subtraction and a multiplication, or a normalisation."""
    model = onnx.load(str(path))
    given = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["scaled" if name == given else name for name in node.input]
    numbers = {"mean": 127.5, "factor": 1 / 128, "one": 1.0, "zero": 0.0, "variance": 128.0**2}
    for name, value in numbers.items():
        size = 1 if how == "Sub, Mul" else 3
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(size, value, np.float32), name))
    make = onnx.helper.make_node
    if how == "Sub, Mul":
        first = [make("Sub", [given, "mean"], ["less"], "_minusscalar0")]
        first.append(make("Mul", ["less", "factor"], ["scaled"], "_mulscalar0"))
    else:
        inputs = [given, "one", "zero", "mean", "variance"]
        first = [make("BatchNormalization", inputs, ["scaled"], "bn_data", epsilon=0.0)]
    nodes = [*first, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(path))


@pytest.fixture(params=["plain", "Sub, Mul", "bn_data"])
def whole_pack(request: pytest.FixtureRequest, pack: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(pack, tmp_path / "antelopev2"))
    for seed, (name, (numbers, size)) in enumerate(NETWORKS.items()):
        write_landmark_net(folder / name, numbers, width=4, size=size, seed=seed)
        if request.param != "plain":
            as_of_mxnet(folder / name, request.param)
    return folder


def test_they_are_insightfaces(whole_pack: Path, group: np.ndarray) -> None:
    bgr = np.ascontiguousarray(group[..., ::-1])
    theirs = FaceAnalysis(name=str(whole_pack), providers=["CPUExecutionProvider"])
    theirs.prepare(ctx_id=-1, det_size=(640, 640))
    ours = FaceAnalyzer.load(whole_pack, device="cpu", cache=Cache())
    assert set(ours.models) == set(theirs.models)
    pairs = [*zip(ours.get(bgr), theirs.get(bgr), strict=True)]
    assert len(pairs) > 1
    for face, expected in pairs:
        assert set(face) == {"bbox", "kps", "det_score", "embedding"}, "computed before anything asked"
        assert face.sex == expected.sex
        assert face["gender"] == expected.gender
        assert abs(face.age - expected.age) <= 1  # rounded
        for name in ITEMS[2:]:
            assert face[name].dtype == expected[name].dtype
            np.testing.assert_allclose(face[name], expected[name], rtol=0, atol=1e-3 * np.abs(expected[name]).max())
        assert set(ITEMS) <= set(face)
        assert face.pose is None
    network = ours.models["landmark_2d_106"]
    assert (network.taskname, network.input_size) == ("landmark_2d_106", (192, 192))
    np.testing.assert_array_equal(network.get(bgr, pairs[0][1]), pairs[0][1].landmark_2d_106)


@pytest.mark.parametrize("fault", ["none is there", "damaged", "of another kind"])
def test_without_usable_networks_they_are_none_and_the_log_says_so_once(
    fault: str, pack: Path, tmp_path: Path, astronaut: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(pack, tmp_path / "antelopev2"))
    if fault == "damaged":
        (folder / "2d106det.onnx").write_bytes(b"half")
    if fault == "of another kind":
        write_landmark_net(folder / "2d106det.onnx", 98, width=4)
    analyzer = FaceAnalyzer.load(folder, device="cpu", cache=Cache())
    for face in analyzer.get(np.ascontiguousarray(astronaut[..., ::-1])) * 2:
        assert {name: getattr(face, name) for name in (*ITEMS, "sex", "pose", "anything")} == dict.fromkeys(
            (*ITEMS, "sex", "pose", "anything")
        )
        assert face.get("age", 30) == 30
        with pytest.raises(KeyError):
            face["landmark_2d_106"]
    said = [line.getMessage() for line in caplog.records if line.levelno == logging.WARNING]
    assert len([text for text in said if "asks faces for landmark_2d_106" in text]) == 1
    assert any(str(folder / "2d106det.onnx") in text for text in said) == (fault == "damaged")


def test_an_embedding_and_a_box_stay_those_of_the_photo(whole_pack: Path, astronaut: np.ndarray) -> None:
    """Code moves keypoints into a crop and back; insightface had computed everything before."""
    bgr = np.ascontiguousarray(astronaut[..., ::-1])
    [plain], [moved] = (FaceAnalyzer.load(whole_pack, device="cpu", cache=Cache()).get(bgr) for _ in range(2))
    moved.kps += 50
    moved.bbox *= 2
    bgr[:] = 0
    for name in ("embedding", *ITEMS):
        np.testing.assert_array_equal(moved[name], plain[name])


def test_a_value_that_was_set_stays(whole_pack: Path, astronaut: np.ndarray) -> None:
    [face] = FaceAnalyzer.load(whole_pack, device="cpu", cache=Cache()).get(np.ascontiguousarray(astronaut[..., ::-1]))
    face["gender"] = 7
    assert face.age is not None
    assert face.gender == 7
