"""Keypoints as poses, and tracks: key poses between which a face moves, and videos whose jitter is smoothed."""

from __future__ import annotations

import json
import stat

import numpy as np
import pytest

from examples.animation import KEY_POSES, SIZE as FRAME, error, followed_in, frames_of
from fast_instantid import InstantID, Pose, Scene, Subject, miniature
from fast_instantid.errors import FastInstantIDError, NoFaceError
from fast_instantid.faces import Face
from fast_instantid.people import Keypoints, followed, pose_track, smoothed
from fast_instantid.people.pose import load_poses, save_poses
from tests.test_scenes import person

SIZE = (400, 300)
LEFT, RIGHT = Pose(0.3, 0.4, 0.4, yaw=-40), Pose(0.7, 0.5, 0.6, yaw=40)


def in_picture(pose: Pose) -> Keypoints:
    return Keypoints.of(pose.keypoints(SIZE), SIZE)


def turn(points: np.ndarray) -> float:
    """Degrees of the line between the eyes."""
    across = points[1] - points[0]
    return float(np.degrees(np.arctan2(across[1], across[0])))


def face(x: float, size: float = 0.2) -> Face:
    points = Pose(x, 0.5, size).keypoints(SIZE)
    return Face(np.array([*points.min(axis=0), *points.max(axis=0)]), points, 1.0)


class TestKeypoints:
    def test_they_are_stretched_over_a_picture(self):
        points = RIGHT.keypoints(SIZE)
        pose = Keypoints.of(points, SIZE)
        assert pose.keypoints(SIZE) == pytest.approx(points, abs=1e-4)
        assert pose.keypoints((800, 300)) == pytest.approx(points * (2, 1), abs=1e-4)
        assert pose.keypoints(SIZE).dtype == np.float32
        assert pose == Keypoints(pose.points)
        assert hash(pose) == hash(Keypoints(pose.points))

    def test_a_scene_takes_them(self):
        scene = Scene(SIZE, [Subject(person("a"), pose=in_picture(LEFT)), Subject(person("b"), pose=RIGHT)])
        assert scene.keypoints[0] == pytest.approx(LEFT.keypoints(SIZE), abs=1e-4)
        with pytest.raises(FastInstantIDError, match="the face of person 0 lies outside of the picture"):
            Scene(SIZE, [Subject(person("a"), pose=Keypoints.of(np.add(LEFT.keypoints(SIZE), (400, 0)), SIZE))])

    @pytest.mark.parametrize(
        ("points", "said"),
        [
            (RIGHT.keypoints(SIZE), "expected parts of the picture"),
            (np.full((5, 2), np.nan), "NaN"),
            (np.zeros((4, 2)), "five points"),
            ("left", "five points"),
        ],
    )
    def test_what_is_no_pose_is_refused(self, points, said):
        with pytest.raises((FastInstantIDError, ValueError), match=said):
            Keypoints(points)

    def test_a_library_keeps_both_kinds_for_its_owner(self, tmp_path):
        poses = {"a photo's": in_picture(LEFT), "mine": RIGHT}
        save_poses(tmp_path / "poses.json", poses)
        assert load_poses(tmp_path / "poses.json") == poses
        assert stat.S_IMODE((tmp_path / "poses.json").stat().st_mode) == 0o600

    @pytest.mark.parametrize(
        "pose",
        [
            {"points": 1},
            {"points": [[0, 0]] * 4},
            {"points": [[300, 200]] * 5},
            {"points": [], "x": 1},
            {"yaw": 91},
            {"yaw": 10**400},
        ],
    )
    def test_a_pose_that_is_none_names_its_file(self, tmp_path, pose):
        (tmp_path / "poses.json").write_text(json.dumps({"mine": pose}))
        with pytest.raises(FastInstantIDError, match=r"poses.json: no library of poses: "):
            load_poses(tmp_path / "poses.json")

    def test_a_file_nested_without_end_is_refused(self, tmp_path):
        (tmp_path / "poses.json").write_text("[" * 100_000)
        with pytest.raises(FastInstantIDError, match=r"poses.json: no library of poses: "):
            load_poses(tmp_path / "poses.json")


