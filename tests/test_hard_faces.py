"""Faces that are turned, small or as large as the frame; thresholds; photographs without a face; numbered boxes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fast_instantid import Cache, FaceAnalyzer, InstantID, keypoint_picture, miniature
from fast_instantid.cli import main
from fast_instantid.errors import BackendError, FastInstantIDError, ImageError, NoFaceError
from fast_instantid.faces.detector import Detector
from fast_instantid.faces.onnx.network import load_network
from fast_instantid.faces.pack import read_graph
from fast_instantid.images import photos
from fast_instantid.people import find_people, find_person, numbered
from fast_instantid.people.search import find_faces

from .conftest import REAL_DETECTORS, SHARED_MODELS

PORTRAITS = [Image.open(portrait).convert("RGB") for portrait in miniature.files().portraits]
BLANK = Image.new("RGB", (128, 128))
REAL = [name for name in REAL_DETECTORS if (SHARED_MODELS / f"{name}.onnx").is_file() and "batched" not in name]
needs_real = pytest.mark.skipif(not REAL, reason=f"no real detector in {SHARED_MODELS}: set FAST_INSTANTID_TEST_MODELS")


@pytest.fixture(scope="module")
def analyzer():
    return FaceAnalyzer.load(miniature.files().pack, device="cpu")


@pytest.fixture(scope="module")
def instantid():
    return InstantID.from_pretrained("miniature", device="cpu")


@pytest.fixture(scope="module", params=REAL[-1:] or ["none"])
def real(request, analyzer):
    """A real detector beside the miniature's recogniser."""
    graph = read_graph(SHARED_MODELS / f"{request.param}.onnx")
    return FaceAnalyzer(Detector(load_network(graph, "torch", "cpu"), graph), analyzer.networks.recognizer, Cache())


def turn(picture, quarters):
    return Image.fromarray(np.rot90(np.asarray(picture), quarters))


class TestTurned:
    @pytest.mark.parametrize("quarters", [1, 3])
    def test_the_embedding_is_the_upright_photographs(self, analyzer, quarters, caplog):
        """On the portraits that the miniature's detector tells from their own picture upside down: three of six."""
        for portrait in (PORTRAITS[2], PORTRAITS[3], PORTRAITS[5]):
            upright, found = (find_person(analyzer, picture) for picture in (portrait, turn(portrait, quarters)))
            assert upright.likeness(found) > 0.999
            assert np.abs(found.upright().keypoints - upright.keypoints).max() < 0.01
            assert np.abs(np.asarray(found.picture, int) - np.asarray(upright.picture)).max() <= 24
        assert "the face is turned, and so is its pose" in caplog.text

    @needs_real
    @pytest.mark.parametrize("quarters", [0, 1, 2, 3])
    def test_faces_of_photographs_are_found_where_they_are(self, real, astronaut, group, quarters):
        for picture in (Image.fromarray(astronaut).crop((128, 0, 384, 256)), Image.fromarray(group)):
            expected = find_people(real, picture)
            people = [person.upright() for person in find_people(real, turn(picture, quarters))]
            assert len(people) == len(expected)
            for person in people:
                nearest = min(expected, key=lambda other: np.abs(other.keypoints - person.keypoints).max())
                assert np.abs(nearest.keypoints - person.keypoints).max() < 0.01
                assert nearest.likeness(person) > 0.999
                assert person.photo_size == nearest.photo_size

    @needs_real
    def test_upright_faces_stay_as_they_are(self, real, pictures):
        for name in ("astronaut", "group", "close-up", "astronaut at 200", "group at 200"):
            photo = photos(pictures[name])
            given, found = real.detect(photo)[0], find_faces(real, photo)[0]
            assert len(given) == len(found) > 0
            for one, other in zip(given, found, strict=True):
                assert np.array_equal(one.kps, other.kps)
                assert np.array_equal(one.bbox, other.bbox)

    def test_upright_of_an_upright_person_changes_nothing(self, analyzer):
        person = find_person(analyzer, PORTRAITS[0])
        assert person.upright() is person

    def test_the_pose_is_turned_and_upright_turns_it_back(self, analyzer):
        tall = Image.new("RGB", (128, 192))
        tall.paste(PORTRAITS[2], (0, 30))
        upright, found = (find_person(analyzer, picture) for picture in (tall, turn(tall, 1)))
        assert (found.photo_size, found.upright().photo_size) == ((192, 128), (128, 192))
        drawn = [
            np.asarray(keypoint_picture(one.face, one.photo_size, (128, 192))) for one in (upright, found.upright())
        ]
        assert (drawn[0] != drawn[1]).mean() < 0.01
        sideways = keypoint_picture(found.face, found.photo_size, (192, 128))
        assert (np.asarray(sideways) != np.rot90(drawn[0])).mean() < 0.05


