"""Who somebody is, apart from any picture that is drawn."""

from .person import Person, find_person

__all__ = ["Person", "find_person"]
