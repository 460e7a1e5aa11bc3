"""The analyzer: what is run, how often, on which pictures, and what is remembered."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from fast_instantid import Cache, Face, FaceAnalyzer, NoFaceError
from fast_instantid.errors import BackendError, ImageError, ModelFileError
from fast_instantid.faces import largest
from fast_instantid.faces.onnx.network import TorchNetwork
from tests.fresh import fresh_python


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Every run of a network: which one, the pictures in the batch, their width."""
    seen: list[tuple[str, int, int]] = []
    run = TorchNetwork.run

    def counted(self: TorchNetwork, images: np.ndarray, *options: object) -> list[np.ndarray]:
        width = images.shape[2]
        seen.append(("recogniser" if width == 112 else "detector", len(images), width))
        return run(self, images, *options)

    monkeypatch.setattr(TorchNetwork, "run", counted)
    return seen


@pytest.fixture
def analyzer(pack: Path) -> FaceAnalyzer:
    return FaceAnalyzer.load(pack, device="cpu", cache=Cache())


DETECT, EMBED = ("detector", 1, 640), ("recogniser", 1, 112)


def test_a_new_face_is_one_detection_and_one_recognition_and_then_nothing(analyzer, runs, astronaut):
    analyzer.embed(astronaut)
    analyzer.detect(astronaut)
    assert runs == [DETECT, EMBED]
    analyzer.embed(astronaut.copy())
    assert runs == [DETECT, EMBED]


def test_a_keypoint_picture_needs_no_recogniser(analyzer, runs, astronaut):
    assert analyzer.detect(astronaut)[0]
    assert runs == [DETECT]


def test_a_group_photo_is_one_detection_and_one_recognition(analyzer, runs, group):
    analyzer.embed(group)
    assert runs == [DETECT, EMBED]


def test_reading_one_embedding_as_other_packs_do_recognises_one_face(analyzer, runs, group):
    faces = analyzer.get(np.ascontiguousarray(group[..., ::-1]))
    chosen = sorted(faces, key=lambda x: (x["bbox"][2] - x["bbox"][0]) * (x["bbox"][3] - x["bbox"][1]))[-1]
    np.testing.assert_array_equal(chosen["embedding"], analyzer.embed(group)[0])
    assert runs == [DETECT, EMBED]


def test_a_gpu_gets_batches(analyzer, runs, astronaut, group):
    for network in (analyzer.networks.detector.network, analyzer.networks.recognizer.network):
        network.on_cpu = False
    analyzer.embed([astronaut, group, astronaut[:, ::-1]])
    assert runs == [("detector", 3, 640), ("recogniser", 3, 112)]


def test_an_embedding_does_not_depend_on_the_company_it_was_computed_in(analyzer, pack, astronaut, group):
    """To the bit, on the CPU: the noise of a picture is seeded by the sum of an embedding."""
    analyzer.embed([group, astronaut, astronaut[:, ::-1]])
    hit, lone_miss = analyzer.embed(astronaut), FaceAnalyzer.load(pack, device="cpu", cache=Cache()).embed(astronaut)
    np.testing.assert_array_equal(hit, lone_miss)


def test_batched_equals_one_by_one(analyzer, pack, pictures):
    with_face = [pictures[name] for name in ("astronaut", "group", "astronaut at 200", "astronaut at 4000")]
    one_by_one = np.concatenate([FaceAnalyzer.load(pack, cache=Cache()).embed(image) for image in with_face])
    batched = FaceAnalyzer.load(pack, cache=Cache()).embed(with_face)
    assert batched.shape == (len(with_face), 512)
    assert batched.dtype == np.float32
    np.testing.assert_allclose(batched, one_by_one, rtol=0, atol=1e-5 * np.abs(one_by_one).max())


def test_every_form_of_one_picture_gives_one_result(analyzer, tmp_path, astronaut):
    Image.fromarray(astronaut).save(tmp_path / "astronaut.png")
    # k / 255 scaled back by 255 may fall just below k, and is truncated: half a level makes the tensor's pixels exact.
    tensor = (torch.from_numpy(astronaut).float() + 0.5) / 255
    forms = [astronaut, Image.fromarray(astronaut), tmp_path / "astronaut.png", str(tmp_path / "astronaut.png"), tensor]
    expected = analyzer.embed(astronaut)
    for form in forms:
        np.testing.assert_array_equal(analyzer.embed(form), expected)
    np.testing.assert_array_equal(analyzer.embed(torch.stack([tensor, tensor])), np.repeat(expected, 2, axis=0))
    mixed = analyzer.embed([astronaut, tmp_path / "astronaut.png", tensor])
    np.testing.assert_array_equal(mixed, np.repeat(expected, 3, axis=0))


