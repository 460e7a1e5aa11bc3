"""Persons: the embeddings and the face of one individual, independent of any picture to draw."""

from .boxes import numbered
from .choice import Choose, Order, ordered
from .crop import Crop
from .find import find_people, find_person
from .likeness import likeness_in, likeness_word
from .person import Person, cosine, merge
from .pose import AnyPose, Keypoints, Pose
from .scene import Scene, largest_faces, load_scene, scene_of
from .search import find_faces
from .subject import DEFAULT_WEIGHT, MAX_WEIGHT, Subject
from .track import followed, pose_track, smoothed

__all__ = [
    "DEFAULT_WEIGHT",
    "MAX_WEIGHT",
    "AnyPose",
    "Choose",
    "Crop",
    "Keypoints",
    "Order",
    "Person",
    "Pose",
    "Scene",
    "Subject",
    "cosine",
    "find_faces",
    "find_people",
    "find_person",
    "followed",
    "largest_faces",
    "likeness_in",
    "likeness_word",
    "load_scene",
    "merge",
    "numbered",
    "ordered",
    "pose_track",
    "scene_of",
    "smoothed",
]
