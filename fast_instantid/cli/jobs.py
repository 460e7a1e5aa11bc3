"""The pictures that ``generate`` is asked for: jobs from options, a CSV file or a picture; and what was drawn."""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from glob import glob
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ..errors import MALFORMED, FastInstantIDError
from .output import PICTURE_SUFFIXES, text_in

_SUFFIXES = (".safetensors", *PICTURE_SUFFIXES)
_OF_THE_RUN = ("profile", "scheduler", "lora", "controlnet", "identity_net")  # no columns of a CSV file
NO_GATE: dict[str, Any] = {"at_least": None, "tries": 4}


@dataclass(frozen=True)
class Job:
    """One picture. ``person`` is the file of a person or a scene, or a photograph; other fields are options."""

    person: str
    prompt: str
    seed: int
    negative_prompt: str
    scale: float
    controlnet_conditioning_scale: float
    num_inference_steps: int
    guidance_scale: float
    noise: float
    size: tuple[int, int] | None
    keypoints: str = ""
    image: str = ""
    strength: float = 0.8
    at_least: float | None = None
    tries: int = 4
    profile: str = ""
    scheduler: str = ""
    lora: tuple[tuple[str, float], ...] = ()
    controlnet: tuple[tuple[str, str, float], ...] = ()
    enhance_non_face_region: bool = False
    identity_net: bool = True
    digits: ClassVar[int] = 8  # of the hash in the file's name

    @property
    def file_name(self) -> str:
        """Name of the person, the seed, and a hash of all settings: the same job always has the same file."""
        stem = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in Path(self.person).stem)
        stem = stem[:60].encode()[:180].decode(errors="ignore")  # a file's name has at most 255 bytes
        known = sys.getfilesystemencoding()  # not every locale has all letters
        stem = stem.encode(known, "replace").decode(known).replace("?", "_")
        text = json.dumps(self.settings, sort_keys=True)
        return f"{stem}-{str(self.seed)[:20]}-{hashlib.sha256(text.encode()).hexdigest()[: self.digits]}.png"

    @property
    def settings(self) -> dict[str, Any]:
        """All fields but those at their default here. A new field leaves the names of old pictures as they are."""
        return {x.name: getattr(self, x.name) for x in fields(self) if getattr(self, x.name) != x.default}

    @property
    def batch(self) -> tuple[Any, ...]:
        """Jobs of equal values can be drawn in one batch."""
        sampling = self.num_inference_steps, self.guidance_scale, self.controlnet_conditioning_scale, self.size
        return *sampling, bool(self.image), self.strength, self.at_least, self.tries, self.enhance_non_face_region


class LongNamed(Job):  # where the usual name is that of another job
    digits = 16


class Drawn(NamedTuple):
    """A picture, the job that draws it again, its likeness if that was asked for, and whether it shows no person."""

    image: Any
    job: Job
    likeness: float | None = None
    nobody: bool = False

    @property
    def text(self) -> str:
        """The settings as JSON, for the PNG."""
        more = {"likeness": self.report.get("likeness"), "no_face": "none" if self.nobody else None}
        return json.dumps(self.job.settings | {k: v for k, v in more.items() if v is not None}, sort_keys=True)

    @property
    def report(self) -> dict[str, Any]:
        """What is said of the picture: likeness, its word and the seed, or that it shows no person."""
        from ..people import likeness_word

        if self.likeness is None:
            return {"note": "no face: drawn without a person"} if self.nobody else {}
        value = None if math.isnan(self.likeness) else self.likeness
        return {"likeness": value, "word": likeness_word(self.likeness), "kept_seed": self.job.seed}


def picture_size(text: str) -> tuple[int, int]:
    """Convert ``1024x768`` to ``(width, height)``."""
    sides = [int(side) if re.fullmatch("[0-9]{1,5}", side) else 0 for side in text.lower().split("x")]
    if len(sides) != 2 or any(not 0 < side <= 16384 or side % 8 for side in sides):
        expected = "expected WIDTHxHEIGHT in multiples of 8 up to 16384, such as 1024x1024"
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: {expected}")
    return sides[0], sides[1]


_READERS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "float | None": (float, "a number"),
    "bool": (lambda given: {"true": True, "false": False}[str(given).lower()], "true or false"),
    "tuple[int, int] | None": (picture_size, "a size"),
    **dict.fromkeys(("tuple[tuple[str, float], ...]", "tuple[tuple[str, str, float], ...]"), (list, "a list")),
}
"""Type of a field -> how it is read, and what is expected."""
_TYPES = {field.name: field.type for field in fields(Job)}


def _value(name: str, given: Any) -> Any:
    """The value of a field from the text of a CSV file, or from a picture's settings."""
    read, expected = _READERS.get(_TYPES.get(name), (str, "text"))
    try:
        return read(given)
    except MALFORMED:
        raise ValueError(f"{name} {str(given)[:80]!r}: expected {expected}") from None


