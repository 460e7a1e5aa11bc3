"""Many pictures in one run: jobs drawn in batches into a folder, with a report; a run can be resumed."""

from __future__ import annotations

import csv
import time
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import FastInstantIDError, NoFaceError
from ..files import atomic_write
from ..scale.run_folder import is_whole
from ..scale.units import Load, Workers, run_units
from .jobs import Drawn, Job, LongNamed
from .output import Remaining, no_memory, print_json, save_picture, say, text_in
from .studio import Studio, is_nobody

if TYPE_CHECKING:
    from ..people import Person, Scene

_REPORT = "report.csv"
_SAID = 20  # errors that are printed; the report has all
_HERE = Workers()
_Unit: TypeAlias = "list[tuple[int, Job]]"  # with the numbers of their rows
_COLUMNS = ("output", "status", "error", "note", "likeness", "word", "kept_seed")  # before those of a job


def run(
    jobs: Sequence[Job | dict[str, str]],
    folder: Path,
    batch_size: int,
    load: Load,
    workers: Workers = _HERE,
    json: bool = False,
) -> int:
    """Draw all jobs into a folder, and write ``report.csv`` there. Pictures that are there are kept.

    Jobs are drawn in batches of the whole list. A batch of which some pictures are there is drawn again whole, since a
    smaller one may round otherwise.

    Args:
        load: returns :func:`draw_batch` with its networks and the folder.
        json: print one JSON document in place of the last line.

    Returns:
        the exit code: 0 if all pictures are there but those of photographs to skip, else 1.
    """
    rows: dict[int, dict[str, Any]] = {}
    alone: list[tuple[int, Job]] = []
    known: dict[str, Job] = {}
    for number, job in enumerate(jobs):
        if not isinstance(job, Job):
            rows[number] = job
            continue
        first, there = known.get(job.file_name, job), text_in(folder / job.file_name, "settings")
        others = (there if isinstance(there, dict) else {}).get("prompt", job.prompt) != job.prompt
        if others or first.settings != job.settings:  # once among some thousand prompts of a person and a seed
            job = LongNamed(**vars(job))
        rows[number] = {"output": job.file_name, "status": "waiting", **job.settings}
        if job.file_name in known:
            rows[number] |= {"status": "failed", "error": "the same job twice"}
        else:
            alone.append((number, job))
        known.setdefault(job.file_name, job)
    earlier = _other_rows(folder, known)
    units = list(_batches(alone, batch_size))
    whole = {job.file_name for _, job in alone if is_whole(folder / job.file_name, _verify)}
    kept = [unit for unit in units if whole.issuperset(job.file_name for _, job in unit)]
    todo = [unit for unit in units if not whole.issuperset(job.file_name for _, job in unit)]
    remaining = Remaining("pictures", sum(map(len, todo)), workers.count)
    due = 0.0

    def done(drawn: list[tuple[int, dict[str, Any]]]) -> None:
        nonlocal due
        for number, row in drawn:
            rows[number] |= row
        if any(row["status"] != "kept" for _, row in drawn):
            remaining.add(len(drawn))
        start = time.monotonic()
        if start >= due:  # writing a long report takes a small part of the time
            _write_report(folder, earlier, rows)
            due = time.monotonic() + 20 * (time.monotonic() - start)

    # Workers load the pipeline. Where none is needed, this process reads the report.
    run_units(kept + todo, load, workers if todo else replace(workers, count=1), done, folder)
    _write_report(folder, earlier, rows)
    remaining.show()
    states = ("drawn", "kept", "failed", "skipped")
    count = {status: sum(row["status"] == status for row in rows.values()) for status in states}
    lacking = [row for row in rows.values() if row["status"] in states[2:]]
    for row in lacking[:_SAID]:
        who = f"{row['person']}: " if row.get("person") and not row["error"].startswith(row["person"]) else ""
        say(f"{'error' if row['status'] == 'failed' else 'skipped'}: {who}{row['error']}")
    if len(lacking) > _SAID:
        say(f"and {len(lacking) - _SAID} more such lines")
    if json:
        print_json({"output": str(folder), **count})
    else:
        say(f"{folder}: {', '.join(f'{number} {status}' for status, number in count.items())}; see {_REPORT}")
    return 1 if count["failed"] else 0


