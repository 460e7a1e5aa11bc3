"""The people of a call, in every form that they are given in, as Subjects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from ..errors import FastInstantIDError
from ..faces import sdxl_size
from ..identity import Identity
from ..people import DEFAULT_WEIGHT, Person, Scene, Subject
from ..people.face_box import Box, face_box_in

_One: TypeAlias = "Identity | Person | Subject"
People: TypeAlias = "_One | Scene | Sequence[_One] | Sequence[Sequence[_One]]"
"""Of all pictures of a call, or of each."""
_EXPECTED = "expected a Person, which instantid.person(photo) finds, an Identity or a Subject"


def as_pictures(
    people: Any,
    weight: float | None,
    identify: Callable[[Any], Identity | None] = lambda _: None,
    face_box: Callable[[Any], Box | None] | None = None,
) -> list[list[tuple[Identity, Subject]]]:
    """Return the identity and Subject of each person, for every argument that ``InstantID.attach`` accepts.

    Args:
        people: one identity, person or Subject, or several; a Scene; or a list for each picture of a batch.
        weight: of all but Subjects.
        identify: returns the identity of a Person; None for anything else.
        face_box: returns the box of a Person's face, for the Subject.

    Returns:
        one list for all pictures, or one for each picture, of equal lengths.

    Raises:
        FastInstantIDError: an empty list, another type, pictures of different numbers of people or photographs, or a
            weight beside Subjects that have their own.
    """
    people = people.subjects if isinstance(people, Scene) else people
    pictures = [
        _as_subjects(picture, weight, identify, face_box) for picture in (people if is_nested(people) else [people])
    ]
    if len({tuple(identity.tokens.shape for identity, _ in picture) for picture in pictures}) > 1:
        numbers = ", ".join(str(len(picture)) for picture in pictures)
        raise FastInstantIDError(
            f"pictures of {numbers} people: one batch draws equally many in each picture, of equal kinds; draw the "
            "others apart"
        )
    return pictures


def is_nested(people: Any) -> bool:
    """Whether people are given as one list for each picture."""
    return isinstance(people, (list, tuple)) and bool(people) and all(isinstance(x, (list, tuple)) for x in people)


def flat(people: Any) -> list[Any]:
    """All people of all pictures."""
    given = list(people) if isinstance(people, Sequence) and not isinstance(people, str) else [people]
    return [one for picture in given for one in picture] if is_nested(people) else given


def face_box_of(person: Any, size: tuple[int, int] | None = None) -> Box | None:
    """The box of a Person's face in the keypoint picture that their photograph gives; None for anything else.

    Args:
        size: ``(width, height)`` of the picture; that of SDXL in the photograph's shape by default.
    """
    if not isinstance(person, Person):
        return None
    return face_box_in(person.face, person.photo_size, size or sdxl_size(person.photo_size))


def _as_subjects(
    people: Any, weight: float | None, identify: Callable[[Any], Identity | None], face_box: Any
) -> list[tuple[Identity, Subject]]:
    """As :func:`as_pictures`, for the people of one picture."""
    given = list(people) if isinstance(people, Sequence) and not isinstance(people, str) else [people]
    if not given:
        raise FastInstantIDError(f"no person to attach: {_EXPECTED}")
    if weight is not None and any(isinstance(item, Subject) for item in given):
        raise FastInstantIDError("Subjects have weights of their own: give Subject(identity, weight=...)")
    default = DEFAULT_WEIGHT if weight is None else weight
    subjects: list[tuple[Identity, Subject]] = []
    for item in given:
        person = item.identity if isinstance(item, Subject) else item
        identity = person if isinstance(person, Identity) else identify(person)
        if identity is None:
            raise FastInstantIDError(f"cannot attach a {type(person).__name__}: {_EXPECTED}")
        subject = item if isinstance(item, Subject) else Subject(identity, default)
        if face_box is not None and len(given) == 1 and subject.face_box is None:
            subject = replace(subject, face_box=face_box(person))
        subjects.append((identity, subject))
    return subjects
