"""Training of the miniature's face detector: its pictures, its file, and what the shipped one finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from fast_instantid import miniature
from fast_instantid.faces.onnx.graph import read_graph
from fast_instantid.faces.onnx.module import to_module
from training import detector
from training.crowds import SHAPES, Crowd, draw_crowd, draw_people
from training.detector import FILE, Scrfd
from training.detector_export import write_onnx
from training.detector_report import Counts, measure
from training.world import SIZE, Pose


def crowds(count: int) -> list[Crowd]:
    return [draw_crowd(np.random.default_rng([3, i])) for i in range(count)]


def test_crowds_are_as_described():
    drawn = crowds(60)
    assert {len(crowd.boxes) for crowd in drawn} == {0, 1, 2, 3, 4}
    assert {crowd.picture.shape for crowd in drawn} == {(height, width, 3) for width, height in SHAPES}
    for crowd in drawn:
        height, width = crowd.picture.shape[:2]
        inside = (crowd.keypoints >= 0) & (crowd.keypoints < [width, height])
        assert inside.all()
        left, top, right, bottom = crowd.boxes.T[:, :, None]
        x, y = crowd.keypoints[..., 0], crowd.keypoints[..., 1]
        assert ((left < x) & (x < right) & (top < y) & (y < bottom)).all()
        assert (x[:, 0] < x[:, 1]).all()
        assert (x[:, 3] < x[:, 4]).all()


def test_eyes_are_where_the_labels_say():
    """A pupil, or dark glasses, black or nearly so: nobody else's hair, and no keypoint of another picture."""
    for i in range(20):
        random = np.random.default_rng([4, i])
        crowd = draw_people([Pose.random(random)], (SIZE, SIZE), random)
        columns, rows = crowd.keypoints[0, :2].astype(int).T
        assert crowd.picture[rows, columns].max() < 60


def test_same_generator_draws_the_same_crowd():
    one, other = (draw_crowd(np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(one.picture, other.picture)
    assert np.array_equal(one.keypoints, other.keypoints)


@pytest.fixture(scope="module")
def network() -> Scrfd:
    """With the statistics of a trained one."""
    network = Scrfd().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in ((module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 1.5)):
                assert values is not None
                nn.init.uniform_(values, low, high)
    for layer in (network.score, network.box, network.keypoints):
        nn.init.normal_(layer.weight, 0, 1)
    return network


@pytest.mark.parametrize("size", [(64, 96), (160, 32)])
def test_export_computes_what_was_trained(network, size, tmp_path):
    write_onnx(network, tmp_path / FILE)
    images = torch.randn(1, 3, *size)
    with torch.inference_mode():
        maps = network(images)
        ours = to_module(read_graph(tmp_path / FILE))(images)
    session = onnxruntime.InferenceSession(tmp_path / FILE, providers=["CPUExecutionProvider"])
    theirs = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    expected = [
        maps[level][part].permute(2, 3, 0, 1).reshape(-1, k) for part, k in enumerate((1, 4, 10)) for level in range(3)
    ]
    expected[:3] = [scores.sigmoid() for scores in expected[:3]]
    assert min(values.std() for values in expected) > 1e-3  # something to compare
    for one, other, wanted in zip(ours, theirs, expected, strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(other, wanted, rtol=1e-4, atol=1e-5)


def test_perfect_maps_cost_nothing():
    """Maps that say what production's detector decodes to the truth."""
    crowd = Crowd(np.zeros((96, 96, 3), np.uint8), np.array([[16, 20, 64, 76]], np.float32), np.zeros((1, 5, 2)))
    crowd.keypoints[0] = [[28, 40], [52, 40], [40, 50], [30, 60], [50, 60]]
    maps = []
    for stride in detector.STRIDES:
        rows, columns = torch.meshgrid(*(torch.arange(96 // stride) * stride,) * 2, indexing="ij")
        cells = torch.stack([columns, rows])
        left, top, right, bottom = torch.from_numpy(crowd.boxes[0])
        box = torch.stack([columns - left, rows - top, right - columns, bottom - rows]) / stride
        points = (torch.from_numpy(crowd.keypoints[0])[:, :, None, None] - cells).flatten(0, 1) / stride
        score = torch.full((1, 2, *rows.shape), 20.0)
        maps.append((score, box.repeat(2, 1, 1)[None], points.float().repeat(2, 1, 1)[None]))
    score, box, keypoints = detector.detection_losses(maps, [crowd])
    assert score > 0.1  # they see a face in every cell
    assert abs(box) < 1e-5
    assert keypoints < 1e-5


def test_training_is_repeatable_and_its_file_can_be_written_again(tmp_path):
    for name in ("one", "other"):
        detector.train(tmp_path / name, steps=2, pictures=4)
    written = (tmp_path / "one" / FILE).read_bytes()
    assert written == (tmp_path / "other" / FILE).read_bytes()
    assert len(written) < 400_000
    (tmp_path / "one" / FILE).unlink()
    detector.train(tmp_path / "one", steps=2, pictures=4)
    assert written == (tmp_path / "one" / FILE).read_bytes()


def test_counts():
    crowd = Crowd(
        np.zeros((1, 1, 3), np.uint8),
        np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32),
        np.array([[[2, 3], [6, 3], [4, 5], [3, 7], [5, 7]]] * 2, np.float32),
    )
    counts = Counts()
    found = np.array([[1, 0, 10, 10], [0, 0, 10, 10], [25, 0, 35, 10]], np.float32)  # one twice, one at a third
    beside = crowd.keypoints[0] + np.array([0.4, 0])
    counts.add(crowd, found, np.stack([beside] * 3))
    assert counts.result() == pytest.approx({"recall": 1 / 2, "false_faces": 2 / 3, "keypoint_error": 0.1})


def test_shipped_detector_finds_people_it_never_saw():
    pack = Path(miniature.__file__).parent / "weights" / "antelopev2"
    found = measure(pack, pictures=40)
    assert found["recall"] >= 0.99
    assert found["false_faces"] <= 0.02
    assert found["keypoint_error"] <= 0.05