def test_smaller_sizes_are_tried_only_where_nothing_was_found(analyzer, runs, astronaut):
    blank = np.zeros((300, 400, 3), np.uint8)
    found = analyzer.detect([astronaut, blank])
    assert found[0]
    assert found[1] == []
    assert [width for _, _, width in runs] == [640, 640, *range(576, 128, -64)]


def test_a_face_that_only_shows_small_is_found(analyzer, runs, astronaut):
    """Pictures that are all face, as people crop them: too large for the first size, found at a later one."""
    closeups = [np.ascontiguousarray(astronaut[top : top + 110, left : left + 90])
                for top in range(50, 90, 10) for left in range(160, 200, 10)]  # fmt: skip
    closeups.append(np.full((200, 200, 3), (200, 150, 120), np.uint8))  # what fills the frame for the made detector
    missed_at_first = [closeup for closeup in closeups if not analyzer.get(closeup[..., ::-1])]
    found = [faces for faces in analyzer.detect(missed_at_first) if faces]
    assert found
    assert {width for _, _, width in runs} >= {640, 576}


def test_no_face_is_an_error_that_names_the_picture(analyzer, astronaut):
    with pytest.raises(NoFaceError, match=r"no face found in image 1 \(searched at 640 down to 192 pixels\)"):
        analyzer.embed([astronaut, np.zeros((64, 64, 3), np.uint8)])


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 20000, 3), (20000, 3, 3), (3, 2, 3)])
def test_pictures_of_absurd_shape_have_no_face(analyzer, shape):
    assert analyzer.detect(np.full(shape, 200, np.uint8)) == [[]]


def test_numbers_of_faces_and_pictures_must_agree(analyzer, group):
    with pytest.raises(ValueError, match="1 pictures but 2 faces"):
        analyzer.embed(group, analyzer.detect(group)[0][:1] * 2)


def test_embed_takes_a_face_in_every_form(analyzer, astronaut, group):
    pictures = [astronaut, group]
    found = analyzer.detect(pictures)
    chosen = [largest(faces) for faces in found]
    expected = analyzer.embed(pictures)
    keypoints = np.stack([face.kps for face in chosen])
    forms = [chosen, found, [{"kps": points} for points in keypoints], keypoints, [*keypoints], keypoints.tolist()]
    for faces in [*forms, [found[0], chosen[1]], tuple(chosen)]:
        np.testing.assert_array_equal(analyzer.embed(pictures, faces), expected)
    np.testing.assert_array_equal(analyzer.embed(group, keypoints[1]), expected[1:])
    first = analyzer.embed(pictures, found, choose=lambda faces: faces[0])
    np.testing.assert_array_equal(first, analyzer.embed(pictures, [faces[0] for faces in found]))


def test_embed_says_what_it_wants(analyzer, astronaut):
    with pytest.raises(NoFaceError, match="no face found in image 1"):
        analyzer.embed([astronaut, astronaut * 0], analyzer.detect([astronaut, astronaut * 0]))
    for faces in (7, [None], [{"bbox": 1}], np.zeros((4, 2))):
        with pytest.raises(ValueError, match=r"expected five points \(5, 2\) in pixels, or a face that has them"):
            analyzer.embed(astronaut, faces)
    with pytest.raises(ValueError, match="NaN"):
        analyzer.embed(astronaut, np.full((5, 2), np.nan))


def test_the_largest_of_no_faces_is_an_error():
    with pytest.raises(NoFaceError, match="no face found"):
        largest([])


def test_largest_face_and_ties():
    def face(width: float, name: float) -> Face:
        return Face(np.float32([0, 0, width, 10]), np.full((5, 2), name, np.float32), 0.9)

    faces = [face(10, 0), face(30, 1), face(30, 2), face(20, 3)]
    assert largest(faces) is faces[2]


@pytest.mark.parametrize("lasts", [True, False])
def test_one_changed_pixel_another_pack_and_another_option_miss(runs, pack, astronaut, tmp_path, lasts):
    cache = Cache(directory=tmp_path / "cache" if lasts else None)
    analyzer = FaceAnalyzer.load(pack, device="cpu", cache=cache)
    analyzer.embed(astronaut)
    edited = astronaut.copy()
    edited[120, 220, 0] ^= 1
    analyzer.embed(edited)
    assert runs == [DETECT, EMBED] * 2

    other = tmp_path / "other"
    other.mkdir()
    for name in ("scrfd_10g_bnkps.onnx", "glintr100.onnx"):
        (other / name).write_bytes((pack / name).read_bytes() + (b"\x0a\x00" if name == "glintr100.onnx" else b""))
    FaceAnalyzer.load(other, device="cpu", cache=cache).embed(astronaut)
    # On disk a detector is known by its content; in this process by its file, so that none is read to be hashed.
    assert runs == [DETECT, EMBED] * 2 + ([EMBED] if lasts else [DETECT, EMBED])

    analyzer.det_model.input_size = (320, 320)
    analyzer.get(np.ascontiguousarray(astronaut[..., ::-1]))
    assert runs[-1] == ("detector", 1, 320)


