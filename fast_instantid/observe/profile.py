"""A recorded run as a table and as a Chrome trace, which Perfetto opens."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import FastInstantIDError
from ..files import atomic_write, special_file
from ..recorder import Recorder, Span
from .stages import StageTotal, add_up
from .table import cache_words, printable, stage_table

_FORMAT, _VERSION = "fast-instantid profile", 1
_HOST, _DEVICE = 1, 2  # the "processes" of the trace, each with one lane per thread
_LIBRARIES = ("torch", "diffusers", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Profile:
    """A recorded run. Saving and loading gives an equal one."""

    title: str  # what ran, such as the command
    spans: list[Span]  # as in ``Recorder.spans``
    duration: int  # in nanoseconds
    started_at: float  # seconds since 1970
    threads: list[str]  # their names
    dropped: int = 0  # spans beyond the recorder's limit; their time counts for the stages around them
    ended_early: str = ""  # why the run failed or stopped, such as "interrupted"; empty if it succeeded
    about: dict[str, str] = field(default_factory=dict[str, str])  # the machine and the versions

    @classmethod
    def of(cls, recorder: Recorder, title: str = "a run", ended_early: str = "") -> Profile:
        """Make a profile of a stopped recorder; for the texts, see the fields."""
        spans = [
            replace(span, facts={name: _plain(fact) for name, fact in span.facts.items()}) for span in recorder.spans
        ]
        given = (recorder.duration, recorder.started_at, list(recorder.threads), recorder.dropped)
        return cls(title, spans, *given, ended_early, _machine())

    @cached_property
    def whole(self) -> StageTotal:
        """The run and its stages, added up."""
        return add_up(self.spans, self.duration)

    def tree(self) -> str:
        """Format the stages as a table with notes, for a terminal."""
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started_at))
        about = ", ".join([date, *(f"{name} {value}".strip() for name, value in self.about.items())])
        return "\n".join([printable(self.title), printable(about), "", stage_table(self.whole), *self._notes()])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the Chrome trace, atomically. ui.perfetto.dev, chrome://tracing and :meth:`load` read it.

        Raises:
            FastInstantIDError: the name does not end in ``.json``.
            OSError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".json":
            raise FastInstantIDError(f"{path}: the name of a profile must end in .json")
        head = {name: getattr(self, name) for name in _HEAD}
        document = {
            "otherData": {"format": _FORMAT, "version": _VERSION, **head},
            "displayTimeUnit": "ms",
            "traceEvents": list(self._events()),
        }
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        with atomic_write(path) as temporary:
            temporary.write_text(text, "utf-8", errors="backslashreplace")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a file that :meth:`save` wrote.

        Raises:
            FastInstantIDError: the file is damaged, or is not a profile.
            OSError: the file cannot be read.
        """
        path = Path(path)
        if special := special_file(path):
            raise FastInstantIDError(f"{path}: this is {special}, not a file of 'fast-instantid profile'")
        try:
            document = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise FastInstantIDError(f"{path}: not JSON, or cut off ({error}); record it again") from error
        head = document.get("otherData") if isinstance(document, dict) else None
        if not isinstance(head, dict) or (head.get("format"), head.get("version")) != (_FORMAT, _VERSION):
            raise FastInstantIDError(f"{path}: not a file of 'fast-instantid profile' in format {_VERSION}")
        try:
            loaded = cls(spans=list(_spans(document["traceEvents"])), **{name: head[name] for name in _HEAD})
            loaded.tree()  # reads every field
            return loaded
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError) as error:
            raise FastInstantIDError(f"{path}: a damaged profile ({error!r}); record it again") from error

    def _notes(self) -> list[str]:
        """Return sentences that explain the numbers."""
        words, spans = cache_words(self.whole.facts), self.spans
        notes = {
            f"The run ended early ({printable(self.ended_early)}); the table shows it up to then.": self.ended_early,
            "No stage was recorded: no code of fast_instantid ran in this process.": not spans,
            f"The cache had {words} results.": words,
            "'on GPU' is the time of the work there; 'time' is mostly the time to queue it.": any(
                span.device_start is not None for span in spans
            ),
            "Several threads worked: their stages may add up to more than the run.": len(self.threads) > 1,
            f"{self.dropped:,} further stages were not kept; their time is in the stages around them.": self.dropped,
        }
        return [note for note, holds in notes.items() if holds]

    def _events(self) -> Iterator[dict[str, Any]]:
        """Yield the events of Chrome's "Trace Event Format"."""
        on_device = {span.thread for span in self.spans if span.device_start is not None}
        for process, name, lanes in ((_HOST, "host", range(len(self.threads))), (_DEVICE, "GPU", sorted(on_device))):
            if lanes:
                yield {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}
            for lane in lanes:
                args = {"name": self.threads[lane]}
                yield {"ph": "M", "name": "thread_name", "pid": process, "tid": lane, "args": args}
        for span in self.spans:
            args: dict[str, Any] = {"parent": span.parent, **({"facts": span.facts} if span.facts else {})}
            if span.device_start is not None:
                args["device"] = [span.device_start, span.device_duration]
            yield _event(span, _HOST, span.start, span.duration, args)
        ends: list[tuple[int, int]] = []
        for span in self.spans:
            # The device's clock has an error of microseconds; viewers need inner events inside the outer one.
            low, high = ends[span.parent] if span.parent >= 0 else (0, sys.maxsize)
            if span.device_start is None or span.device_duration is None:
                ends.append((low, high))
                continue
            start = min(max(span.device_start, low), high)
            ends.append((start, min(max(span.device_start + span.device_duration, start), high)))
            yield _event(span, _DEVICE, start, ends[-1][1] - start, {})


_HEAD = ("title", "duration", "started_at", "threads", "dropped", "ended_early", "about")


def _spans(events: list[dict[str, Any]]) -> Iterator[Span]:
    count = 0
    for event in events:
        if event["ph"] == "X" and event["pid"] == _HOST:
            args = event["args"]
            if not -1 <= args["parent"] < count:
                raise ValueError(f"stage {count} is inside one that does not come before it")
            start, duration = round(1000 * event["ts"]), round(1000 * event["dur"])
            device, facts = args.get("device", (None, None)), args.get("facts", {})
            yield Span(event["name"], args["parent"], event["tid"], start, duration, *device, facts=facts)
            count += 1


def _event(span: Span, process: int, start: int, duration: int, args: dict[str, Any]) -> dict[str, Any]:
    """A complete event. Its times are microseconds, with fractions for the nanoseconds."""
    times = {"ts": start / 1000, "dur": duration / 1000}
    return {"ph": "X", "name": span.name, "cat": "stage", "pid": process, "tid": span.thread, **times, "args": args}


def _plain(fact: Any) -> float | str:
    """Convert a fact to JSON: numbers of other libraries to Python's, infinities and NaN to text."""
    if isinstance(fact, (str, int)):
        return int(fact) if isinstance(fact, int) else fact
    number = float(fact)
    return number if math.isfinite(number) else str(number)


def _machine() -> dict[str, str]:
    """Describe the machine and the libraries that are loaded already; importing more would be slow."""
    from .. import __version__

    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        named = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text("utf-8"))
        processor = named[1] if named else processor
    found = {"": f"{platform.system()}, {processor} ({os.cpu_count()} cores)"}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["GPU"] = torch.cuda.get_device_name()
    found |= {"Python": platform.python_version(), "fast-instantid": __version__}
    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in _LIBRARIES}
    return found | {name: str(version) for name, version in versions.items() if version}