def draw_batch(studio: Studio, folder: Path, unit: _Unit) -> list[tuple[int, dict[str, Any]]]:
    """Draw a batch into ``folder``. Return the number of each row, and what the report says of it."""
    rows: dict[int, dict[str, Any]] = {}
    ready: list[tuple[int, Job, Person | Scene]] = []
    for number, job in unit:
        if (path := folder / job.file_name).exists():
            rows[number] = {"status": "kept"} | _report_of(path, job, studio)
    if len(rows) == len(unit):
        return [*rows.items()]
    for number, job in unit:
        try:
            ready.append((number, job, studio.person(job.person)))
        except FastInstantIDError as error:
            skipped = isinstance(error, NoFaceError) and studio.options.no_face == "skip"
            rows.setdefault(number, {"status": "skipped" if skipped else "failed", "error": str(error)})
    ready.sort(key=lambda one: is_nobody(one[2]))
    parts = [[*part] for _, part in groupby(ready, key=lambda one: is_nobody(one[2]))]
    missing = [part for part in parts if any(number not in rows for number, *_ in part)]
    for number, job, result in (one for part in missing for one in _drawn(part, studio)):
        if number in rows:
            continue
        if isinstance(result, FastInstantIDError):
            rows[number] = {"status": "failed", "error": str(result)}
        else:
            save_picture(result.image, folder / job.file_name, settings=result.text)
            rows[number] = {"status": "drawn"} | result.report
    return [*rows.items()]


def _report_of(path: Path, job: Job, studio: Studio) -> dict[str, Any]:
    """What the report says of a picture that is there. Likeness that is asked for is computed where it lacks."""
    settings = text_in(path, "settings")
    settings = settings if isinstance(settings, dict) else {}  # of another program
    seen = replace(job, seed=settings.get("seed", job.seed))
    drawn = Drawn(None, seen, settings.get("likeness"), "no_face" in settings)
    try:
        if studio.judges(job) and drawn.likeness is None and not drawn.nobody:
            drawn = drawn._replace(likeness=studio.judge(path, studio.person(job.person)))
    except FastInstantIDError as error:
        return {"error": str(error)}
    return drawn.report


def _drawn(ready: Sequence[tuple[int, Job, Person | Scene]], studio: Studio) -> Iterable[Any]:
    """Yield number, job, and Drawn or error. Where a batch fails, each of its jobs is drawn alone."""
    try:
        results: list[Any] = studio.draw([job for _, job, _ in ready], [person for _, _, person in ready])
    except Exception as error:
        told = error if isinstance(error, FastInstantIDError) else no_memory(error)
        if not told:
            raise
        results = [told]
    if len(results) < len(ready):  # here no error holds what was computed
        for one in ready:
            yield from _drawn([one], studio)
        return
    for (number, job, _), result in zip(ready, results, strict=True):
        yield number, job, result


def _batches(jobs: _Unit, size: int) -> Iterable[_Unit]:
    for _, alike in groupby(sorted(jobs, key=lambda item: str(item[1].batch)), key=lambda item: item[1].batch):
        group = list(alike)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _verify(file: Any) -> None:
    from PIL import Image

    with suppress(Image.DecompressionBombError), Image.open(file) as image:
        image.verify()


def _other_rows(folder: Path, outputs: Container[str]) -> list[dict[str, Any]]:
    """What the report says of the pictures of other jobs that are there."""
    with suppress(OSError, ValueError, csv.Error), open(folder / _REPORT, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("output")]
        return [row for row in rows if row["output"] not in outputs and (folder / row["output"]).exists()]
    return []


def _write_report(folder: Path, earlier: Sequence[dict[str, Any]], rows: dict[int, dict[str, Any]]) -> None:
    columns = [*_COLUMNS, *(field.name for field in fields(Job))]
    with atomic_write(folder / _REPORT) as temporary, open(temporary, "w", -1, "utf-8", "backslashreplace", "") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*earlier, *(rows[number] for number in sorted(rows))])
