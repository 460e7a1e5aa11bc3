"""Poses without a photograph, and persons placed in a scene."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from examples.scenes import own_faces
from fast_instantid import FaceAnalyzer, InstantID, Pose, Sampling, Scene, Subject, generate, miniature
from fast_instantid.errors import FastInstantIDError, ImageError, NoFaceError
from fast_instantid.faces import Face
from fast_instantid.people import Person, find_person, scene_of
from fast_instantid.people.pose import ANGLES, load_poses, moved_keypoints, save_poses
from tests.test_pipelines import CountOps

SIZE = (400, 300)
EYES, NOSE, MOUTH = slice(0, 2), 2, slice(3, 5)
PORTRAITS = miniature.files().portraits


def person(name: str, seed: int = 0) -> Person:
    rows = np.random.default_rng(seed).normal(size=(1, 512))
    return Person(rows, Face(np.zeros(4, np.float32), Pose().keypoints(SIZE), 1.0), SIZE, name=name)


@pytest.fixture(scope="module")
def analyzer():
    return FaceAnalyzer.load(miniature.files().pack, device="cpu")


@pytest.fixture(scope="module")
def group():
    picture = Image.new("RGB", (256, 128), "gray")
    for number in range(2):
        picture.paste(Image.open(PORTRAITS[number]).convert("RGB").resize((128, 128)), (128 * number, 0))
    return picture


@pytest.fixture(scope="module")
def instantid():
    return InstantID.from_pretrained("miniature", device="cpu")


class TestPose:
    def test_a_face_that_looks_ahead_is_symmetric_and_lies_in_its_place(self):
        points = Pose(x=0.25, y=0.5, size=0.4).keypoints(SIZE)
        assert points.dtype == np.float32
        assert points.mean(axis=0) == pytest.approx([100, 150], abs=0.01)
        mirrored = (points * (-1, 1) + (200, 0))[[1, 0, 2, 4, 3]]
        assert mirrored == pytest.approx(points, abs=0.01)
        assert (points[MOUTH, 1] > points[NOSE, 1]).all()
        assert (points[NOSE, 1] > points[EYES, 1]).all()

    @pytest.mark.parametrize(
        ("angle", "axis", "sign"),
        [("right", 0, 1), ("left", 0, -1), ("up", 1, -1), ("down", 1, 1), ("slightly right", 0, 1)],
    )
    def test_the_nose_goes_where_the_face_looks(self, angle, axis, sign):
        ahead, turned = Pose().keypoints(SIZE), Pose.of(angle).keypoints(SIZE)
        middle = slice(0, 5)
        shift = (turned[NOSE] - turned[middle].mean(axis=0)) - (ahead[NOSE] - ahead[middle].mean(axis=0))
        assert shift[axis] * sign > 3
        assert abs(shift[1 - axis]) < 1e-3

    def test_a_roll_turns_clockwise(self):
        left, right = Pose(roll=30).keypoints(SIZE)[EYES]
        assert np.degrees(np.arctan2(*(right - left)[::-1])) == pytest.approx(30, abs=0.01)

    def test_there_are_eleven_named_angles_or_more_and_all_differ(self):
        points = {name: Pose.of(name).keypoints(SIZE) for name in ANGLES}
        assert len(points) >= 11
        for name, one in points.items():
            assert min(np.abs(one - other).max() for key, other in points.items() if key != name) > 2

    def test_the_size_is_that_of_a_detectors_box(self, analyzer):
        """As the miniature's detector sees the shipped portraits: to a fifth."""
        faces = [analyzer.detect(portrait)[0][0] for portrait in PORTRAITS]
        ratios = [(face.bbox[3] - face.bbox[1]) / np.linalg.norm(face.kps[1] - face.kps[0]) for face in faces]
        points = Pose(size=1).keypoints((1000, 1000))
        ours = 1000 / np.linalg.norm(points[1] - points[0])
        assert np.median(ratios) == pytest.approx(ours, rel=0.2)

    def test_jitter_is_small_and_the_same_for_a_seed(self):
        pose = Pose.of("left")
        assert pose.jittered(3) == pose.jittered(3)
        others = [pose.jittered(seed) for seed in range(20)]
        assert len(set(others)) == 20
        assert max(abs(other.x - pose.x) for other in others) <= 0.03
        assert np.std([other.yaw for other in others]) == pytest.approx(8, rel=0.5)
        Pose(yaw=90, pitch=-90, roll=180).jittered(1)

    @pytest.mark.parametrize("wrong", [{"yaw": 91}, {"size": 0}, {"x": float("nan")}, {"roll": 1000}, {"y": 3}])
    def test_what_no_face_has_is_refused(self, wrong):
        with pytest.raises(FastInstantIDError, match=f"{next(iter(wrong))} .* of a pose: expected"):
            Pose(**wrong)

    def test_an_unknown_angle_names_the_known_ones(self):
        with pytest.raises(FastInstantIDError, match=r"unknown angle 'sideways': choose one of front, "):
            Pose.of("sideways")

    def test_a_library_is_kept(self, tmp_path):
        poses = {"mine": Pose(0.2, 0.3, 0.4, 5, 6, 7), "left": Pose.of("left")}
        save_poses(tmp_path / "poses.json", poses)
        assert load_poses(tmp_path / "poses.json") == poses

    @pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": {"yaw": "x"}}', '{"a": {"turn": 1}}', "\xff\x00"])
    def test_a_file_that_is_no_library_is_named(self, tmp_path, text):
        (tmp_path / "poses.json").write_text(text, encoding="latin-1")
        with pytest.raises(FastInstantIDError, match=r"poses.json: no library of poses"):
            load_poses(tmp_path / "poses.json")


