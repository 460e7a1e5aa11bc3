"""Nodes for poses from pictures, files and videos."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..errors import FastInstantIDError
from ..faces import Face, FaceAnalyzer
from ..images import photos
from ..people import Keypoints, Pose, find_faces, followed, largest_faces, pose_track, smoothed
from ..people.pose import load_poses, moved_keypoints, save_poses
from . import scene_sockets
from .faces import batches, draw_frames
from .library import POSE_FILES
from .people import size_of
from .scene_nodes import PoseNode, Poses, draw_poses
from .settings import follow_settings

_MESH = [468, 473, 1, 61, 291]  # MediaPipe's middles of the irises, tip of the nose and corners of the mouth
_AHEAD = Pose(x=0, y=0, size=1).keypoints((1, 1))
_LOW = 0.08  # of a box's height, from its middle to that of the keypoints: an estimate, MediaPipe's 0.02, SCRFD's more
_HEIGHT = 1.3  # of a face, in widths


class InstantIDPoseFromImage(PoseNode):
    """Takes the poses of the faces in a picture, moved, turned or mirrored; of a video, one in each frame."""

    SEARCH_ALIASES = ("pose of a photo", "face landmarks", "mediapipe", "bounding box", "video pose", "mirror pose")
    INPUT_TYPES = staticmethod(scene_sockets.pose_from_image)

    def pose(
        self,
        latent: dict[str, Any],
        faces: int,
        shift_x: float,
        shift_y: float,
        scale: float,
        degrees: float,
        mirror: bool,
        faceanalysis: Any = None,
        image: Tensor | None = None,
        face_landmarks: Any = None,
        bboxes: Any = None,
    ) -> tuple[Poses, Tensor]:
        size = size_of(latent)
        pictures = [] if image is None else photos(image)
        seen = pictures[0].size if pictures else size
        if face_landmarks is not None or bboxes is not None:
            frames, seen = _hosts_faces(face_landmarks, bboxes, seen)
        elif faceanalysis is None or not pictures:
            raise FastInstantIDError("no faces: connect image and faceanalysis, or face_landmarks or bboxes")
        else:
            follow_settings()
            analyzer = FaceAnalyzer.wrap(faceanalysis)
            frames = [found for batch in batches(pictures) for found in find_faces(analyzer, batch)]
        if len(frames) == 1:
            given = [face.kps for face in largest_faces(frames[0], faces or max(1, len(frames[0])), "image")]
        else:
            given = smoothed(followed(frames), 0)
        shift = shift_x * size[0], shift_y * size[1]
        stretch = np.array(size) / seen
        moved = [moved_keypoints(points * stretch, shift, scale, degrees, mirror) for points in given]
        poses = tuple(Keypoints.of(points, size) for points in moved)
        return poses, draw_frames(size, [moved] if len(frames) == 1 else [[points] for points in moved])


class InstantIDLoadPose(PoseNode):
    """Loads poses from models/instantid/poses."""

    SEARCH_ALIASES = ("pose library", "saved pose", "pose preset")

    @classmethod
    def INPUT_TYPES(cls) -> scene_sockets.Inputs:
        return scene_sockets.load_pose(POSE_FILES.names())

    @classmethod
    def VALIDATE_INPUTS(cls, pose: str | None = None) -> bool | str:
        return POSE_FILES.check(pose)

    @classmethod
    def IS_CHANGED(cls, pose: str | None = None, **_: Any) -> str:
        return POSE_FILES.version(pose)

    def pose(self, latent: dict[str, Any], pose: str) -> tuple[Poses, Tensor]:
        path = POSE_FILES.path(pose)
        poses = tuple(load_poses(path).values())
        if not poses:
            raise FastInstantIDError(f"{path} holds no pose: choose another file")
        return poses, draw_poses(latent, poses)


class InstantIDSavePose(PoseNode):
    """Keeps poses in models/instantid/poses, for Load Pose."""

    RETURN_TYPES = ("POSE",)
    RETURN_NAMES = ("pose",)
    FUNCTION = "save"
    OUTPUT_NODE = True
    SEARCH_ALIASES = ("pose library", "pose preset")
    INPUT_TYPES = staticmethod(scene_sockets.save_pose)

    def save(self, pose: Poses, name: str, overwrite: bool) -> dict[str, Any]:
        (path,) = POSE_FILES.new_paths([name], overwrite)
        save_poses(path, {str(number): one for number, one in enumerate(pose, 1)})
        return {"ui": {"text": [str(path)]}, "result": (pose,)}


class InstantIDPoseTrack(PoseNode):
    """A keypoint picture for each frame of a batch: one face that moves smoothly from pose to pose."""

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image_kps",)
    FUNCTION = "track"
    SEARCH_ALIASES = ("animation", "animatediff", "turn head", "key poses", "interpolate poses", "smooth video pose")
    INPUT_TYPES = staticmethod(scene_sockets.pose_track)

    def track(self, latent: dict[str, Any], pose: Poses, smoothness: float) -> tuple[Tensor]:
        track = pose_track(pose, len(latent["samples"]), size_of(latent))
        return (draw_frames(size_of(latent), smoothed(track, smoothness)[:, None]),)


def _hosts_faces(landmarks: Any, boxes: Any, size: tuple[int, int]) -> tuple[list[list[Face]], tuple[int, int]]:
    """Return the faces in each frame of a FACE_LANDMARKS (ComfyUI, comfy_extras/nodes_mediapipe.py) or a BOUNDING_BOX.

    A BOUNDING_BOX is a box, a list, or a list for each frame. The size of the frames follows: of boxes that given.
    """
    try:
        if landmarks is not None:
            height, width = landmarks["image_size"]
            return [[_in_mesh(**face) for face in frame] for frame in landmarks["frames"]], (width, height)
        frames: Any = [[boxes]] if isinstance(boxes, dict) else boxes or [[]]
        frames = [frames] if isinstance(frames[0], dict) else frames
        return [[_in_box(**box) for box in frame] for frame in frames], size
    except (KeyError, IndexError, TypeError, ValueError) as error:
        kind = "bboxes" if landmarks is None else "face_landmarks"
        raise FastInstantIDError(f"{kind} of another kind ({error}): connect those of ComfyUI's own nodes") from error


def _in_mesh(bbox_xyxy: np.ndarray, landmarks_xy: np.ndarray, **_: Any) -> Face:
    return Face(np.asarray(bbox_xyxy), np.asarray(landmarks_xy)[_MESH], 1.0)


def _in_box(x: float, y: float, width: float, height: float, **_: Any) -> Face:
    """Return a face that looks ahead, fitted into a box."""
    if not (width > 0 and height > 0):
        raise FastInstantIDError(f"a box of {width} x {height} in bboxes: expected sides above 0")
    tall = min(height, _HEIGHT * width)
    points = _AHEAD * tall + np.array([x + width / 2, y + height / 2 + _LOW * tall])
    return Face(np.array([x, y, x + width, y + height]), points, 1.0)