class TestTrack:
    @pytest.mark.parametrize("of", [lambda pose: pose, in_picture])
    def test_it_goes_through_every_pose_and_rests_at_both_ends(self, of):
        keys = [of(pose) for pose in (LEFT, RIGHT, Pose(0.5, 0.3, 0.5, roll=30))]
        track = pose_track(keys, 41, SIZE)
        assert track.shape == (41, 5, 2)
        assert track.dtype == np.float32
        for frame, pose in ((0, keys[0]), (20, keys[1]), (40, keys[2])):
            assert track[frame] == pytest.approx(pose.keypoints(SIZE), abs=1e-3)
        moves = np.abs(np.diff(track, axis=0)).max(axis=(1, 2))
        assert moves[0] < 0.2 * moves.max()
        assert moves[-1] < 0.2 * moves.max()
        assert moves.max() < 2.5 * np.abs(track[20] - track[0]).max() / 20, "no jump"

    def test_poses_turn_in_3d(self):
        """In the middle the face looks ahead, as wide as any that does."""
        ahead = pose_track([Pose(yaw=-40), Pose(yaw=40)], 3, SIZE)[1]
        assert ahead == pytest.approx(Pose().keypoints(SIZE), abs=1e-3)

    @pytest.mark.parametrize("of", [lambda pose: pose, in_picture])
    def test_a_roll_goes_the_short_way_around_and_keeps_the_size(self, of):
        track = pose_track([of(Pose(roll=170)), of(Pose(roll=-160))], 11, SIZE)
        assert max(abs(turn(points)) for points in track) == pytest.approx(180, abs=8)
        assert min(abs(turn(points)) for points in track) >= 160 - 0.01
        widths = np.linalg.norm(track[:, 1] - track[:, 0], axis=1)
        assert np.ptp(widths) < 0.01

    def test_nothing_overshoots(self):
        """Also between three poses at the limits of a pose, which would be refused beyond them."""
        xs = pose_track([Pose(0.2, yaw=90), Pose(0.8, yaw=90), Pose(0.8, yaw=-90)], 301, SIZE).mean(axis=1)[:, 0]
        assert xs.min() >= 0.2 * 400 - 1e-3
        assert xs.max() <= 0.8 * 400 + 1e-3
        assert (np.diff(xs[:150]) >= -1e-4).all()

    def test_whole_numbers_are_numbers(self):
        whole = pose_track([Pose(0, 0, 1, 0, 0, 0), Pose(1, 1, 1, 1, 1, 1), Pose(1, 1, 1, 5, 0, 0)], 9, SIZE)
        floats = [Pose(0.0, 0, 1, 0, 0, 0), Pose(1.0, 1, 1, 1, 1, 1), Pose(1.0, 1, 1, 5, 0, 0)]
        assert np.array_equal(whole, pose_track(floats, 9, SIZE))
        assert whole[2].mean(axis=0) == pytest.approx(np.multiply(SIZE, 0.5), abs=30)

    def test_times_say_when(self):
        track = pose_track([LEFT, RIGHT, LEFT], 11, SIZE, times=[0, 2, 10])
        assert track[2] == pytest.approx(RIGHT.keypoints(SIZE), abs=1e-3)

    def test_one_pose_stays_and_one_frame_is_the_first_pose(self):
        still = pose_track([LEFT], 3, SIZE)
        assert still == pytest.approx(np.stack([LEFT.keypoints(SIZE)] * 3))
        assert pose_track([LEFT, RIGHT], 1, SIZE) == pytest.approx(LEFT.keypoints(SIZE)[None], abs=1e-3)

    def test_poses_and_keypoints_mix(self):
        track = pose_track([LEFT, in_picture(RIGHT)], 3, SIZE)
        assert track[[0, 2]] == pytest.approx(np.stack([LEFT.keypoints(SIZE), RIGHT.keypoints(SIZE)]), abs=1e-3)

    def test_points_that_coincide_give_numbers(self):
        flat = Keypoints(np.full((5, 2), 0.5))
        assert np.isfinite(pose_track([flat, in_picture(LEFT)], 5, SIZE)).all()

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"poses": []}, "a track of no poses"),
            ({"frames": 0}, "0 frames: expected 1 to 4096"),
            ({"frames": 10**9}, "frames: expected 1 to 4096"),
            ({"times": [0, 0]}, "expected a rising number"),
            ({"times": [0, float("nan")]}, "expected a rising number"),
            ({"times": [0]}, "for each of 2 poses"),
        ],
    )
    def test_what_is_no_track_is_refused(self, given, said):
        with pytest.raises(FastInstantIDError, match=said):
            pose_track(**({"poses": [LEFT, RIGHT], "frames": 5, "size": SIZE} | given))


