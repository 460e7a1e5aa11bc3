"""Nodes of poses: from pictures, from ComfyUI's own face nodes, from files, and through the frames of a batch."""

from __future__ import annotations

import json
import stat
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch

from tests.comfyui import tiny
from tests.comfyui.test_people_nodes import (  # noqa: F401  # fixtures
    apply as apply_person,  # a fixture
    find,
    people_folder,
)
from tests.comfyui.test_scene_nodes import apply, pose, two  # noqa: F401  # fixtures

LATENT = {"samples": torch.zeros(1, 4, 16, 24)}
SIZE = (192, 128)
FRAMES = {"samples": torch.zeros(5, 4, 16, 24)}
KEPT = {"faces": 0, "shift_x": 0.0, "shift_y": 0.0, "scale": 1.0, "degrees": 0.0, "mirror": False}
IRISES, NOSE, MOUTH = (468, 473), 1, (61, 291)


@pytest.fixture
def read(ours):
    """``read(**inputs)``: the outputs of InstantID Pose From Image."""
    return lambda **inputs: tiny.call(ours["InstantIDPoseFromImage"], **({"latent": LATENT} | KEPT | inputs))


@pytest.fixture(autouse=True)
def poses_folder(monkeypatch, tmp_path):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "instantid_poses", ([str(tmp_path / "poses")], {".json"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path / "poses"


def points(given: Any, size: tuple[int, int] = SIZE) -> np.ndarray:
    """``(N, 5, 2)`` in pixels."""
    return np.stack([one.keypoints(size) for one in given])


def mesh(x: float, y: float, side: float, score: float = 0.9) -> dict[str, Any]:
    """A face of ComfyUI's FACE_LANDMARKS (comfy_extras/nodes_mediapipe.py), with its five points around a middle."""
    xy = np.random.default_rng(0).uniform(-side, side, (478, 2)).astype(np.float32) + np.float32([x, y])
    xy[[*IRISES, NOSE, *MOUTH]] = np.float32([x, y]) + side * np.float32(
        [(-0.5, -0.5), (0.5, -0.5), (0, 0), (-0.4, 0.5), (0.4, 0.5)]
    )
    box = np.array([*(xy.min(axis=0)), *(xy.max(axis=0))], np.float32)
    return {"bbox_xyxy": box, "landmarks_xy": xy, "score": score, "presence": 1.0, "blendshapes": {}}


def landmarks(*frames: list[dict[str, Any]], size: tuple[int, int] = (64, 96)) -> dict[str, Any]:
    return {"frames": [*frames], "image_size": size, "connection_sets": {"nose": frozenset({(1, 468)})}}


class TestFromImage:
    def test_the_faces_of_a_picture_from_left_to_right(self, read, faces, portraits):
        picture = torch.cat([portraits[:1], portraits[1:2]], dim=2)
        poses, drawn = read(faceanalysis=faces, image=picture)
        found = faces.get(np.ascontiguousarray((picture[0].numpy() * 255).astype(np.uint8)[..., ::-1]))
        expected = sorted((face["kps"] for face in found), key=lambda kps: kps[:, 0].mean())
        scale = np.array(SIZE) / (picture.shape[2], picture.shape[1])
        assert points(poses) == pytest.approx(np.stack(expected) * scale, abs=0.1)
        assert drawn.shape == (1, 128, 192, 3)
        assert len(read(faceanalysis=faces, image=picture, faces=1)[0]) == 1

    def test_the_picture_of_a_pose_is_that_of_the_scene(self, read, apply, two, faces, portraits):  # noqa: F811
        picture = torch.cat([portraits[:1], portraits[1:2]], dim=2)
        poses, drawn = read(faceanalysis=faces, image=picture)
        assert torch.equal(apply(two, pose=poses)[3], drawn)
        assert torch.equal(apply(two, pose_image=picture, faceanalysis=faces)[3], drawn)

    def test_poses_are_moved_around_their_middles(self, read, faces, portrait):
        plain = points(read(faceanalysis=faces, image=portrait)[0])[0]
        changed = {"shift_x": 0.25, "shift_y": -0.125, "scale": 2.0, "degrees": 90.0}
        moved = points(read(faceanalysis=faces, image=portrait, **changed)[0])[0]
        assert moved.mean(axis=0) == pytest.approx(plain.mean(axis=0) + np.array([48, -16]), abs=0.01)
        across, before = moved[1] - moved[0], plain[1] - plain[0]
        assert across == pytest.approx([-before[1] * 2, before[0] * 2], abs=0.01)
        mirrored = points(read(faceanalysis=faces, image=portrait, mirror=True)[0])[0]
        middle = plain.mean(axis=0)[0]
        assert mirrored[2] == pytest.approx([2 * middle - plain[2, 0], plain[2, 1]], abs=0.01)

    def test_a_face_moved_out_of_the_picture_is_refused_by_the_scene(self, read, apply, two, faces, portrait):  # noqa: F811
        poses, drawn = read(faceanalysis=faces, image=portrait, shift_x=1.0)
        assert drawn.sum() == 0
        with pytest.raises(Exception, match="the face of person 1 lies outside of the picture"):
            apply(two, pose=(*read(faceanalysis=faces, image=portrait)[0], *poses))

    def test_missing_faces_and_inputs_are_named(self, read, faces, portrait):
        with pytest.raises(Exception, match="image: 1 faces for 3 people"):
            read(faceanalysis=faces, image=portrait, faces=3)
        with pytest.raises(Exception, match="image: 0 faces for 1 people"):
            read(faceanalysis=faces, image=torch.zeros_like(portrait))
        for given in ({}, {"image": portrait}, {"faceanalysis": faces}):
            with pytest.raises(Exception, match="no faces: connect image and faceanalysis, or face_landmarks"):
                read(**given)


class TestVideo:
    def test_one_face_in_each_frame_also_where_none_is_found(self, read, faces, portrait):
        moved = torch.roll(portrait, 40, dims=2)
        video = torch.cat([portrait, torch.zeros_like(portrait), moved])
        poses, drawn = read(faceanalysis=faces, image=video)
        assert drawn.shape == (3, 128, 192, 3)
        first, between, last = points(poses)
        assert between == pytest.approx((first + last) / 2, abs=0.01)
        assert (last - first)[:, 0] == pytest.approx(40 * 192 / portrait.shape[2], abs=1)
        with pytest.raises(Exception, match="none of 2 frames has a face"):
            read(faceanalysis=faces, image=torch.zeros_like(video[:2]))

    def test_it_is_drawn_as_a_track(self, ours, read, faces, portrait):
        video = torch.cat([torch.roll(portrait, shift, dims=2) for shift in (0, 30, 0, 30, 0)])
        poses, drawn = read(faceanalysis=faces, image=video)
        (track,) = tiny.call(ours["InstantIDPoseTrack"], latent=FRAMES, pose=poses, smoothness=0.0)
        assert torch.equal(track, drawn)
        (steady,) = tiny.call(ours["InstantIDPoseTrack"], latent=FRAMES, pose=poses, smoothness=2.0)
        change = [float((one[1:] - one[:-1]).abs().mean()) for one in (track, steady)]
        assert change[1] < 0.7 * change[0]


class TestHostsFaces:
    def test_five_of_the_mesh(self, read):
        given = landmarks([mesh(70, 30, 8), mesh(20, 20, 10), mesh(45, 50, 2)])
        poses, _ = read(face_landmarks=given, faces=2)
        assert points(poses)[:, 2] == pytest.approx(np.array([(40, 40), (140, 60)]), abs=1e-3)
        assert points(poses)[0, 0] == pytest.approx([30, 30], abs=1e-3)
        assert len(read(face_landmarks=given)[0]) == 3

    def test_a_video_of_meshes(self, read):
        poses, drawn = read(face_landmarks=landmarks([mesh(20, 20, 5)], [], [mesh(60, 20, 5)]))
        assert points(poses)[:, 2, 0] == pytest.approx([40, 80, 120], abs=1e-3)
        assert len(drawn) == 3

    @pytest.mark.parametrize("wrong", [None, [], {"frames": []}, "short", "nan"])
    def test_what_is_no_mesh_is_refused(self, read, wrong):
        if wrong in ("short", "nan"):
            face = mesh(20, 20, 5)
            face["landmarks_xy"] = face["landmarks_xy"][:468] if wrong == "short" else face["landmarks_xy"] * np.nan
            wrong = landmarks([face])
        with pytest.raises(Exception, match=r"face_landmarks of another kind|no faces: connect|NaN"):
            read(face_landmarks=wrong)

    def test_a_face_that_looks_ahead_fills_a_box(self, read):
        box = {"x": 48, "y": 32, "width": 48, "height": 64}
        for given in (box, [box], [[box]]):
            ((one,), drawn) = read(bboxes=given)
            kps = one.keypoints(SIZE)
            assert kps.min() > 0
            assert kps.mean(axis=0) == pytest.approx([72, 64 + 0.08 * 62.4], abs=0.5)
            assert kps[1, 0] - kps[0, 0] == pytest.approx(62.4 / 2.9, abs=0.1)
            assert drawn.sum() > 0
        ((half,), _) = read(bboxes=box, image=torch.zeros(1, 64, 96, 3))
        assert half.keypoints(SIZE) == pytest.approx(kps * 2, abs=0.01)

    def test_boxes_of_frames_and_with_scores(self, read):
        boxes = [[{"x": x, "y": 8, "width": 24, "height": 32, "label": "face", "score": 0.5}] for x in (16, 40)]
        assert len(read(bboxes=[boxes[0][0], boxes[1][0]])[0]) == 2
        assert len(read(bboxes=[boxes[0][0], boxes[1][0]])[1]) == 1
        poses, drawn = read(bboxes=[boxes[0], [], boxes[1]])
        assert points(poses).mean(axis=1)[:, 0] == pytest.approx([28, 40, 52], abs=0.01)
        assert len(drawn) == 3

    @pytest.mark.parametrize("given", [[], [[]], {"x": 0, "y": 0, "width": 0, "height": 9}, {"x": 1}, [[[0, 0, 9, 9]]]])
    def test_what_is_no_box_is_refused(self, read, given):
        with pytest.raises(Exception, match=r"0 faces for 1 people|sides above 0|of another kind"):
            read(bboxes=given)

    def test_the_host_draws_the_same_meshes_and_boxes(self, read, host_nodes):
        """So they have the host's form."""
        pytest.importorskip("comfy_extras.nodes_mediapipe", reason="ComfyUI 0.23 and newer have face nodes")
        given = landmarks([mesh(20, 20, 5), mesh(60, 30, 8)])
        edges = {"connections": "custom", "nose": True}
        look = {"connections": edges, "color": "#fff", "thickness": 1, "point_size": 0}
        (drawn,) = host_nodes("nodes_mediapipe", "MediaPipeFaceMeshVisualize", face_landmarks=given, **look)
        assert drawn.shape == (1, 64, 96, 3)
        assert drawn.sum() > 0
        (box,) = host_nodes("nodes_images", "BoundingBox", x=48, y=32, width=48, height=64)
        state = [{**box, "metadata": {}}, {"x": 100, "y": 32, "width": 48, "height": 64, "metadata": {}}]
        _, both, *_ = host_nodes(
            "nodes_bounding_boxes", "CreateBoundingBoxes", width=192, height=128, editor_state=state
        )
        assert points(read(bboxes=both)[0])[:1] == pytest.approx(points(read(bboxes=box)[0]), abs=1)
        assert len(read(bboxes=both)[0]) == 2


class TestLibrary:
    def test_a_saved_pose_is_loaded(self, ours, pose, read, faces, portrait, poses_folder):  # noqa: F811
        both = (*pose(angle="left")[0], *read(faceanalysis=faces, image=portrait)[0])
        result = tiny.call(ours["InstantIDSavePose"], pose=both, name="Bar", overwrite=False)
        file = poses_folder / "Bar.json"
        assert result == {"ui": {"text": [str(file)]}, "result": (both,)}
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        load = ours["InstantIDLoadPose"]
        assert load.INPUT_TYPES()["required"]["pose"][0] == ["Bar.json"]
        assert load.VALIDATE_INPUTS(pose="Bar.json") is True
        assert load.VALIDATE_INPUTS() is True  # a link
        loaded, drawn = tiny.call(load, latent=LATENT, pose="Bar.json")
        assert loaded == both
        assert drawn.shape == (1, 128, 192, 3)
        before = load.IS_CHANGED(pose="Bar.json", latent=None)
        with pytest.raises(Exception, match=r"Bar is in .* already"):
            tiny.call(ours["InstantIDSavePose"], pose=both, name="Bar", overwrite=False)
        tiny.call(ours["InstantIDSavePose"], pose=both[:1], name="Bar", overwrite=True)
        assert load.IS_CHANGED(pose="Bar.json", latent=None) != before

    @pytest.mark.parametrize("name", ["", "a/b", "..", "con", " ", "C:x"])
    def test_what_is_no_file_name_is_refused(self, ours, pose, poses_folder, name):  # noqa: F811
        with pytest.raises(Exception, match="cannot be the name of a file"):
            tiny.call(ours["InstantIDSavePose"], pose=pose()[0], name=name, overwrite=True)
        assert not poses_folder.exists()

    def test_no_name_leads_out_of_the_folder(self, ours):
        said = ours["InstantIDLoadPose"].VALIDATE_INPUTS(pose="../../secret.json")
        assert "there is no pose '../../secret.json'" in said
        assert "save one by Save Pose" in said

    @pytest.mark.parametrize(
        ("text", "said"), [("{}", "holds no pose"), ("{", "no library"), (json.dumps({"1": {"x": 5}}), "no library")]
    )
    def test_a_foreign_file_is_named(self, ours, poses_folder, text, said):
        poses_folder.mkdir()
        (poses_folder / "other.json").write_text(text)
        with pytest.raises(Exception, match=rf"other.json.* {said}|other.json: {said}"):
            tiny.call(ours["InstantIDLoadPose"], latent=LATENT, pose="other.json")


class TestTrack:
    def test_each_frame_has_a_picture_and_the_ends_are_the_poses(self, ours, pose):  # noqa: F811
        first, picture = pose(x=0.3, angle="left")
        both, _ = pose(x=0.7, angle="right", before=first)
        (track,) = tiny.call(ours["InstantIDPoseTrack"], latent=FRAMES, pose=both, smoothness=0.0)
        assert track.shape == (5, 128, 192, 3)
        assert torch.equal(track[:1], picture)
        assert torch.equal(track[4:], pose(x=0.7, angle="right")[1])
        assert track[:, :, :, 2].flatten(1).argmax(dim=1).unique().numel() == 5, "each has another place"

    def test_frames_with_one_person_each(self, ours, pose, find, apply_person, portraits):  # noqa: F811
        (track,) = tiny.call(ours["InstantIDPoseTrack"], latent=FRAMES, pose=pose()[0], smoothness=0.0)
        _, conditioned, _ = apply_person(find(portraits[:1])[0], image_kps=track, latent=FRAMES)
        assert torch.equal(conditioned[0][1]["control"].cond_hint_original.movedim(1, -1), track)

    def test_no_pose_is_refused(self, ours):
        with pytest.raises(Exception, match="a track of no poses"):
            tiny.call(ours["InstantIDPoseTrack"], latent=FRAMES, pose=(), smoothness=0.0)
