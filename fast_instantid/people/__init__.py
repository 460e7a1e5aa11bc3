"""Persons: the embeddings and the face of one individual, independent of any picture to draw."""

from .boxes import numbered as numbered
from .choice import Choose as Choose, Order as Order, ordered as ordered
from .crop import Crop as Crop
from .find import find_people as find_people, find_person as find_person
from .likeness import likeness_in as likeness_in, likeness_word as likeness_word
from .person import Person as Person, cosine as cosine, merge as merge
from .pose import AnyPose as AnyPose, Keypoints as Keypoints, Pose as Pose
from .scene import Scene as Scene, largest_faces as largest_faces, load_scene as load_scene, scene_of as scene_of
from .search import find_faces as find_faces
from .subject import DEFAULT_WEIGHT as DEFAULT_WEIGHT, MAX_WEIGHT as MAX_WEIGHT, Subject as Subject
from .track import followed as followed, pose_track as pose_track, smoothed as smoothed