def people_of(sources: Iterable[str]) -> list[str]:
    """Files of persons and scenes, and photographs, of files, folders and patterns with ``*``.

    Raises:
        FastInstantIDError: a source without any.
    """
    found: list[str] = []
    for source in sources:
        paths = sorted(glob(source)) if "*" in source and not Path(source).exists() else [source]
        for path in paths:
            inside = sorted(Path(path).iterdir()) if Path(path).is_dir() else [Path(path)]
            suffixes = _SUFFIXES if Path(path).is_dir() else (*_SUFFIXES, ".json")
            # Without hidden files of a folder, such as those that macOS writes beside pictures on other disks.
            shown = [file for file in inside if not file.name.startswith(".") or not Path(path).is_dir()]
            paths = [str(file) for file in shown if file.suffix.lower() in suffixes]
            found += paths
        if not found or not paths:
            raise FastInstantIDError(f"{source}: no person file (.safetensors), scene (.json) or photograph there")
    return list(dict.fromkeys(found))


def from_options(defaults: Job, people: Sequence[str], prompts: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Every person with every prompt and seed."""
    return [
        replace(defaults, person=person, prompt=prompt, seed=seed)
        for person, prompt, seed in product(people, prompts, seeds)
    ]


def from_csv(
    path: Path, defaults: Job, prompts: Sequence[str] = (), seeds: Sequence[int] = ()
) -> list[Job | dict[str, str]]:
    """The rows of a CSV file as jobs; a row that is no job as its report.

    Args:
        defaults: for columns that are missing or empty.
        prompts, seeds: of a row that names none: it becomes a job for each pair of them.

    Raises:
        FastInstantIDError: no such file, no CSV, no rows, or unknown columns; says which there are.
    """
    names = [name for name in _TYPES if name not in _OF_THE_RUN]
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), restkey="", strict=True)
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else f"cannot be read as CSV in UTF-8: {error}"
        raise FastInstantIDError(f"{path}: {why}; expected a table of jobs, a CSV file in UTF-8") from error
    if not rows:
        raise FastInstantIDError(f"{path}: no jobs: expected a line with names of columns, and one line for each job")
    if unknown := sorted({str(name) for _, row in rows for name in row} - {*names, ""}):
        raise FastInstantIDError(f"{path}: unknown columns {', '.join(unknown)}: choose from {', '.join(names)}")
    columns = [name for name in reader.fieldnames or () if name]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise FastInstantIDError(f"{path}: several columns are named {', '.join(twice)}: rename or remove all but one")
    jobs: list[Job | dict[str, str]] = []
    for number, row in rows:
        given = {name: text.strip() for name, text in row.items() if name and text and text.strip()}
        try:
            if row.get(""):
                raise ValueError("it has more values than there are columns")
            job = replace(defaults, **{name: _value(name, text) for name, text in given.items()})
            if missing := [name for name in ("person", "prompt") if not getattr(job, name)]:
                raise ValueError(f"it names no {' and no '.join(missing)}")
            files = [name for name in ("person", "keypoints", "image") if name in given]  # beside the CSV file
            job = replace(job, **{name: str(path.parent / given[name]) for name in files})
            jobs += from_options(
                job,
                [job.person],
                [job.prompt] if "prompt" in given else prompts or [job.prompt],
                [job.seed] if "seed" in given else seeds or [job.seed],
            )
        except (ValueError, argparse.ArgumentTypeError) as error:
            jobs.append({"status": "failed", **given, "error": f"{path.name}, line {number}: {error}"})
    return jobs


def settings_of(path: Path) -> dict[str, Any]:
    """Read the settings that a picture of ``generate`` was drawn with.

    Raises:
        FastInstantIDError: no PNG, or none with settings.
    """
    settings = text_in(path, "settings")
    try:
        names = {*_TYPES, "no_face"}
        given = {name: value for name, value in settings.items() if name in names and value is not None}
        if "size" in given:
            given["size"] = "x".join(map(str, given["size"]))
        return {name: _value(name, value) for name, value in given.items()}
    except (*MALFORMED, argparse.ArgumentTypeError) as error:
        raise FastInstantIDError(f"{path}: no settings in it: expected a PNG that 'generate' wrote") from error


def keypoints_in(path: str) -> tuple[Any, tuple[int, int]]:
    """Read the keypoints of a picture that the command ``keypoints`` wrote, else the picture; and its size.

    Raises:
        ImageError: no picture.
    """
    import numpy as np

    from ..images import load_image

    image = load_image(path)
    with suppress(ValueError, TypeError):
        points = np.array(text_in(Path(path), "keypoints"), np.float32)
        if points.shape == (len(points), 5, 2) and len(points) and np.isfinite(points).all():
            return [*points], image.size
    return image, image.size