class TestSmallAndCut:
    @needs_real
    def test_a_face_of_30_pixels_in_a_large_photograph(self, real, astronaut):
        small = Image.fromarray(astronaut).crop((128, 0, 384, 256)).resize((82, 82), Image.Resampling.LANCZOS)
        picture = Image.new("RGB", (2400, 1800), "gray")
        picture.paste(small, (1500, 1000))
        assert real.detect(picture) == [[]]
        face = find_person(real, picture).face
        left, top, right, bottom = face.bbox
        assert 22 < right - left < 38
        assert 1500 < left < right < 1582
        assert 1000 < top < bottom < 1082

    def test_a_face_of_30_pixels_in_the_miniature(self, analyzer):
        picture = Image.new("RGB", (640, 480), "gray")
        picture.paste(PORTRAITS[0].resize((64, 64)), (300, 200))
        assert analyzer.detect(picture) == [[]]
        (person,) = find_people(analyzer, picture)
        assert (person.keypoints > (300, 200)).all()
        assert (person.keypoints < (364, 264)).all()

    @needs_real
    def test_a_face_that_fills_the_frame(self, real, astronaut):
        left, top, right, bottom = real.detect(astronaut)[0][0].bbox.astype(int)
        close = np.ascontiguousarray(astronaut[top:bottom, left:right])
        expected = real.detect(astronaut)[0][0].kps - (left, top)
        assert np.abs(find_person(real, close).keypoints - expected).max() < 0.15 * (right - left)

    def test_the_message_says_what_was_tried(self, analyzer):
        with pytest.raises(NoFaceError, match="no face found in image 1 ") as raised:
            find_person(analyzer, [PORTRAITS[0], BLANK])
        for said in ("at 640, 576", "turned by 90, 180 and 270", "1280 and 2560", "threshold 0.5"):
            assert said in str(raised.value)
        one_size = FaceAnalyzer.load(miniature.files().pack, device="cpu", sizes=[320], threshold=0.3)
        with pytest.raises(NoFaceError, match=r"searched at 320 pixels, turned .* degrees, with threshold 0.3\)"):
            find_person(one_size, BLANK)


class TestThreshold:
    def test_it_decides_and_the_cache_knows_it(self):
        cache = Cache()
        pack = miniature.files().pack
        found = []
        for threshold in (0.5, 0.99, 0.5):
            analyzer = FaceAnalyzer.load(pack, device="cpu", threshold=threshold, cache=cache)
            found.append(len(analyzer.detect(PORTRAITS[0])[0]))
        assert found == [1, 0, 1]

    @pytest.mark.parametrize("threshold", [0, 1, -0.5, 2, float("nan"), True, "0.5", None])
    def test_what_is_no_threshold_is_refused(self, threshold):
        with pytest.raises(BackendError, match=r"detection threshold .*: expected a number above 0 and below 1"):
            FaceAnalyzer.load(miniature.files().pack, device="cpu", threshold=threshold)


