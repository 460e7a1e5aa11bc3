"""The commands ``fast-instantid person make | show | merge | compare | export``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FastInstantIDError
from ..observe.table import printable
from ..recorder import stage
from .models import face_analyzer, face_pack
from .options import command, face_options
from .output import PICTURE_SUFFIXES, check_output, output, print_json, save_picture, say

if TYPE_CHECKING:
    from ..people import Person

_ORDERS = "largest, 'left to right', 'right to left', 'top to bottom', 'bottom to top', center or score"


def add_command(commands: Any) -> None:
    text, example = "keep a person in a file, and compare persons", "make anna1.jpg anna2.jpg -o anna.safetensors"
    actions = command(commands, "person", None, text, example).add_subparsers(required=True, metavar="ACTION")
    make = command(actions, "make", _make, "find a person in photographs, and keep it in a file")
    make.add_argument("photos", nargs="+", metavar="PHOTO", help="picture files, all of one person")
    make.add_argument("-o", "--output", type=output, required=True, help="the .safetensors file to write")
    make.add_argument("--name", help="of the person (default: the first photo's)")
    make.add_argument("--notes", default="", help="any text")
    make.add_argument("--weights", type=float, nargs="+", metavar="X", help="how much each photo counts, 0 or more")
    make.add_argument("--choose", default="largest", metavar="FACE", help=f"where a photo has several: {_ORDERS}")
    make.add_argument("--index", type=int, metavar="N", help="take face N, counted from 0 and from the left")
    make.add_argument("--like", type=Path, metavar="FILE", help="take the face most like this person")
    make.add_argument("--no-face", choices=("error", "skip"), default="error", help="for photos without a face")
    make.add_argument("--drop-outliers", action="store_true", help="leave out photos that hardly show this person")
    make.add_argument("--robust", action="store_true", help="weigh the photos so that a wrong one hardly counts")
    make.add_argument("--no-picture", action="store_true", help="keep no picture of the face")
    make.add_argument("--adapter", type=Path, metavar="PATH", help="keep the identity too, made by this adapter")
    face_options(make)

    show = command(actions, "show", _show, "say what person files hold")
    merge = command(actions, "merge", _merge, "make one person of the photographs of several files")
    merge.add_argument("--name", help="of the person (default: the first one's)")
    compare = command(
        actions, "compare", _compare, "print how alike persons and photos are: the cosine of their embeddings"
    )
    face_options(compare)
    export = command(actions, "export", _export, "write a person's embedding, picture or identity to a file of its own")
    for added, text in ((show, ""), (merge, ""), (compare, ", and photos: in each, the face most like the person")):
        added.add_argument("people", nargs="+", type=Path, metavar="FILE", help=f"files of 'person make'{text}")
    for added in (make, show, compare):
        added.add_argument("--json", action="store_true", help="print one JSON document")
    merge.add_argument("-o", "--output", type=output, required=True, help="the .safetensors file to write")
    export.add_argument("people", nargs=1, type=Path, metavar="FILE", help="a file of 'person make'")
    text = "a picture, .npy for the embedding (512 float32), or .safetensors for the identity that it keeps"
    export.add_argument("-o", "--output", type=output, required=True, help=text)


def _make(options: argparse.Namespace) -> int:
    with stage("import"):
        from dataclasses import replace

        from ..identity import Adapter
        from ..people import Person, find_person

    check_output(options.output, (".safetensors",), options.photos)
    choices = [options.index, options.like, None if options.choose == "largest" else options.choose]
    if sum(choice is not None for choice in choices) > 1:
        raise FastInstantIDError("--choose, --index and --like name the same face in different ways: give one of them")
    choose: Any = Person.load(options.like) if options.like else next((c for c in choices if c is not None), "largest")
    analyzer = face_analyzer(options, face_pack(options))
    no_face = "skip" if options.no_face == "skip" else "error"
    person = find_person(
        analyzer, options.photos, choose=choose, name=options.name, weights=options.weights, no_face=no_face
    )
    person = replace(person, notes=options.notes)
    if options.drop_outliers and (dropped := person.outliers()):
        say(f"left out, as hardly alike: photo {', '.join(str(i + 1) for i in dropped)} of {len(person.embeddings)}")
        person = person.without(dropped)
    if options.robust:
        person = person.robust()
    if options.adapter:
        adapter = Adapter.load(options.adapter, options.device, cache=options.cache)
        person = person.with_identity(adapter.identity(person.rows))
    person.save(options.output, picture=not options.no_picture)
    if options.json:
        print_json({"output": str(options.output), **_about(person)})
    else:
        say(f"{options.output}: {_line(person)}")
    return 0


def _show(options: argparse.Namespace) -> int:
    people = _loaded(options.people)
    if options.json:
        print_json([{"file": str(path), **_about(person)} for path, person in zip(options.people, people, strict=True)])
        return 0
    for path, person in zip(options.people, people, strict=True):
        print(f"{printable(str(path))}: {_line(person)}")
    return 0


def _merge(options: argparse.Namespace) -> int:
    from ..people import merge

    check_output(options.output, (".safetensors",))
    person = merge(_loaded(options.people), options.name)
    person.save(options.output)
    say(f"{options.output}: {_line(person)}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from ..people import Person, find_person, likeness_in, likeness_word

    paths = options.people
    if len(paths) < 2:
        raise FastInstantIDError("one person to compare: give two or more files")
    photos = [path for path in paths if path.suffix.lower() in PICTURE_SUFFIXES]
    analyzer: Any = face_analyzer(options, face_pack(options)) if photos else None
    people: dict[Path, Person | None] = {path: Person.load(path) for path in paths if path not in photos}
    for path in photos:
        people[path] = find_person(analyzer, path) if analyzer.detect(path)[0] else None

    def likeness(one: Path, other: Path) -> float:
        a, b = people[one], people[other]
        if a is None or b is None:
            return math.nan
        if (one in photos) is (other in photos):
            return a.likeness(b)
        photo, person = (one, b) if one in photos else (other, a)
        return float(likeness_in(analyzer, photo, [person])[0, 0])

    rows = [(likeness(*pair), *map(str, pair)) for pair in combinations(paths, 2)]
    if options.json:
        told = [(None if math.isnan(value) else round(value, 4), likeness_word(value)) for value, *_ in rows]
        print_json([{"a": a, "b": b, "likeness": x, "word": y} for (_, a, b), (x, y) in zip(rows, told, strict=True)])
        return 0
    for value, a, b in sorted(rows, key=lambda row: 2 if math.isnan(row[0]) else -row[0]):
        print(f"{value:6.3f}  {likeness_word(value):8}  {printable(a)}  {printable(b)}")
    return 0


def _export(options: argparse.Namespace) -> int:
    import numpy as np

    from ..files import atomic_write

    check_output(options.output, (".npy", ".safetensors", *PICTURE_SUFFIXES), options.people)
    (person,) = _loaded(options.people)
    kind = options.output.suffix.lower()
    if kind == ".npy":
        with atomic_write(options.output, private=True) as temporary, open(temporary, "wb") as file:
            np.save(file, person.embedding)
    elif kind == ".safetensors":
        if person.identity is None:
            raise FastInstantIDError(f"{options.people[0]} keeps no identity: make it again with --adapter")
        person.identity.save(options.output)
    elif person.picture is None:
        raise FastInstantIDError(f"{options.people[0]} keeps no picture: make it again without --no-picture")
    else:
        save_picture(person.picture, options.output, private=True)
    say(f"{options.output}: written; like the photographs, it is biometric data")
    return 0


def _loaded(paths: Sequence[Path]) -> list[Person]:
    with stage("import"):
        from ..people import Person
    return [Person.load(path) for path in paths]


def _about(person: Person) -> dict[str, Any]:
    return {
        "name": person.name,
        "photographs": len(person.embeddings),
        "weights": person.weights.tolist(),
        "likeness": person.likeness_table().round(4).tolist(),
        "outliers": person.outliers(),
        "keypoints": person.keypoints.tolist(),
        "photo_size": person.photo_size,
        "recognizer": person.recognizer,
        "picture": person.picture is not None,
        "identity": person.identity is not None,
        "notes": person.notes,
    }


def _line(person: Person) -> str:
    from ..people.person import described

    parts = [repr(person.name), *described(person)]
    parts += ["a picture"] * (person.picture is not None) + ["an identity"] * (person.identity is not None)
    return printable(", ".join(parts + ([person.notes] if person.notes else [])))
