"""Nodes for persons: find, keep, join and compare them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from ..errors import FastInstantIDError
from ..faces import FaceAnalyzer
from ..images import photos
from ..people import Order, Person, find_people, find_person, likeness_in, likeness_word, merge, numbered
from .apply import Conditioning
from .faces import searched
from .library import PERSON_FILES
from .people import People, said, save
from .sockets import FACE_ANALYSIS, INDEX, OVERWRITE, PERSON, Inputs, choice, decimal, entry, inputs, numbers


class _PersonNode:
    CATEGORY = "InstantID/people"


class InstantIDPerson(_PersonNode):
    """Finds one person, or several, in photographs. Numbers in the preview are those of choose: index."""

    RETURN_TYPES = ("PERSON", "IMAGE", "BOOLEAN", "STRING")
    RETURN_NAMES = ("person", "preview", "has_face", "report")
    FUNCTION = "find"
    SEARCH_ALIASES = ("choose face", "group photo", "face embedding", "which face", "no face")
    INPUT_TYPES = inputs(
        faceanalysis=FACE_ANALYSIS,
        image=entry("IMAGE", "Photographs."),
        group=choice(
            ("one person", "one person per photo", "all faces"),
            "One person in all photographs, another person in each, or all faces, from left to right.",
        ),
        choose=choice(
            [*get_args(Order), "index", "like"],
            "The face of a photograph with several. index: number index from the left. like: the most like a person.",
        ),
        no_face=choice(
            ["error", "skip", "none"],
            "For photographs without a face. skip: leave them out. none: draw their pictures without a person.",
        ),
        doubtful=choice(
            ["keep", "drop", "robust"],
            "Photographs that hardly show the person: keep them, drop them, or count them less.",
        ),
        optional={
            "name": entry("STRING", "Name of the person.", default=""),
            "weights": entry(
                "STRING", "How much each photograph counts, such as 1, 0.5. Empty: all alike.", default=""
            ),
            "index": INDEX,
            "like": entry("PERSON", "The person for choose: like."),
        },
    )

    def find(
        self,
        faceanalysis: Any,
        image: Tensor,
        group: str,
        choose: Any,
        no_face: Any,
        doubtful: str,
        name: str = "",
        weights: str = "",
        index: int = 0,
        like: People | None = None,
    ) -> dict[str, Any]:
        analyzer, pictures, found = searched(faceanalysis, image)
        missing = [photo.name for photo, faces in zip(pictures, found, strict=True) if not faces]
        if choose == "like":
            choose = next((person for person in like or () if person is not None), None)
            if choose is None:
                raise FastInstantIDError("choose is like, but no person is connected to like")
        options: dict[str, Any] = {"choose": index if choose == "index" else choose, "no_face": no_face}
        if group == "one person":
            options |= {
                "name": name or None,
                "weights": numbers(weights, float, "weights", "numbers, such as 1, 0.5") or None,
            }
            people: list[Person | None] = [find_person(analyzer, pictures, faces=found, **options)]
        else:
            if missing and no_face == "error":
                find_person(analyzer, pictures, faces=found)  # an error that names all of them
            kept = [(photo, faces) for photo, faces in zip(pictures, found, strict=True) if faces or no_face == "none"]
            if group == "all faces":
                people = [one for photo, faces in kept for one in find_people(analyzer, photo, faces=faces) or [None]]
            else:
                people = [find_person(analyzer, [photo], faces=[faces], **options) for photo, faces in kept]
            if name:
                people = [one and replace(one, name=f"{name} {number}") for number, one in enumerate(people, 1)]
        if doubtful != "keep":
            people = [one and (one.robust() if doubtful == "robust" else one.without(one.outliers())) for one in people]
        boxes = [numbered(photo.rgb, faces) for photo, faces in zip(pictures, found, strict=True)]
        preview = torch.from_numpy(np.stack([np.asarray(box) for box in boxes])).float().div(255)
        report = said(tuple(people)) + (f"\nno face found in {', '.join(missing)}" if missing else "")
        return _reported(tuple(people), preview, any(people), report)


class InstantIDLoadPerson(_PersonNode):
    """Loads a person from models/instantid/people. No face models are needed."""

    RETURN_TYPES = ("PERSON", "IMAGE")
    RETURN_NAMES = ("person", "picture")
    FUNCTION = "load"
    SEARCH_ALIASES = ("load face", "saved face", "character")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"person": entry(PERSON_FILES.names(), "A file in models/instantid/people.")}}

    @classmethod
    def VALIDATE_INPUTS(cls, person: str | None = None) -> bool | str:
        return PERSON_FILES.check(person)

    @classmethod
    def IS_CHANGED(cls, person: str | None = None) -> str:
        return PERSON_FILES.version(person)

    def load(self, person: str) -> tuple[People, Tensor]:
        loaded = Person.load(PERSON_FILES.path(person))
        picture = np.zeros((112, 112, 3), np.uint8) if loaded.picture is None else np.array(loaded.picture)
        return (loaded,), torch.from_numpy(picture).float().div(255)[None]


class InstantIDSavePerson(_PersonNode):
    """Keeps a person in models/instantid/people, for Load Person. The file is biometric data."""

    RETURN_TYPES = ("PERSON",)
    RETURN_NAMES = ("person",)
    FUNCTION = "save"
    OUTPUT_NODE = True
    SEARCH_ALIASES = ("save face", "face embeds", "character")
    INPUT_TYPES = inputs(
        person=PERSON,
        name=entry("STRING", "Name of the file. Empty: the person's name.", default=""),
        overwrite=OVERWRITE,
    )

    def save(self, person: People, name: str, overwrite: bool) -> dict[str, Any]:
        paths = save(person, name, overwrite)
        return {"ui": {"text": [str(path) for path in paths]}, "result": (person,)}


class InstantIDJoinPeople(_PersonNode):
    """Joins persons: a batch that draws one picture of each, or one person of all their photographs."""

    RETURN_TYPES = ("PERSON",)
    RETURN_NAMES = ("person",)
    FUNCTION = "join"
    SEARCH_ALIASES = ("batch of people", "merge faces", "many people")
    INPUT_TYPES = inputs(
        first=PERSON,
        second=PERSON,
        how=choice(
            ("one picture each", "one person"),
            "A batch that draws one picture of each, or one person of all photographs.",
        ),
    )

    def join(self, first: People, second: People, how: str) -> tuple[People]:
        people = (*first, *second)
        return (people if how == "one picture each" else (merge([one for one in people if one is not None]),),)


class InstantIDLikeness(_PersonNode):
    """How much pictures show a person: the cosine of face embeddings, and a word. The best picture first."""

    RETURN_TYPES = ("IMAGE", "FLOAT", "BOOLEAN", "STRING")
    RETURN_NAMES = ("image", "likeness", "is_alike", "report")
    FUNCTION = "compare"
    SEARCH_ALIASES = ("similarity", "same face", "face distance", "keep the best", "compare people")
    INPUT_TYPES = inputs(
        person=PERSON,
        shown=choice(
            ("one person each", "all persons"), "Each picture shows one person of a batch, or all persons of the batch."
        ),
        at_least=decimal(0.3, -1.0, 1.0, "Likeness from which is_alike is true."),
        optional={
            "image": entry("IMAGE", "Pictures of the person."),
            "faceanalysis": entry("FACEANALYSIS", "From InstantID Face Analysis, for image."),
            "other": entry("PERSON", "A person to compare with, in place of pictures."),
        },
    )

    def compare(
        self,
        person: People,
        shown: str,
        at_least: float,
        image: Tensor | None = None,
        faceanalysis: Any = None,
        other: People | None = None,
    ) -> dict[str, Any]:
        people = [one for one in person if one is not None]
        others = [one for one in other or () if one is not None]
        if not people or (other is not None and not others):
            raise FastInstantIDError("no person to compare: no face was found")
        if others:
            pairs = [(one, each, one.likeness(each)) for one in people for each in others]
            best = max(value for *_, value in pairs)
            lines = [f"{one.name} and {each.name}: {_with_word(value)}" for one, each, value in pairs]
            return _reported(image, best, best >= at_least, "\n".join(lines))
        if image is None or faceanalysis is None:
            raise FastInstantIDError("nothing to compare: connect image and faceanalysis, or a person to other")
        analyzer, pictures = FaceAnalyzer.wrap(faceanalysis), photos(image)
        if shown == "all persons" or len(person) == 1:
            given, rows = [people] * len(pictures), likeness_in(analyzer, pictures, people)
        else:
            given = [[one] if (one := person[i % len(person)]) else [] for i in range(len(pictures))]
            rows = [likeness_in(analyzer, [p], g)[0] if g else [] for p, g in zip(pictures, given, strict=True)]
        least, lines = list[float](), list[str]()
        for photo, who, row in zip(pictures, given, rows, strict=True):
            least.append(float(np.min(row)) if len(row) else math.nan)
            said = [f"{one.name} {_with_word(float(value))}" for one, value in zip(who, row, strict=True)]
            lines.append(f"{photo.name}: {', '.join(said) or 'no person'}")
        order = sorted(range(len(least)), key=lambda number: math.inf if math.isnan(least[number]) else -least[number])
        best = least[order[0]]
        return _reported(image[order], best, best >= at_least, "\n".join(lines[number] for number in order))


class InstantIDPrompts(_PersonNode):
    """Encodes one prompt for each picture of a batch: a prompt in each line."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    SEARCH_ALIASES = ("batch of prompts", "prompt list", "clip text encode")
    INPUT_TYPES = inputs(
        clip=entry("CLIP", "The text encoders of the model."),
        prompts=entry("STRING", "Prompts, one in each line, for the pictures of a batch.", multiline=True, default=""),
    )

    def encode(self, clip: Any, prompts: str) -> tuple[Conditioning]:
        texts = [line.strip() for line in prompts.splitlines() if line.strip()] or [""]
        encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for text in texts]
        # The host repeats texts of several lengths to their least common multiple, when it joins them.
        length = int(np.lcm.reduce([text.shape[1] for text, _ in encoded]))
        joined = torch.cat([text.repeat(1, length // text.shape[1], 1) for text, _ in encoded])
        options = dict(encoded[0][1])
        if options.get("pooled_output") is not None:
            options["pooled_output"] = torch.cat([given["pooled_output"] for _, given in encoded])
        return ([[joined, options]],)


def _reported(*outputs: Any) -> dict[str, Any]:
    """Return the outputs of a node, the last of which the page shows in the node (web/js/report.js)."""
    return {"ui": {"text": [outputs[-1]]}, "result": outputs}


def _with_word(value: float) -> str:
    return f"{value:.2f} ({likeness_word(value)})" if value == value else likeness_word(value)