class TestNoFace:
    def test_go_on_without(self, analyzer, caplog):
        assert find_person(analyzer, [BLANK, BLANK], no_face="none") is None
        assert "no face found in image 0, image 1" in caplog.text
        person = find_person(analyzer, [BLANK, PORTRAITS[0]], no_face="none")
        assert person is not None
        assert len(person.embeddings) == 1
        with pytest.raises(NoFaceError):
            find_person(analyzer, BLANK, no_face="skip")
        with pytest.raises(FastInstantIDError, match="choose error, skip or none"):
            find_person(analyzer, BLANK, no_face="ignore")  # pyright: ignore

    def test_nobody_is_the_prompt_alone(self, instantid):
        options = {"width": 128, "height": 128, "num_inference_steps": 2, "output_type": "np"}
        drawn = instantid("a portrait", instantid.person(BLANK, no_face="none"), seed=3, **options).images
        plain = instantid.pipe(
            "a portrait",
            image=BLANK,
            controlnet_conditioning_scale=0.0,
            guidance_scale=miniature.GUIDANCE,
            generator=torch.Generator().manual_seed(3),
            **options,
        ).images
        assert np.array_equal(drawn, plain)
        with instantid.attached(instantid.person(PORTRAITS[0])):
            assert np.array_equal(instantid("a portrait", None, seed=3, **options).images, plain)
            assert not np.array_equal(instantid.pipe("a portrait", image=BLANK, **options).images, plain)


class TestNumbered:
    @pytest.mark.parametrize("side", [96, 128, 1024])
    def test_boxes_and_numbers(self, analyzer, side):
        group = Image.new("RGB", (2 * side, side))
        for place in (0, 1):
            group.paste(PORTRAITS[place].resize((side, side)), (place * side, 0))
        faces = analyzer.detect(group)[0]
        assert len(faces) == 2
        picture = numbered(group, faces)
        assert np.array_equal(picture, numbered(group, faces[::-1]))
        changed = np.asarray(picture) != np.asarray(group)
        assert 0.01 < changed.mean() < 0.2
        for face in faces:  # the middle of a face stays to be seen
            x, y = face.bbox.reshape(2, 2).mean(axis=0).astype(int)
            assert not changed[y - 5 : y + 5, x - 5 : x + 5].any()
        left, right = (min(faces, key=lambda face: sign * face.bbox[0]) for sign in (1, -1))
        assert np.array_equal(picture, numbered(group, [right, left], ["1", "0"]))
        assert not np.array_equal(picture, numbered(group, [left, right], ["1", "0"]))

    def test_odd_faces_and_texts(self):
        faces = [{"bbox": [-20, -5, 900, 40]}, {"bbox": [90, 90, 80, 80]}]
        assert numbered(BLANK, faces, ["Åsa 0.93", "名前 " * 40]).size == BLANK.size
        assert np.array_equal(numbered(BLANK, []), BLANK)
        with pytest.raises(FastInstantIDError, match="1 texts for 2 faces"):
            numbered(BLANK, faces, ["a"])
        with pytest.raises(ImageError, match="2 pictures where one is expected"):
            numbered([BLANK, BLANK], faces)  # pyright: ignore

    def test_the_command(self, tmp_path, capsys):
        group, output = tmp_path / "group.png", tmp_path / "numbered.png"
        picture = Image.new("RGB", (256, 128))
        for place in (0, 1):
            picture.paste(PORTRAITS[place], (place * 128, 0))
        picture.save(group)
        options = ["--pack", "miniature", "--device", "cpu"]
        assert main(["faces", str(group), "-o", str(output), *options]) == 0
        out, err = capsys.readouterr()
        assert [line[0] for line in out.splitlines()] == ["0", "1"]
        assert "2 face(s) numbered" in err
        assert Image.open(output).size == picture.size
        assert main(["faces", str(group), "--json", *options]) == 0
        boxes = [face["bbox"] for face in json.loads(capsys.readouterr()[0])["faces"]]
        assert boxes[0][2] < 128 < boxes[1][0]
        assert main(["faces", str(group), "--face-threshold", "0.999", *options]) == 1
        assert "threshold 0.999): use a picture" in capsys.readouterr()[1]
        assert main(["faces", str(group), "--face-threshold", "1.5", *options]) == 1
        assert "detection threshold 1.5" in capsys.readouterr()[1]
