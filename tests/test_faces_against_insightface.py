"""Faces are insightface's: same boxes, keypoints, crops and embeddings, from both backends and both output layouts."""

from __future__ import annotations

from functools import cache, wraps
from pathlib import Path

import numpy as np
import pytest
from insightface.app import FaceAnalysis
from insightface.model_zoo.arcface_onnx import ArcFaceONNX
from insightface.model_zoo.scrfd import SCRFD
from insightface.utils import face_align

from examples.tiny_faces import IRESNET_100, write_iresnet
from fast_instantid import Cache, Face, FaceAnalyzer
from fast_instantid.errors import BackendError
from fast_instantid.faces.align import TEMPLATE, align, similarity
from fast_instantid.faces.detector import Detector
from fast_instantid.faces.insightface import most_central
from fast_instantid.faces.onnx.graph import read_graph
from fast_instantid.faces.onnx.network import load_network
from fast_instantid.faces.recognizer import Recognizer


def bgr(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[..., ::-1])


def make_detector(path: Path, backend: str = "torch") -> Detector:
    graph = read_graph(path)
    return Detector(load_network(graph, backend, "cpu"), graph)


def insightface_detector(path: Path) -> SCRFD:
    detector = SCRFD(str(path))
    detector.prepare(-1, det_thresh=0.5)
    return detector


