"""Nodes for poses: without a photograph, from pictures, files and videos."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from ..errors import FastInstantIDError
from ..faces import Face
from ..images import photos
from ..people import AnyPose, Keypoints, Pose, followed, largest_faces, pose_track, smoothed
from ..people.pose import ANGLES, load_poses, moved_keypoints, save_poses
from .faces import draw_frames, searched
from .library import POSE_FILES
from .people import size_of
from .sockets import FACE_ANALYSIS, OVERWRITE, Inputs, choice, decimal, entry, inputs

_MESH = [468, 473, 1, 61, 291]  # MediaPipe's middles of the irises, tip of the nose and corners of the mouth
_AHEAD = Pose(x=0, y=0, size=1).keypoints((1, 1))
_LOW = 0.08  # of a box's height, from its middle to that of the keypoints: an estimate, MediaPipe's 0.02, SCRFD's more
_HEIGHT = 1.3  # of a face, in widths
_LATENT = entry("LATENT", "Gives the keypoint picture its size.")

Poses: TypeAlias = tuple[AnyPose, ...]
"""POSE: a pose for each person of a picture, or for each frame of a track."""


class _PoseNode:
    """A node of poses and their keypoint picture."""

    RETURN_TYPES: tuple[str, ...] = ("POSE", "IMAGE")
    RETURN_NAMES: tuple[str, ...] = ("pose", "image_kps")
    FUNCTION = "pose"
    CATEGORY = "InstantID/people"


class InstantIDPose(_PoseNode):
    """Places a face and turns it, without a photograph. Chain several for several persons."""

    SEARCH_ALIASES = ("head angle", "face direction", "yaw pitch roll", "keypoints", "face position")
    INPUT_TYPES = inputs(
        latent=_LATENT,
        angle=choice(ANGLES, "Which way the face looks, as you see it."),
        x=decimal(0.5, 0.0, 1.0, "Middle of the face: 0 is the left side, 1 the right."),
        y=decimal(0.42, 0.0, 1.0, "Middle of the face: 0 is the top, 1 the bottom."),
        size=decimal(0.45, 0.02, 2.0, "Height of the face, as a part of the picture's shorter side."),
        yaw=decimal(0.0, -90.0, 90.0, "Degrees to add: above 0 it looks to the right.", step=1.0),
        pitch=decimal(0.0, -90.0, 90.0, "Degrees to add: above 0 it looks up.", step=1.0),
        roll=decimal(0.0, -90.0, 90.0, "Degrees to add: above 0 it is tilted clockwise.", step=1.0),
        optional={
            "before": entry("POSE", "Poses of the persons before this one."),
            "jitter": decimal(
                0.0, 0.0, 45.0, "Degrees by which the angles vary, for variety; the place varies too.", step=1.0
            ),
            "jitter_seed": entry("INT", "Another number gives another jitter.", default=0, min=0, max=2**32 - 1),
        },
    )

    def pose(
        self,
        latent: dict[str, Any],
        angle: str,
        x: float,
        y: float,
        size: float,
        yaw: float,
        pitch: float,
        roll: float,
        before: Poses = (),
        jitter: float = 0.0,
        jitter_seed: int = 0,
    ) -> tuple[Poses, Tensor]:
        named = Pose.of(angle)
        yaw, pitch = np.clip([named.yaw + yaw, named.pitch + pitch], -90.0, 90.0).tolist()
        pose = Pose(x, y, size, yaw, pitch, named.roll + roll)
        poses = (*before, pose.jittered(jitter_seed, jitter) if jitter else pose)
        return poses, draw_poses(latent, poses)


class InstantIDPoseFromImage(_PoseNode):
    """Takes the poses of the faces in a picture, moved, turned or mirrored; of a video, one in each frame."""

    SEARCH_ALIASES = ("pose of a photo", "face landmarks", "mediapipe", "bounding box", "video pose", "mirror pose")
    INPUT_TYPES = inputs(
        latent=_LATENT,
        faces=entry("INT", "How many: the largest ones, from left to right. 0: all.", default=0, min=0, max=99),
        shift_x=decimal(0.0, -1.0, 1.0, "Moves them to the right, in widths of the picture."),
        shift_y=decimal(0.0, -1.0, 1.0, "Moves them down, in heights of the picture."),
        scale=decimal(1.0, 0.05, 10.0, "Makes each larger or smaller, around its middle.", step=0.05),
        degrees=decimal(0.0, -180.0, 180.0, "Turns each clockwise, around its middle.", step=1.0),
        mirror=entry("BOOLEAN", "Each looks to the other side, at the same place.", default=False),
        optional={
            "faceanalysis": FACE_ANALYSIS,
            "image": entry("IMAGE", "A picture, which is stretched over latent. Of a video, one face in each frame."),
            "face_landmarks": entry(
                "FACE_LANDMARKS", "Of ComfyUI's MediaPipe node, in place of faceanalysis and image."
            ),
            "bboxes": entry(
                "BOUNDING_BOX",
                "Boxes around faces that look ahead, in place of faceanalysis: in pixels of image, or of latent "
                "without an image.",
                forceInput=True,
            ),
        },
    )

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
        seen = size if image is None else photos(image)[0].size
        if face_landmarks is not None or bboxes is not None:
            frames, seen = _hosts_faces(face_landmarks, bboxes, seen)
        elif faceanalysis is None or image is None:
            raise FastInstantIDError("no faces: connect image and faceanalysis, or face_landmarks or bboxes")
        else:
            frames = searched(faceanalysis, image)[2]
        if len(frames) == 1:
            given = [face.kps for face in largest_faces(frames[0], faces or max(1, len(frames[0])), "image")]
        else:
            given = smoothed(followed(frames), 0)
        shift = shift_x * size[0], shift_y * size[1]
        stretch = np.array(size) / seen
        moved = [moved_keypoints(points * stretch, shift, scale, degrees, mirror) for points in given]
        poses = tuple(Keypoints.of(points, size) for points in moved)
        return poses, draw_frames(size, [moved] if len(frames) == 1 else [[points] for points in moved])


class InstantIDLoadPose(_PoseNode):
    """Loads poses from models/instantid/poses."""

    SEARCH_ALIASES = ("pose library", "saved pose", "pose preset")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"latent": _LATENT, "pose": entry(POSE_FILES.names(), "A file in models/instantid/poses.")}}

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


class InstantIDSavePose(_PoseNode):
    """Keeps poses in models/instantid/poses, for Load Pose."""

    RETURN_TYPES = ("POSE",)
    RETURN_NAMES = ("pose",)
    FUNCTION = "save"
    OUTPUT_NODE = True
    SEARCH_ALIASES = ("pose library", "pose preset")
    INPUT_TYPES = inputs(
        pose=entry("POSE", "From InstantID Pose, or another node of poses."),
        name=entry("STRING", "Name of the file.", default=""),
        overwrite=OVERWRITE,
    )

    def save(self, pose: Poses, name: str, overwrite: bool) -> dict[str, Any]:
        (path,) = POSE_FILES.new_paths([name], overwrite)
        save_poses(path, {str(number): one for number, one in enumerate(pose, 1)})
        return {"ui": {"text": [str(path)]}, "result": (pose,)}


class InstantIDPoseTrack(_PoseNode):
    """A keypoint picture for each frame of a batch: one face that moves smoothly from pose to pose."""

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image_kps",)
    FUNCTION = "track"
    SEARCH_ALIASES = ("animation", "animatediff", "turn head", "key poses", "interpolate poses", "smooth video pose")
    INPUT_TYPES = inputs(
        latent=entry("LATENT", "The batch of frames to draw: gives their number and size."),
        pose=entry("POSE", "The poses of one face, one after another, at equal distances in time."),
        smoothness=decimal(0.0, 0.0, 99.0, "Frames over which jitter is smoothed, for poses from a video.", step=0.5),
    )

    def track(self, latent: dict[str, Any], pose: Poses, smoothness: float) -> tuple[Tensor]:
        track = pose_track(pose, len(latent["samples"]), size_of(latent))
        return (draw_frames(size_of(latent), smoothed(track, smoothness)[:, None]),)


def draw_poses(latent: dict[str, Any], poses: Poses) -> Tensor:
    """Return the keypoint picture with all poses, in the size of the pictures that a LATENT becomes."""
    size = size_of(latent)
    return draw_frames(size, [[pose.keypoints(size) for pose in poses]])


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
