"""Many pictures in one run: jobs from options or a CSV file, drawn in batches, with a report; a run can be resumed."""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from glob import glob
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FastInstantIDError
from ..files import atomic_write
from ..recorder import stage
from .output import PICTURE_SUFFIXES, progress, say

if TYPE_CHECKING:
    from PIL import Image

    from ..people import Person

_CHUNK = "fast-instantid"
"""Key of the PNG text with the settings of a picture, as JSON."""
_SUFFIXES = (".safetensors", *PICTURE_SUFFIXES)
_REPORT = "report.csv"


@dataclass(frozen=True)
class Job:
    """One picture. ``person`` is a person's file or a photograph; the other fields are options of ``generate``."""

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

    @property
    def file_name(self) -> str:
        """Name of the person, the seed, and a hash of all settings: the same job always has the same file."""
        stem = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in Path(self.person).stem)
        return f"{stem[:60]}-{self.seed}-{hashlib.sha256(self.text.encode()).hexdigest()[:8]}.png"

    @property
    def text(self) -> str:
        """All settings as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def batch(self) -> tuple[Any, ...]:
        """Jobs of equal values can be drawn in one batch."""
        return self.num_inference_steps, self.guidance_scale, self.controlnet_conditioning_scale, self.size


def people_of(sources: Iterable[str]) -> list[str]:
    """Person files and photographs of files, folders and patterns with ``*``.

    Raises:
        FastInstantIDError: a source without any.
    """
    found: list[str] = []
    for source in sources:
        paths = sorted(glob(source)) if "*" in source and not Path(source).exists() else [source]
        for path in paths:
            inside = sorted(Path(path).iterdir()) if Path(path).is_dir() else [Path(path)]
            paths = [str(file) for file in inside if file.suffix.lower() in _SUFFIXES]
            found += paths
        if not found or not paths:
            raise FastInstantIDError(f"{source}: no person file (.safetensors) and no photograph there")
    return list(dict.fromkeys(found))


def from_options(defaults: Job, people: Sequence[str], prompts: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Every person with every prompt and seed."""
    return [
        replace(defaults, person=person, prompt=prompt, seed=seed)
        for person, prompt, seed in product(people, prompts, seeds)
    ]


def from_csv(path: Path, defaults: Job, convert: dict[str, Callable[[str], Any]]) -> list[Job | dict[str, str]]:
    """The rows of a CSV file as jobs; a row that is no job as its report.

    Args:
        defaults: for columns that are missing or empty.
        convert: functions from text for columns that are not text.

    Raises:
        FastInstantIDError: no such file, no CSV, no rows, or unknown columns; says which there are.
    """
    names = [field.name for field in fields(Job)]
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), restkey="", strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise FastInstantIDError(f"{path}: cannot be read as CSV in UTF-8: {error}") from error
    if not rows:
        raise FastInstantIDError(f"{path}: no jobs: expected a line with names of columns, and one line for each job")
    if unknown := sorted({str(name) for row in rows for name in row} - {*names, ""}):
        raise FastInstantIDError(f"{path}: unknown columns {', '.join(unknown)}: choose from {', '.join(names)}")
    jobs: list[Job | dict[str, str]] = []
    for number, row in enumerate(rows, 2):
        given = {name: text.strip() for name, text in row.items() if name and text and text.strip()}
        try:
            if row.get(""):
                raise ValueError("it has more values than there are columns")
            job = replace(defaults, **{name: convert.get(name, str)(text) for name, text in given.items()})
            if not job.person or not job.prompt:
                raise ValueError("it names no person or no prompt")
            if "person" in given:  # beside the CSV file
                job = replace(job, person=str(path.parent / job.person))
            jobs.append(job)
        except (ValueError, argparse.ArgumentTypeError) as error:
            jobs.append({"status": "failed", **given, "error": f"line {number}: {error}"})
    return jobs


