"""Persons: the embeddings and the face of one individual, independent of any picture to draw."""

from .choice import Choose, Order, ordered
from .find import find_people, find_person
from .likeness import likeness_in, likeness_word
from .person import Person, cosine, merge

__all__ = ["Choose", "Order", "Person", "cosine", "find_people", "find_person", "merge", "ordered"]
__all__ += ["likeness_in", "likeness_word"]
