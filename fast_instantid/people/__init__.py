"""Persons: the embeddings and the face of one individual, independent of any picture to draw."""

from .boxes import numbered
from .choice import Choose, Order, ordered
from .crop import Crop
from .find import find_people, find_person
from .likeness import likeness_in, likeness_word
from .person import Person, cosine, merge
from .pose import Pose
from .scene import Scene, scene_of
from .search import find_faces
from .subject import DEFAULT_WEIGHT, MAX_WEIGHT, Subject

__all__ = [
    "DEFAULT_WEIGHT",
    "MAX_WEIGHT",
    "Choose",
    "Crop",
    "Order",
    "Person",
    "Pose",
    "Scene",
    "Subject",
    "cosine",
    "find_faces",
    "find_people",
    "find_person",
    "likeness_in",
    "likeness_word",
    "merge",
    "numbered",
    "ordered",
    "scene_of",
]
