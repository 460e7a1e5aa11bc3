"""Persons: the embeddings and the face of one individual, independent of any picture to draw."""

from .boxes import numbered
from .choice import Choose, Order, ordered
from .find import find_people, find_person
from .person import Person, cosine, merge
from .search import find_faces

__all__ = ["Choose", "Order", "Person", "cosine", "find_faces", "find_people", "find_person", "merge"]
__all__ += ["numbered", "ordered"]