def test_pictures_edited_in_place_and_reused_addresses_never_give_another_face(analyzer, pack, astronaut):
    """The trial that a cache keyed on addresses fails in 69 of 82 cases."""
    fresh = FaceAnalyzer.load(pack, cache=Cache(max_bytes=0))
    picture = astronaut.copy()
    tensor = torch.from_numpy(astronaut).float().div(255)
    for i in range(4):
        picture[:, :, i % 3] = np.roll(picture[:, :, i % 3], 3, axis=0)
        tensor[:, :, i % 3] = tensor[:, :, i % 3].roll(3, 0)
        for form in (picture, tensor):
            np.testing.assert_array_equal(
                [face.kps for face in analyzer.detect(form)[0]], [face.kps for face in fresh.detect(form)[0]]
            )


def test_results_cannot_be_written_to(analyzer, astronaut):
    face = analyzer.detect(astronaut)[0][0]
    with pytest.raises(ValueError, match="read-only"):
        face.kps[0, 0] = 0
    embedding = analyzer.embed(astronaut)
    embedding[:] = 0
    assert np.any(analyzer.embed(astronaut))
    _, keypoints = analyzer.det_model.detect(astronaut[..., ::-1])
    keypoints *= 0.5
    np.testing.assert_array_equal(analyzer.detect(astronaut)[0][0].kps, face.kps)


