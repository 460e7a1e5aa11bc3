"""Persons: the embeddings and the face of one individual, independent of any picture to draw."""

from .person import Person, find_person

__all__ = ["Person", "find_person"]