def settings_of(path: Path) -> dict[str, Any]:
    """Read the settings that a picture of ``generate`` was drawn with.

    Raises:
        FastInstantIDError: no PNG, or none with settings.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            settings = json.loads(getattr(image, "text", {})[_CHUNK])
        names = {field.name for field in fields(Job)}
        return {name: value for name, value in settings.items() if name in names}
    except (OSError, ValueError, KeyError, AttributeError, Image.DecompressionBombError) as error:
        raise FastInstantIDError(f"{path}: no settings in it: expected a PNG that 'generate' wrote") from error


def save(image: Image.Image, path: Path, job: Job) -> None:
    """Write a picture, with its settings if it is a PNG."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(_CHUNK, job.text)
    with stage("save"), atomic_write(path) as temporary:
        if path.suffix.lower() == ".png":
            image.save(temporary, pnginfo=info)
        else:
            image.save(temporary)


def run(
    jobs: Sequence[Job | dict[str, str]],
    folder: Path,
    batch_size: int,
    person_of: Callable[[str], Person],
    draw: Callable[[Sequence[Job], Sequence[Person]], list[Image.Image]],
) -> int:
    """Draw all jobs into a folder, and write ``report.csv`` there. Pictures that are there are kept.

    Args:
        person_of: finds or loads the person of a job.
        draw: draws a batch.

    Returns:
        the exit code: 0 if all pictures are there, else 1.
    """
    rows: dict[int, dict[str, Any]] = {}
    todo: list[tuple[int, Job]] = []
    known = set[str]()
    for number, job in enumerate(jobs):
        if not isinstance(job, Job):
            rows[number] = job
            continue
        rows[number] = {"output": job.file_name, "status": "waiting", **asdict(job)}
        if job.file_name in known:
            rows[number] |= {"status": "failed", "error": "the same job twice"}
        elif (folder / job.file_name).exists():
            rows[number]["status"] = "kept"
        else:
            todo.append((number, job))
        known.add(job.file_name)
    start, drawn, people = time.monotonic(), 0, dict[str, Any]()
    for batch in _batches(todo, batch_size):
        left = (time.monotonic() - start) / drawn * (len(todo) - drawn) if drawn else None
        remaining = "" if left is None else f", {left // 60:.0f}:{left % 60:02.0f} left"
        progress(f"{drawn}/{len(todo)} pictures{remaining}")
        ready: list[tuple[int, Job, Person]] = []
        for number, job in batch:
            try:
                people.setdefault(job.person, None)
                people[job.person] = people[job.person] or person_of(job.person)
                ready.append((number, job, people[job.person]))
            except FastInstantIDError as error:
                rows[number] |= {"status": "failed", "error": str(error)}
        for number, job, result in _drawn(ready, draw):
            if isinstance(result, FastInstantIDError):
                rows[number] |= {"status": "failed", "error": str(result)}
            else:
                save(result, folder / job.file_name, job)
                rows[number]["status"] = "drawn"
        drawn += len(batch)
        _write_report(folder, rows)
    _write_report(folder, rows)
    progress("")
    count = {status: sum(row["status"] == status for row in rows.values()) for status in ("drawn", "kept", "failed")}
    for row in rows.values():
        if row["status"] == "failed":
            say(f"error: {row.get('person', '')}: {row['error']}")
    say(f"{folder}: {', '.join(f'{number} {status}' for status, number in count.items())}; see {_REPORT}")
    return 1 if count["failed"] else 0


def _drawn(ready: Sequence[tuple[int, Job, Person]], draw: Callable[..., list[Image.Image]]) -> Iterable[Any]:
    """Yield number, job, and picture or error. Where a batch fails, each of its jobs is drawn alone."""
    try:
        images = draw([job for _, job, _ in ready], [person for _, _, person in ready]) if ready else []
    except FastInstantIDError as error:
        if len(ready) > 1:
            for one in ready:
                yield from _drawn([one], draw)
        else:
            yield *ready[0][:2], error
        return
    for (number, job, _), image in zip(ready, images, strict=True):
        yield number, job, image


def _batches(jobs: Sequence[tuple[int, Job]], size: int) -> Iterable[list[tuple[int, Job]]]:
    for _, alike in groupby(sorted(jobs, key=lambda item: str(item[1].batch)), key=lambda item: item[1].batch):
        group = list(alike)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _write_report(folder: Path, rows: dict[int, dict[str, Any]]) -> None:
    columns = ["output", "status", "error", *(field.name for field in fields(Job))]
    with atomic_write(folder / _REPORT) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows[number] for number in sorted(rows))
