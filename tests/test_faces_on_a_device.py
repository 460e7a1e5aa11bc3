"""The face stage on a GPU: what goes there and back, counted on a pretended one, and the same faces on a real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fast_instantid import Cache, FaceAnalyzer
from fast_instantid.faces import largest
from fast_instantid.faces.align import TEMPLATE, align
from fast_instantid.faces.detector import Detector
from fast_instantid.faces.onnx.graph import read_graph
from fast_instantid.faces.onnx.network import TorchNetwork
from fast_instantid.faces.pixels import resize
from fast_instantid.images import photos
from tests.pretended_gpu import GPU, OnDevice, PretendedGPU


def on_gpu(pack: Path) -> FaceAnalyzer:
    """An analyzer whose networks lie on the pretended GPU; to be called there."""
    analyzer = FaceAnalyzer.load(pack, device="cpu", cache=Cache())
    for part in (analyzer.networks.detector, analyzer.networks.recognizer):
        part.network = TorchNetwork(part.network._graph, GPU)
        part.network.pixel_device = GPU
        _ = part.network.module
    return analyzer


@pytest.mark.parametrize("count", [1, 6])
def test_each_network_is_left_once_and_nothing_waits(count, pack, astronaut, group):
    """One copy comes back for all pictures of a batch, and with a picture goes one small table."""
    images = [astronaut, group, astronaut[:, ::-1], group[:, ::-1], astronaut[:400], astronaut[5:]][:count]
    images = [np.ascontiguousarray(image) for image in images]
    pictures, expected = photos(images), FaceAnalyzer.load(pack, device="cpu", cache=Cache())
    with PretendedGPU() as gpu:
        analyzer = on_gpu(pack)
        gpu.counts.clear(), gpu.nbytes.clear()
        found = analyzer.networks.find(pictures)
        assert (gpu.counts["to device"], gpu.counts["to host"], gpu.counts["waits"]) == (2 * count, 1, 0)
        assert gpu.nbytes["to device"] < sum(image.nbytes for image in images) + count * 100_000
        assert gpu.nbytes["to host"] <= count * 1024 * 16 * 4 + 4, "of 1 MB for each picture"
        gpu.counts.clear(), gpu.nbytes.clear()
        embeddings = analyzer.networks.embed(pictures, [largest(faces) for faces in found])
        assert (gpu.counts["to device"], gpu.counts["to host"], gpu.counts["waits"]) == (2, 1, 0)
        assert gpu.nbytes["to host"] == 4 * (count * 512 + 1)
    for faces, theirs in zip(found, expected.detect(pictures), strict=True):
        assert len(faces) == len(theirs) > 0
        for face, other in zip(faces, theirs, strict=True):
            np.testing.assert_allclose(face.kps, other.kps, rtol=1e-6, atol=2e-4)
            np.testing.assert_allclose(face.bbox, other.bbox, rtol=1e-6, atol=2e-4)
    at_the_same = expected.embed(pictures, [largest(faces) for faces in found])
    np.testing.assert_allclose(embeddings, at_the_same, rtol=0, atol=1e-5 * np.abs(at_the_same).max())


def test_launches_for_crops_do_not_grow_with_their_number(astronaut, group):
    counts = []
    for images in ([astronaut], [astronaut, group, astronaut[:300], group[50:], astronaut, group]):
        keypoints = [np.float32(TEMPLATE * (number + 1) - 20) for number in range(len(images))]
        with PretendedGPU() as gpu:
            crops = align(images, keypoints, GPU)
        assert isinstance(crops, OnDevice)
        assert torch.equal(crops.inner, align(images, keypoints)), "whole numbers: the same on any device"
        counts.append(gpu.counts)
    assert counts[0] == counts[1]
    assert counts[0]["launches"] < 50


@pytest.mark.parametrize("size", [(640, 480), (192, 7), (1, 300), (1000, 641)])
def test_a_picture_is_scaled_on_the_device_as_on_the_cpu(size, astronaut):
    picture = astronaut[:301]
    picture.flags.writeable = False
    with PretendedGPU() as gpu:
        scaled = resize(picture, size, GPU)
    assert torch.equal(scaled.inner, resize(picture, size))
    assert (gpu.counts["to device"], gpu.counts["to host"]) == (2, 0)


@pytest.mark.parametrize("most", [1, 7, 100_000])
def test_no_candidate_is_lost_where_a_picture_has_more_than_come_back(
    most, any_detector, group, astronaut, monkeypatch
):
    graph = read_graph(any_detector)
    pictures = [group, astronaut]
    expected = Detector(TorchNetwork(graph, torch.device("cpu")), graph).detect(pictures)
    monkeypatch.setattr("fast_instantid.faces.detector._MOST_FROM_GPU", most)
    network = TorchNetwork(graph, torch.device("cpu"))
    network.on_cpu = False
    for found, theirs in zip(Detector(network, graph).detect(pictures), expected, strict=True):
        np.testing.assert_allclose(found.scores, theirs.scores, atol=1e-5)
        scale = max(1.0, float(np.abs(theirs.boxes).max(initial=0)) / 1000)
        np.testing.assert_allclose(found.keypoints, theirs.keypoints, atol=2e-3 * scale)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_real_gpu_finds_the_same_faces(dtype, pack, pictures):
    """Crops to the bit; keypoints and embeddings within the rounding of the GPU's convolutions, or of the dtype."""
    tolerance, cosine = {"float32": (0.01, 0.99999), "float16": (0.2, 0.999), "bfloat16": (2.0, 0.99)}[dtype]
    images = [pictures[name] for name in ("astronaut", "group", "astronaut at 200", "astronaut at 4000")]
    here = FaceAnalyzer.load(pack, device="cpu", cache=Cache())
    there = FaceAnalyzer.load(pack, device="cuda", dtype=dtype, cache=Cache())
    chosen = []
    for image, faces, theirs in zip(images, there.detect(images), here.detect(images), strict=True):
        assert len(faces) == len(theirs)
        largest_sides = max(1.0, max(image.shape) / 640)
        for face, other in (
            zip(faces, theirs, strict=True) if dtype == "float32" else [(largest(faces), largest(theirs))]
        ):
            np.testing.assert_allclose(face.kps, other.kps, rtol=0, atol=tolerance * largest_sides)
        chosen.append(largest(theirs))
    keypoints = [face.kps for face in chosen]
    assert torch.equal(align(images, keypoints, torch.device("cuda")).cpu(), align(images, keypoints))
    ours, expected = there.embed(images, chosen), here.embed(images, chosen)
    cosines = (ours * expected).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > cosine