class TestMovedKeypoints:
    def test_nothing_changes_nothing(self):
        points = Pose.of("up left").keypoints(SIZE)
        assert moved_keypoints(points) == pytest.approx(points, abs=1e-4)

    def test_shift_scale_and_turn(self):
        points = Pose().keypoints(SIZE)
        moved = moved_keypoints(points, shift=(10, -5), scale=2, degrees=90)
        assert moved.mean(axis=0) == pytest.approx(points.mean(axis=0) + np.array([10, -5]), abs=1e-3)
        across, before = moved[1] - moved[0], points[1] - points[0]
        assert across == pytest.approx([-before[1] * 2, before[0] * 2], abs=1e-3)

    def test_a_mirrored_face_looks_the_other_way(self):
        left, right = Pose(yaw=-30).keypoints(SIZE), Pose(yaw=30).keypoints(SIZE)
        mirrored = moved_keypoints(left, mirror=True)
        assert mirrored - mirrored.mean(axis=0) == pytest.approx(right - right.mean(axis=0), abs=0.01)

    @pytest.mark.parametrize(
        "wrong", [{"scale": 0}, {"scale": -1}, {"degrees": float("inf")}, {"shift": (0, float("nan"))}]
    )
    def test_numbers_that_move_nothing_are_refused(self, wrong):
        with pytest.raises(FastInstantIDError, match="expected finite numbers"):
            moved_keypoints(Pose().keypoints(SIZE), **wrong)


class TestCounts:
    """What a scene adds to a run, however many persons there are."""

    @pytest.mark.parametrize("number", [1, 3])
    def test_networks_attentions_and_sums_of_a_step(self, instantid, number):
        people = [instantid.person(portrait) for portrait in PORTRAITS[:number]]
        scene = Scene((384, 128), [Subject(one, region=(0.2 * n, 0, 0.5 + 0.2 * n, 1)) for n, one in enumerate(people)])
        calls: list[str] = []
        networks = {"unet": instantid.pipe.unet.conv_in, "net": instantid.pipe.controlnet.conv_in}
        hooks = [
            module.register_forward_hook(lambda *_, name=name: calls.append(name)) for name, module in networks.items()
        ]

        def step(people):
            counts = []
            for steps in (1, 2, 3):  # the first run is where tensors are laid out
                calls.clear()
                with CountOps() as ops:
                    instantid("flat portrait", people, seed=1, num_inference_steps=steps, width=384, height=128)
                counts.append(ops.counts)
            return counts[2] - counts[1], [*calls]

        try:
            added, run = step(scene)
            plain, _ = step(None)
        finally:
            for hook in hooks:
                hook.remove()
        assert (run.count("unet"), run.count("net")) == (3, 3)
        added = added - plain
        assert added["addcmul"] == 70 * number
        assert added["_local_scalar_dense"] == 0