@pytest.fixture(scope="module")
def theirs(pictures):
    """``theirs(path)``: what insightface's detector finds in all pictures."""

    def detect(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
        detector = insightface_detector(path)
        return [detector.detect(bgr(image), input_size=(640, 640)) for image in pictures.values()]

    return cache(detect)


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_same_faces_as_insightface(any_detector, backend, pictures, theirs):
    found = make_detector(any_detector, backend).detect(list(pictures.values()))
    total = 0
    for label, faces, (boxes, keypoints) in zip(pictures, found, theirs(any_detector), strict=True):
        assert len(faces.scores) == len(boxes), label
        total += len(boxes)
        if len(boxes):
            # A made detector may put boxes of thousands of pixels around nothing: 0.01 px up to a size of 1000.
            tolerance = 0.01 * np.maximum(1.0, np.abs(boxes[:, :4]).max() / 1000)
            np.testing.assert_allclose(faces.boxes, boxes[:, :4], rtol=0, atol=tolerance, err_msg=label)
            np.testing.assert_allclose(faces.keypoints, keypoints, rtol=0, atol=tolerance, err_msg=label)
            np.testing.assert_allclose(faces.scores, boxes[:, 4], rtol=0, atol=1e-5, err_msg=label)
    assert total >= len(pictures), "the detector found too little for this test to mean anything"
    if not any_detector.name.startswith("made_"):
        assert len(found[1].scores) == 6


@pytest.mark.parametrize("size", [(320, 320), (192, 192), (640, 320)])
def test_same_faces_at_other_sizes(size, best_detector, astronaut):
    ours, theirs = make_detector(best_detector), insightface_detector(best_detector)
    boxes, keypoints = theirs.detect(bgr(astronaut), input_size=size)
    faces = ours.detect([astronaut], size)[0]
    np.testing.assert_allclose(faces.boxes, boxes[:, :4], rtol=0, atol=0.01)
    np.testing.assert_allclose(faces.keypoints, keypoints, rtol=0, atol=0.01)


def test_batch_through_the_network_equals_one_by_one(any_detector, pictures):
    """Also on the CPU, where the detector itself runs pictures one by one."""
    detector = make_detector(any_detector)
    images = [pictures[name] for name in ("astronaut", "group", "close-up")]
    alone = [detector.detect([image])[0] for image in images]
    detector.network.on_cpu = False
    together = detector.detect(images)
    for one, other in zip(alone, together, strict=True):
        assert len(one.scores) == len(other.scores)
        np.testing.assert_allclose(other.boxes, one.boxes, rtol=1e-5, atol=0.01)
        np.testing.assert_allclose(other.keypoints, one.keypoints, rtol=1e-5, atol=0.01)


def test_crops_are_insightfaces_to_the_bit(best_detector, pictures):
    crops = 0
    for image, faces in zip(
        pictures.values(), make_detector(best_detector).detect(list(pictures.values())), strict=True
    ):
        for keypoints in faces.keypoints:
            np.testing.assert_array_equal(
                align([image], [keypoints])[0], bgr(face_align.norm_crop(bgr(image), keypoints))
            )
            crops += 1
    assert crops >= 5


def test_similarity_is_scikit_images_to_the_bit():
    for seed in range(200):
        random = np.random.default_rng(seed)
        keypoints = (TEMPLATE * random.uniform(0.1, 20) + random.normal(0, 5, (5, 2)) + random.uniform(0, 3000)).astype(
            "f4"
        )
        np.testing.assert_array_equal(similarity(keypoints, TEMPLATE), face_align.estimate_norm(keypoints))


def test_similarity_of_mirrored_and_degenerate_points():
    mirrored = TEMPLATE * np.float32([-1, 1])
    np.testing.assert_array_equal(similarity(mirrored, TEMPLATE), face_align.estimate_norm(mirrored))
    assert np.isnan(similarity(np.zeros((5, 2), np.float32), TEMPLATE)).all()


def test_embeddings_of_an_iresnet100(tmp_path, pack, astronaut, group):
    """torch within 1e-5 relative, onnxruntime equal to the bit: the same file through insightface and through ours."""
    file = write_iresnet(tmp_path / "glintr100.onnx", **IRESNET_100)
    graph = read_graph(file)
    analyzer = FaceAnalyzer.load(pack, cache=Cache())
    crops = [align([image], [analyzer.detect(image)[0][0].kps])[0] for image in (astronaut, group)]
    expected = np.concatenate([ArcFaceONNX(str(file)).get_feat(bgr(crop.numpy())) for crop in crops])

    for_torch = Recognizer(load_network(graph, "torch", "cpu"), graph)
    errors = np.linalg.norm(for_torch.embed(crops) - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert errors.max() <= 1e-5
    for_onnxruntime = Recognizer(load_network(graph, "onnxruntime", "cpu"), graph)
    alone = np.concatenate([for_onnxruntime.embed([crop]) for crop in crops])
    np.testing.assert_array_equal(alone, expected)


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_whole_chain_equals_face_analysis(backend, pack, astronaut, group):
    theirs = FaceAnalysis(name=str(pack), providers=["CPUExecutionProvider"])
    theirs.prepare(ctx_id=-1, det_size=(640, 640))
    ours = FaceAnalyzer.load(pack, backend, "cpu", cache=Cache())
    for image in (astronaut, group):
        for got, expected in zip(ours.get(bgr(image)), theirs.get(bgr(image)), strict=True):
            np.testing.assert_allclose(got["bbox"], expected["bbox"], rtol=0, atol=0.01)
            np.testing.assert_allclose(got.kps, expected.kps, rtol=1e-6, atol=2e-4)
            difference = np.linalg.norm(got.embedding - expected.embedding)
            assert difference <= 1e-3 * np.linalg.norm(expected.embedding)
            assert got.det_score == pytest.approx(expected.det_score, abs=1e-5)
            # At their keypoints: one that differs in its last bit can move a pixel of the crop by one of 255 levels.
            embedding = ours.embed(image, Face(expected.bbox, expected.kps, expected.det_score))[0]
            error = np.linalg.norm(embedding - expected.embedding) / np.linalg.norm(expected.embedding)
            assert error <= (1e-5 if backend == "torch" else 0)
            cosine = got.normed_embedding @ embedding / np.linalg.norm(embedding)
            assert cosine == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("max_num", [1, 2, 5, 9])
def test_max_num_keeps_the_faces_that_insightface_keeps(max_num, pack, group, detector_file):
    found = make_detector(detector_file("made_scrfd")).detect([group])[0]
    assert len(found.scores) > 6
    theirs = insightface_detector(detector_file("made_scrfd"))
    boxes, _ = theirs.detect(bgr(group), input_size=(640, 640), max_num=max_num)
    kept = most_central(found, group.shape[1::-1], max_num)
    np.testing.assert_allclose(kept.boxes, boxes[:, :4], rtol=0, atol=0.01)
    ours = FaceAnalyzer.load(pack, cache=Cache())
    assert len(ours.get(bgr(group), max_num=max_num)) == min(max_num, len(ours.get(bgr(group))))
    boxes, keypoints = ours.det_model.detect(bgr(group), max_num=max_num)
    assert boxes.shape[1:] == (5,)
    assert keypoints.shape[1:] == (5, 2)


def test_an_insightface_object_is_accepted(pack, astronaut, group):
    theirs = FaceAnalysis(name=str(pack), providers=["CPUExecutionProvider"])
    theirs.prepare(ctx_id=-1, det_size=(640, 640))
    wrapped, ours = FaceAnalyzer.wrap(theirs, Cache()), FaceAnalyzer.load(pack, "onnxruntime", "cpu", cache=Cache())
    assert FaceAnalyzer.wrap(ours) is ours
    assert wrapped.backend == "insightface"
    for image in (astronaut, group):
        for one, other in zip(wrapped.detect(image)[0], ours.detect(image)[0], strict=True):
            np.testing.assert_allclose(one.kps, other.kps, rtol=0, atol=0.01)
    np.testing.assert_array_equal(wrapped.embed(astronaut, ours.detect(astronaut)[0][0]), ours.embed(astronaut))
    [face] = theirs.get(bgr(astronaut))
    np.testing.assert_array_equal(wrapped.embed(astronaut, face)[0], face.embedding)

    theirs.prepare(ctx_id=-1, det_size=(640, 640), det_thresh=0.9999)
    assert wrapped.detect(astronaut) == [[]], "a threshold that its owner changes is honoured"


def test_an_object_of_another_kind_is_refused():
    with pytest.raises(BackendError, match="insightface FaceAnalysis with a detection model, got dict"):
        FaceAnalyzer.wrap({})


def test_fallback_sizes_reach_an_insightface_detector(pack):
    """Assigning ``input_size`` does nothing since insightface 1.0; the sizes must go in as arguments."""
    theirs = FaceAnalysis(name=str(pack), providers=["CPUExecutionProvider"])
    theirs.prepare(ctx_id=-1, det_size=(640, 640))
    ran: list[tuple[int, int]] = []
    original = theirs.det_model.forward
    theirs.det_model.forward = lambda image, threshold: (ran.append(image.shape[:2]), original(image, threshold))[1]
    assert FaceAnalyzer.wrap(theirs, Cache()).detect(np.zeros((300, 300, 3), np.uint8)) == [[]]
    assert ran == [(side, side) for side in range(640, 128, -64)]


# Our analyzer in code that was written for insightface's, and the other way round


def both(pack: Path) -> tuple[FaceAnalyzer, FaceAnalysis]:
    theirs = FaceAnalysis(name=str(pack), providers=["CPUExecutionProvider"])
    return FaceAnalyzer.load(pack, "onnxruntime", "cpu", cache=Cache()), theirs


def test_scripts_written_for_insightface_run(pack, group):
    """Each line on both; results agree."""
    results = []
    for app in both(pack):
        app.prepare(ctx_id=-1, det_thresh=0.4, det_size=(320, 320))
        faces = app.get(bgr(group), max_num=3)
        boxes, keypoints = app.det_model.detect(bgr(group), input_size=(640, 640), max_num=2, metric="max")
        face = faces[0]
        assert set(app.models) >= {"detection", "recognition"}
        assert app.models["detection"] is app.det_model
        assert {model.taskname for model in app.models.values()} >= {"detection", "recognition"}
        embedding = app.models["recognition"].get(bgr(group), face)
        np.testing.assert_array_equal(face["embedding"], embedding)
        crop = face_align.norm_crop(bgr(group), face.kps)
        assert app.models["recognition"].get_feat(crop).shape == (1, 512)
        assert app.models["recognition"].get_feat([crop, crop]).shape == (2, 512)
        assert (face.sex, face.age, face.gender, face.landmark_2d_106, face.get("age")) == (None,) * 5
        assert "kps" in face
        assert "age" not in face
        assert "sex" not in face
        with pytest.raises(KeyError):
            face["age"]
        assert {"bbox", "kps", "det_score", "embedding"} == set(face) == set(face.keys()) == set(dict(face))
        face["gender"], face.age = 1, 30
        assert (face.sex, face["age"], face.gender) == ("M", 30, 1)
        assert face.normed_embedding.dtype == np.float32
        app.prepare(ctx_id=-1, det_thresh=0.9999, det_size=(640, 640))
        assert app.get(bgr(group)) == []
        results.append([face.kps, face.bbox, face.embedding_norm, face.det_score, boxes, keypoints, len(faces)])
        face.kps *= 2  # insightface's arrays are the caller's own
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=0.01)


@pytest.mark.parametrize("metric", ["default", "max"])
def test_det_metric_keeps_the_faces_that_insightface_keeps(metric, detector_file, recognizer_file, tmp_path, group):
    (tmp_path / "det.onnx").write_bytes(detector_file("made_scrfd").read_bytes())
    (tmp_path / "rec.onnx").write_bytes(recognizer_file.read_bytes())
    found = []
    for app in both(tmp_path):
        app.prepare(ctx_id=-1, det_size=(640, 640))
        assert len(app.get(bgr(group))) > 3
        found.append([face.bbox for face in app.get(bgr(group), max_num=3, det_metric=metric)])
    np.testing.assert_allclose(*found, rtol=0, atol=0.01)


def test_prepare_changes_get_and_not_detect(pack, group):
    ours, _ = both(pack)
    found = len(ours.detect(group)[0])
    ours.prepare(0, det_thresh=0.9999)
    assert ours.det_model.det_thresh == 0.9999
    assert ours.get(bgr(group)) == []
    assert len(ours.detect(group)[0]) == found > 0
    ours.prepare()
    assert len(ours.get(bgr(group))) == found
    with pytest.raises(ValueError, match=r"expected one \(width, height\)"):
        ours.prepare(0, det_size=[(128, 128), (640, 640)])


class ChoosesTheSmallest:
    """As packs wrap an analyzer to choose the face."""

    def __init__(self, analysis) -> None:
        self.analysis, self.asked = analysis, 0

    def __getattr__(self, name: str):
        return getattr(self.analysis, name)

    def get(self, img, max_num=0):
        self.asked += 1
        return sorted(self.analysis.get(img), key=lambda face: face["bbox"][2] - face["bbox"][0])[:1]


class ChoosesTheSmallestBySubclass(FaceAnalysis):
    asked = 0

    def get(self, *args, **kwargs):
        self.asked += 1
        return sorted(super().get(*args, **kwargs), key=lambda face: face.bbox[2] - face.bbox[0])[:1]


class ChoosesTheSmallestOfOurs(FaceAnalyzer):
    asked = 0

    def get(self, *args, **kwargs):
        self.asked += 1
        return sorted(super().get(*args, **kwargs), key=lambda face: face.bbox[2] - face.bbox[0])[:1]


def patched(analysis: FaceAnalysis) -> FaceAnalysis:
    """Its own ``get`` replaced in the object."""
    analysis.asked, get = 0, analysis.get

    def smallest(img):
        analysis.asked += 1
        return tuple(sorted(get(img), key=lambda face: face.bbox[2] - face.bbox[0])[:1]) or None

    analysis.get = smallest
    return analysis


def decorated(analysis: FaceAnalysis) -> FaceAnalysis:
    """Its class, and the ``get`` of that, look like insightface's."""

    class Decorated(FaceAnalysis):
        __module__ = FaceAnalysis.__module__
        asked = 0

        @wraps(FaceAnalysis.get)
        def get(self, *args, **kwargs):
            self.asked += 1
            return sorted(super().get(*args, **kwargs), key=lambda face: face.bbox[2] - face.bbox[0])[:1]

    analysis.__class__ = Decorated
    return analysis


class Proxy:
    """Around an analyzer, without a ``get`` of its own."""

    def __init__(self, analysis) -> None:
        self.analysis = analysis

    def __getattr__(self, name: str):
        return getattr(self.analysis, name)


def test_a_proxy_gives_the_faces_of_its_analysis(pack, group):
    for analysis in both(pack):
        np.testing.assert_array_equal(
            FaceAnalyzer.wrap(Proxy(analysis), Cache()).embed(group), FaceAnalyzer.wrap(analysis, Cache()).embed(group)
        )


OWN = {"patched": patched, "decorated": decorated}


@pytest.mark.parametrize("kind", [*OWN, "around ours", "around insightface's", "subclass", "subclass of ours"])
def test_a_get_of_its_own_is_asked(kind, pack, group, astronaut):
    ours, theirs = both(pack)
    theirs.prepare(ctx_id=-1, det_size=(640, 640))
    if kind in OWN:
        own, (_, theirs) = OWN[kind](theirs), both(pack)
        theirs.prepare(ctx_id=-1, det_size=(640, 640))
    elif kind == "subclass":
        own = ChoosesTheSmallestBySubclass(name=str(pack), providers=["CPUExecutionProvider"])
        own.prepare(ctx_id=-1, det_size=(640, 640))
    elif kind == "subclass of ours":
        own = ChoosesTheSmallestOfOurs.load(pack, "onnxruntime", "cpu", cache=Cache())
    else:
        own = ChoosesTheSmallest(ours if kind == "around ours" else theirs)
    wrapped = FaceAnalyzer.wrap(own, Cache())
    assert FaceAnalyzer.wrap(wrapped) is wrapped
    smallest = min(theirs.get(bgr(group)), key=lambda face: face.bbox[2] - face.bbox[0])
    [[face]] = wrapped.detect(group)
    np.testing.assert_allclose(face.kps, smallest.kps, rtol=0, atol=0.01)
    assert own.asked == 1
    embedding = wrapped.embed(group, face)[0]
    assert own.asked == 1, "the embedding comes with the face"
    assert embedding @ smallest.embedding > 0.999 * np.linalg.norm(embedding) * np.linalg.norm(smallest.embedding)
    np.testing.assert_array_equal(wrapped.embed([group]), embedding[None])
    assert wrapped.detect(astronaut * 0) == [[]]
    with pytest.raises(BackendError, match=r"a face without an embedding: .* recognises faces in its get\(\) only"):
        wrapped.embed(astronaut, Face(face.bbox, face.kps, 0.9))


def test_the_networks_of_an_analysis_that_a_pack_has_replaced_are_not_asked_alone(pack, group):
    """insightface's ``get`` asks the replaced detector, and so must we."""
    _, theirs = both(pack)
    theirs.prepare(ctx_id=-1, det_size=(640, 640))

    class FirstOnly:
        taskname = "detection"

        def __init__(self, model) -> None:
            self.model = model

        def detect(self, *args, **kwargs):
            boxes, keypoints = self.model.detect(*args, **kwargs)
            return boxes[:1], keypoints[:1]

    theirs.models["detection"] = theirs.det_model = FirstOnly(theirs.det_model)
    assert len(FaceAnalyzer.wrap(theirs, Cache()).detect(group)[0]) == 1


def test_a_get_of_its_own_is_asked_at_smaller_sizes_until_it_finds_a_face(pack, astronaut):
    ours, _ = both(pack)
    own = ChoosesTheSmallest(ours)
    assert FaceAnalyzer.wrap(own).detect(astronaut * 0) == [[]]
    assert own.asked == 8
    assert ours.det_model.input_size == (640, 640)