def test_a_hit_equals_a_miss_to_the_bit_also_from_disk(pack, astronaut, tmp_path):
    def run(cache: Cache) -> tuple[np.ndarray, np.ndarray]:
        analyzer = FaceAnalyzer.load(pack, device="cpu", cache=cache)
        return analyzer.embed(astronaut), analyzer.detect(astronaut)[0][0].kps

    cache = Cache(directory=tmp_path)
    miss, hit, from_disk = run(cache), run(cache), run(Cache(directory=tmp_path))
    for a, b, c in zip(miss, hit, from_disk, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert cache.stats.misses == 2


def test_a_detector_of_one_size_runs_once(runs, recognizer_file, best_detector, tmp_path):
    model = onnx.load(str(best_detector))
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 320
    onnx.save(model, str(tmp_path / "detector.onnx"))
    (tmp_path / "recogniser.onnx").write_bytes(recognizer_file.read_bytes())
    analyzer = FaceAnalyzer.load(tmp_path, device="cpu", cache=Cache())
    assert analyzer.detect(np.zeros((50, 50, 3), np.uint8)) == [[]]
    assert runs == [("detector", 1, 320)]


@pytest.mark.parametrize("mapped_from", [0, 64 << 20], ids=["mapped", "in memory"])
@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
@pytest.mark.parametrize("is_used_before", [False, True])
def test_networks_whose_files_are_shortened_kill_nothing(
    pack, astronaut, tmp_path, monkeypatch, mapped_from, backend, is_used_before
):
    for module in ("weights", "faces.onnx.graph"):
        monkeypatch.setattr(f"fast_instantid.{module}.MAPPED_FROM", mapped_from)
    cache, folder = Cache(directory=tmp_path), shutil.copytree(pack, tmp_path / "pack")
    analyzer = FaceAnalyzer.load(folder, backend, device="cpu", cache=cache)
    expected = FaceAnalyzer.load(folder, backend, device="cpu", cache=Cache()).embed(astronaut)
    if is_used_before:
        analyzer.embed(np.ascontiguousarray(astronaut[:, ::-1]))
    for path in folder.glob("*.onnx"):
        os.truncate(path, 100)
    if mapped_from == 0 and backend == "torch" and not is_used_before:
        with pytest.raises(ModelFileError, match="changed while it was in use; load it again"):
            analyzer.embed(astronaut)
        assert cache.stats.entries == 0
    else:
        assert np.array_equal(analyzer.embed(astronaut), expected)


def test_an_analyzer_is_freed_when_nobody_has_it(pack):
    analyzer = FaceAnalyzer.load(pack, device="cpu")
    networks = weakref.ref(analyzer.networks)
    gc.disable()
    try:
        del analyzer
        assert networks() is None
    finally:
        gc.enable()


def test_faces_have_the_shape_of_insightfaces(analyzer, astronaut):
    face = analyzer.get(astronaut[..., ::-1])[0]
    assert {"bbox", "kps", "det_score", "embedding"} == set(face)
    assert "embedding" in face
    assert "gender" not in face
    assert face.get("gender") is None
    assert dict(face)["det_score"] == face.det_score
    np.testing.assert_array_equal(face["embedding"], face.embedding)


def test_sizes_of_detection_may_be_an_array(pack, runs, astronaut):
    FaceAnalyzer.load(pack, device="cpu", sizes=np.array([320, 640]), cache=Cache()).detect(astronaut * 0)
    assert [width for _, _, width in runs] == [320, 640]


@pytest.mark.parametrize("loaded_in", [True, False])
@pytest.mark.parametrize("used_in", [True, False])
def test_works_in_and_out_of_inference_mode(pack, astronaut, loaded_in, used_in):
    """ComfyUI runs nodes under it."""
    cache = Cache()
    with torch.inference_mode(loaded_in):
        analyzer = FaceAnalyzer.load(pack, device="cpu", cache=cache)
    with torch.inference_mode(used_in):
        first = analyzer.embed(torch.from_numpy(astronaut).float() / 255)
    np.testing.assert_array_equal(analyzer.embed(torch.from_numpy(astronaut).float() / 255), first)


@pytest.mark.parametrize("new_api", [True, False])
def test_exact_float32_is_for_the_run_only(new_api):
    """What a host has chosen for its own work is back afterwards, by whichever of torch's two interfaces it chose."""
    if new_api and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has the old interface only")
    code = f"""
import torch
from fast_instantid.faces.onnx.network import _exact_float32, _precision_settings
matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
if {new_api}:
    matmul.fp32_precision = cudnn.conv.fp32_precision = "tf32"
else:
    matmul.allow_tf32 = cudnn.allow_tf32 = True
before = [getattr(owner, name) for owner, name, _ in _precision_settings()]
with _exact_float32(torch.device("cuda")):
    assert all(getattr(owner, name) == exact for owner, name, exact in _precision_settings())
assert [getattr(owner, name) for owner, name, _ in _precision_settings()] == before
if not {new_api}:
    assert matmul.allow_tf32 and cudnn.allow_tf32
"""
    fresh_python(code)


def test_the_analyzer_says_what_it_runs_on(pack):
    assert FaceAnalyzer.load(pack, device="cpu").backend == "torch (cpu)"
    assert FaceAnalyzer.load(pack, "onnxruntime").backend == "onnxruntime (CPUExecutionProvider)"


@pytest.mark.parametrize(
    ("backend", "device", "message"),
    [
        ("onnxruntime", "cuda", "CUDAExecutionProvider is not in this onnxruntime .* which has .*CPUExecutionProvider"),
        ("onnxruntime", "cpu:1", "device 'cpu:1': onnxruntime takes an index only for cuda, directml"),
        ("onnxruntime", "toaster", "no provider for device 'toaster': choose one of cpu, cuda"),
        ("torch", "cuda", "device 'cuda' was asked for, but this torch .* sees none"),
        ("torch", "toaster", "device 'toaster' is not known to torch"),
        ("mediapipe", None, "'mediapipe' is not known: choose 'torch' or 'onnxruntime'"),
    ],
)
def test_a_backend_or_device_that_is_not_there_is_refused(pack, backend, device, message):
    if "cuda" in str(device) and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(BackendError, match=message):
        FaceAnalyzer.load(pack, backend, device)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), np.zeros(4, np.uint8)])
def test_get_refuses_what_is_no_picture(analyzer, image):
    with pytest.raises(ImageError):
        analyzer.get(image)


def test_get_takes_grey_and_transparent_pictures_too(analyzer, astronaut):
    grey = astronaut.mean(axis=2).astype(np.uint8)
    bgra = np.dstack([astronaut[..., ::-1], grey])
    for form, same in ((grey, np.dstack([grey] * 3)), (bgra, astronaut)):
        got, expected = analyzer.get(form), analyzer.detect(same)[0]
        np.testing.assert_array_equal([face.kps for face in got], [face.kps for face in expected])


def test_what_opencv_could_not_read_is_refused(analyzer):
    with pytest.raises(ImageError, match="got NoneType"):
        analyzer.get(None)


def test_a_detection_size_may_be_an_array(analyzer, astronaut):
    bgr = astronaut[..., ::-1]
    for size in (np.array([320, 320]), [320, 320]):
        for got, expected in zip(
            analyzer.det_model.detect(bgr, size), analyzer.det_model.detect(bgr, (320, 320)), strict=True
        ):
            np.testing.assert_array_equal(got, expected)


def test_detection_sizes_must_fit_the_strides(analyzer, astronaut):
    analyzer.det_model.input_size = (300, 300)
    with pytest.raises(ValueError, match=r"\(300, 300\): both sides must be positive multiples of 32"):
        analyzer.get(astronaut)