class TestScene:
    def test_people_without_poses_stand_beside_each_other(self):
        scene = Scene(SIZE, [Subject(person(name)) for name in "abc"])
        middles = [points.mean(axis=0)[0] for points in scene.keypoints]
        assert middles == pytest.approx([400 / 6, 200, 2000 / 6], abs=0.1)
        extents = [(points.min(axis=0)[0], points.max(axis=0)[0]) for points in scene.keypoints]
        assert all(before[1] < after[0] for before, after in pairwise(extents))
        assert np.asarray(scene.keypoint_picture()).shape == (300, 400, 3)

    def test_the_nearest_face_owns_a_place(self):
        scene = Scene(SIZE, [Subject(person(name)) for name in "ab"])
        left, right = (subject.region for subject in scene.subjects)
        assert left[:, 0].min() == 1
        assert right[:, -1].min() == 1
        assert left + right == pytest.approx(np.ones_like(left), abs=1e-6)
        assert 0 < left[:, left.shape[1] // 2].mean() < 1, "the border is soft"

    def test_regions_that_are_given_are_kept(self):
        mask = np.full((4, 4), 0.5, np.float32)
        given = [Subject(person("a"), region=(0, 0, 0.5, 1)), Subject(person("b"), region=mask), person("c")]
        box, same, nearest = Scene(SIZE, given).subjects
        assert box.mask[0, :, :64].min() == 1
        assert box.mask[0, :, 64:].max() == 0
        assert same.region is mask
        assert nearest.region.max() == 1
        assert Scene(SIZE, [person("a")]).subjects[0].region is None

    def test_an_empty_region_is_named(self):
        with pytest.raises(FastInstantIDError, match="the region of person 1 is empty"):
            Scene(SIZE, [person("a"), Subject(person("b"), region=np.zeros((4, 4), np.float32))])

    def test_persons_of_two_recognisers_are_not_drawn_together(self):
        one, other = (replace(person(name), recognizer=64 * name) for name in "ab")
        with pytest.raises(FastInstantIDError, match="a and b were made by different recognisers"):
            Scene(SIZE, [one, other])

    @pytest.mark.parametrize("box", [(0.5, 0, 0.5, 1), (0, 0, 1.5, 1), (0, 0, 1), (0, float("nan"), 1, 1)])
    def test_a_box_without_an_area_is_refused(self, box):
        with pytest.raises(ImageError, match="expected left, top, right and bottom of a box"):
            Subject(person("a"), region=box)

    def test_a_thin_box_is_not_empty(self):
        mask = Subject(person("a"), region=(0.3, 0.6, 0.3001, 0.6001)).mask
        assert 1 <= mask.sum() <= 4

    def test_a_face_outside_of_the_picture_is_named(self):
        with pytest.raises(FastInstantIDError, match="the face of person 1 lies outside of the picture"):
            Scene(SIZE, [person("a"), Subject(person("b"), pose=Pose(x=2))])

    def test_a_scene_of_nobody_is_refused(self):
        with pytest.raises(FastInstantIDError, match="a scene of nobody"):
            Scene(SIZE, [])


class TestPosePicture:
    def test_faces_are_paired_from_left_to_right_or_by_likeness(self, analyzer, group):
        two = [find_person(analyzer, PORTRAITS[number]) for number in (1, 0)]
        scene = scene_of(analyzer, group, two, size=(512, 512))
        xs = [points.mean(axis=0)[0] for points in scene.keypoints]
        assert xs[0] < 256 < xs[1]
        assert [subject.identity for subject in scene.subjects] == two
        alike = scene_of(analyzer, group, two, size=(512, 512), pairing="likeness")
        assert [points.mean(axis=0)[0] for points in alike.keypoints] == pytest.approx(xs[::-1])
        ys = [points.mean(axis=0)[1] for points in scene.keypoints]
        assert max(ys) > 200, "stretched from 128 to 512 pixels"

    def test_persons_get_the_faces_of_their_numbers(self, analyzer, group):
        two = [find_person(analyzer, portrait) for portrait in PORTRAITS[:2]]
        straight, crossed = (scene_of(analyzer, group, two, pairing=numbers) for numbers in ([0, 1], [1, 0]))
        assert np.array_equal(straight.keypoints[0], scene_of(analyzer, group, two).keypoints[0])
        assert np.array_equal(crossed.keypoints[0], straight.keypoints[1])
        for numbers in ([0], [0, 0], [0, 2], [-1, 0]):
            with pytest.raises(FastInstantIDError, match="for 2 people, of 2 there: give each another number"):
                scene_of(analyzer, group, two, pairing=numbers)

    def test_too_few_faces_and_unknown_pairings_are_named(self, analyzer, group):
        people = [person(name) for name in "abc"]
        with pytest.raises(NoFaceError, match="2 faces for 3 people"):
            scene_of(analyzer, group, people)
        with pytest.raises(FastInstantIDError, match="unknown pairing 'top'"):
            scene_of(analyzer, group, people[:2], pairing="top")


class TestDrawing:
    """On the miniature, with diffusers."""

    def test_a_scene_is_its_subjects_and_its_keypoint_picture(self, instantid):
        two = [instantid.person(PORTRAITS[number]) for number in (0, 3)]
        poses = [Pose(0.27, 0.5, 0.55), Pose.of("slightly left", x=0.73, y=0.5, size=0.55)]
        scene = Scene((256, 128), [Subject(one, 0.9, pose=pose) for one, pose in zip(two, poses, strict=True)])
        options = {"seed": 3, "num_inference_steps": 2, "output_type": "np"}
        evaluated = []
        _, net = instantid.networks()
        hook = net.register_forward_hook(lambda *_: evaluated.append(1))
        drawn = instantid("flat portrait, plain blue background", scene, **options).images[0]
        hook.remove()
        assert drawn.shape == (128, 256, 3)
        assert len(evaluated) == 2, "one IdentityNet for all persons, in each step"
        keypoints = scene.keypoint_picture()
        by_hand = instantid("flat portrait, plain blue background", scene.subjects, keypoints=keypoints, **options)
        assert np.array_equal(drawn, by_hand.images[0])
        with instantid.attached(scene):
            assert instantid.scale == 0.9
        swapped = Scene(scene.size, [Subject(one, 0.9, pose=pose) for one, pose in zip(two[::-1], poses, strict=True)])
        other = instantid("flat portrait, plain blue background", swapped, **options).images[0]
        assert np.abs(other - drawn).mean() > 0.005

    def test_generate_takes_a_scene(self, instantid):
        scene = Scene((128, 128), [instantid.person(PORTRAITS[0])])
        sampling = Sampling(num_inference_steps=1, guidance_scale=2.0)
        (image,) = generate(instantid, scene, None, "flat portrait", sampling)
        assert image.size == (128, 128)

    def test_each_face_is_most_like_its_own_person(self, instantid):
        """Of the six shipped; `python -m examples.scenes --measure` draws more."""
        people = [instantid.person(portrait) for portrait in PORTRAITS]
        assert sum(own_faces(instantid, people, shown) for shown in ((0, 1), (3, 2), (1, 4, 5))) >= 6