class TestSmoothing:
    def test_jitter_goes_and_the_motion_stays(self):
        track = pose_track([LEFT, RIGHT, LEFT], 61, SIZE)
        noisy = track + np.random.default_rng(0).normal(0, 2, track.shape)
        steady = smoothed(noisy, 2)
        before, after = (np.sqrt(np.mean((one - track) ** 2)) for one in (noisy, steady))
        assert after < 0.5 * before
        jitter = [np.sqrt(np.mean(np.diff(one - track, axis=0) ** 2)) for one in (noisy, steady)]
        assert jitter[1] < 0.2 * jitter[0]

    def test_the_gain_is_the_stated_one(self):
        """Of cosines that the mirrored ends continue."""
        frames, smoothness = 64, 3.0
        for waves in (1, 5, 20, 63):
            wave = np.cos(np.pi * waves * (np.arange(frames) + 0.5) / frames)
            track = 100 + 10 * wave[:, None, None] * np.ones((frames, 5, 2))
            gain = 1 / (1 + (2 * smoothness * np.sin(np.pi * waves / (2 * frames))) ** 4)
            assert smoothed(track, smoothness) == pytest.approx(100 + gain * (track - 100), abs=1e-4)

    def test_it_minimises_what_is_stated(self):
        """Against a solution by linear algebra, whose ends are mirrored too."""
        track = np.random.default_rng(1).normal(100, 10, (12, 5, 2))
        mirror = np.zeros((14, 12))
        mirror[[*range(1, 13), 0, 13], [*range(12), 0, 11]] = 1
        differences = np.diff(mirror, 2, axis=0)
        solved = np.linalg.solve(np.eye(12) + 1.5**4 * differences.T @ differences, track.reshape(12, 10))
        assert smoothed(track, 1.5).reshape(12, 10) == pytest.approx(solved, abs=1e-4)

    def test_without_smoothness_nothing_changes_and_gaps_are_filled(self):
        track = pose_track([LEFT, RIGHT], 5, SIZE)
        assert smoothed(track, 0) == pytest.approx(track, abs=1e-4)
        filled = smoothed([None, track[1], None, None, track[4], None], 0)
        assert filled[0] == pytest.approx(track[1], abs=1e-4)
        assert filled[5] == pytest.approx(track[4], abs=1e-4)
        assert filled[2] == pytest.approx((2 * track[1] + track[4]) / 3, abs=1e-3)

    def test_one_face_is_followed(self):
        """The largest of the first frame that has one, also where another becomes larger."""
        frames = [[], [face(0.2), face(0.7, 0.3)], [face(0.25, 0.4), face(0.65, 0.25)], [], [face(0.6), face(0.3, 0.4)]]
        track = followed(frames)
        assert [one is None for one in track] == [True, False, False, True, False]
        xs = smoothed(track, 0).mean(axis=1)[:, 0] / 400
        assert xs == pytest.approx([0.7, 0.7, 0.65, 0.625, 0.6], abs=1e-3)

    @pytest.mark.parametrize("frames", [[], [None, None]])
    def test_no_face_at_all_is_named(self, frames):
        with pytest.raises(NoFaceError, match=f"none of {len(frames)} frames has a face"):
            smoothed(frames)

    @pytest.mark.parametrize("smoothness", [-1, float("nan"), float("inf"), 1e9])
    def test_a_smoothness_out_of_range_is_named(self, smoothness):
        with pytest.raises(FastInstantIDError, match="expected 0 to 4096 frames"):
            smoothed(pose_track([LEFT], 2, SIZE), smoothness)

    def test_points_that_are_not_finite_are_refused(self):
        with pytest.raises(ValueError, match="NaN"):
            smoothed(np.full((3, 5, 2), np.nan))


class TestDrawing:
    def test_the_face_of_the_miniature_follows_a_track(self):
        """From one noise; `python -m examples.animation --measure` draws more."""
        instantid = InstantID.from_pretrained("miniature", device="cpu")
        track = pose_track(KEY_POSES, 3, FRAME)
        frames = frames_of(instantid, instantid.person(miniature.files().portraits[0]), track, steps=4)
        found = followed_in(instantid, frames)
        assert error(found, track) < 0.3
        assert error(found, track[::-1]) > 0.6
