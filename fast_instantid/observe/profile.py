"""What a recorder took down, to look at and to keep: one file, which Perfetto opens too."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import FastInstantIDError
from ..files import atomic_write
from ..recorder import Recorder, Span
from .stages import Totals, add_up
from .table import cache_words, format_time, printable, stage_table

_FORMAT, _VERSION = "fast-instantid profile", 1
_HOST, _DEVICE = 1, 2  # "processes" of the trace, each with a lane for every thread
_LIBRARIES = ("torch", "diffusers", "onnxruntime", "numpy")
_HEAD: dict[str, type | tuple[type, ...]] = {
    "title": str,
    "duration": int,
    "started_at": (int, float),
    "threads": list,
    "dropped": int,
    "ended_early": str,
    "about": dict,
}


@dataclass(frozen=True)
class Profile:
    """A recorded run. Equal to what is loaded from the file it was saved to."""

    title: str
    """What ran, such as the command."""
    spans: list[Span]
    """As ``Recorder.spans``."""
    duration: int
    """Nanoseconds."""
    started_at: float
    """Seconds since 1970."""
    threads: list[str]
    """Their names."""
    dropped: int = 0
    """How many stages there was no room for; their time counts for the stages around them."""
    ended_early: str = ""
    """Why the run did not end as it should, such as "interrupted"; empty where it did."""
    about: dict[str, str] = field(default_factory=dict[str, str])
    """The machine and the versions: what times depend on."""

    @classmethod
    def of(cls, recorder: Recorder, title: str, ended_early: str = "") -> Profile:
        """What a recorder that was stopped took down.

        Args:
            recorder: after its end.
            title: what ran, such as the command.
            ended_early: why it did not end as it should, such as "interrupted".
        """
        spans = [
            replace(span, facts={name: _plain(fact) for name, fact in span.facts.items()}) for span in recorder.spans
        ]
        given = (recorder.duration, recorder.started_at, list(recorder.threads), recorder.dropped)
        return cls(title, spans, *given, ended_early, _machine())

    @cached_property
    def totals(self) -> Totals:
        """By stage."""
        return add_up(self.spans, self.duration)

    def tree(self) -> str:
        """Where the time went, as a table of the stages with lines of explanation, for a terminal."""
        return "\n".join([printable(self.title), self.when_and_where(), "", stage_table(self.totals), *self.notes()])

    def when_and_where(self) -> str:
        """Date, machine and versions in one line."""
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started_at))
        return printable(", ".join([date, *(f"{name} {value}".strip() for name, value in self.about.items())]))

    def notes(self) -> list[str]:
        """What there is to know for reading the numbers, a sentence each."""
        whole, found = self.totals.whole, []
        if self.ended_early:
            found.append(
                f"It did not end as it should ({printable(self.ended_early)}). This is what was recorded until then."
            )
        if not self.spans:
            found.append("No stage was met: nothing of fast_instantid ran in this process while it was recorded.")
        if words := cache_words(whole.facts):
            from_disk = whole.facts.get("disk_hits", 0)
            disk = f" ({from_disk:.0f} from disk)" if from_disk else ""
            found.append(f"In the cache: {words} results{disk}; the others were computed.")
        if any(span.device_start is not None for span in self.spans):
            found.append("Host time of GPU work is mostly the time to queue it: see the column 'on GPU' for the work.")
        if self.totals.overlap:
            found.append(
                f"{self.totals.threads} threads worked at the same time, so the outermost stages add up to "
                f"{format_time(self.totals.overlap)} more than the whole run."
            )
        if self.dropped:
            found.append(
                f"{self.dropped:,} stages beyond the first {len(self.spans):,} were not kept: "
                f"their time counts for the stages around them."
            )
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace (``.json``, for :meth:`load` and Perfetto) or the page (``.html``), whole or not at all.

        Raises:
            FastInstantIDError: another suffix.
            OSError: as the system says.
        """
        path = Path(path)
        if path.suffix == ".json":
            text = json.dumps(self._trace(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        elif path.suffix == ".html":
            from .page import profile_page

            text = profile_page(self)
        else:
            raise FastInstantIDError(f"{path}: the name of a profile must end in .json (the trace) or .html (the page)")
        with atomic_write(path) as temporary:
            temporary.write_text(text, "utf-8", errors="backslashreplace")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read what :meth:`save` wrote.

        Raises:
            FastInstantIDError: truncated, damaged, or no profile of ours; the message says what it is.
            OSError: as the system says.
        """
        path = Path(path)
        try:
            document = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise FastInstantIDError(f"{path}: {_diagnose(path, error)}") from error
        if not isinstance(document, dict) or "traceEvents" not in document:
            what = "a trace as a bare list of events" if isinstance(document, list) else "JSON, but no trace"
            raise FastInstantIDError(f"{path}: {what}; a file that 'fast-instantid profile' wrote is needed")
        head = document.get("otherData")
        if not isinstance(head, dict) or head.get("format") != _FORMAT:
            raise FastInstantIDError(
                f"{path}: a trace of another program; a file that 'fast-instantid profile' wrote is needed "
                f"(ui.perfetto.dev shows both)"
            )
        if head.get("version") != _VERSION:
            raise FastInstantIDError(
                f"{path}: a profile in version {head.get('version')} of the format, and this fast-instantid reads "
                f"version {_VERSION}: use the release that wrote it"
            )
        try:
            return cls._from_trace(head, document["traceEvents"])
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError) as error:
            raise FastInstantIDError(f"{path}: a damaged profile ({error!r}); record it again") from error

    def _trace(self) -> dict[str, Any]:
        """In Chrome's trace event format, "JSON Object Format"; ``otherData`` holds what that has no place for."""
        head = {
            "format": _FORMAT,
            "version": _VERSION,
            "title": self.title,
            "duration": self.duration,
            "started_at": self.started_at,
            "threads": self.threads,
            "dropped": self.dropped,
            "ended_early": self.ended_early,
            "about": self.about,
        }
        return {"otherData": head, "displayTimeUnit": "ms", "traceEvents": list(self._events())}

    def _events(self) -> Iterator[dict[str, Any]]:
        on_device = {span.thread for span in self.spans if span.device_start is not None}
        names = {_HOST: "host"} | ({_DEVICE: "GPU"} if on_device else {})
        for process, name in names.items():
            yield _named("process_name", process, 0, name)
            yield {"ph": "M", "name": "process_sort_index", "pid": process, "tid": 0, "args": {"sort_index": process}}
            for thread in range(len(self.threads)) if process == _HOST else sorted(on_device):
                queued = "" if process == _HOST else "queued by "
                yield _named("thread_name", process, thread, queued + self.threads[thread])
        for span in self.spans:
            args: dict[str, Any] = {"parent": span.parent, **({"facts": span.facts} if span.facts else {})}
            if span.device_start is not None:
                args["device"] = [span.device_start, span.device_duration]
            yield _event(span.name, _HOST, span.thread, span.start, span.duration, args)
        for span, (start, end) in zip(self.spans, self.on_device(), strict=True):
            if start >= 0:
                yield _event(span.name, _DEVICE, span.thread, start, end - start, {})

    def on_device(self) -> list[tuple[int, int]]:
        """Begin and end of each span on the device, (-1, -1) where it took no part.

        The device's clock is read with some microseconds of error. Here inner stages do not stick out of outer ones,
        as viewers need it.
        """
        found: list[tuple[int, int]] = []
        for span in self.spans:
            if span.device_start is None or span.device_duration is None:
                found.append((-1, -1))
                continue
            low, high = found[span.parent] if span.parent >= 0 else (0, sys.maxsize)
            low, high = (low, high) if low >= 0 else (0, sys.maxsize)
            start = min(max(span.device_start, low), high)
            found.append((start, min(max(span.device_start + span.device_duration, start), high)))
        return found

    @classmethod
    def _from_trace(cls, head: dict[str, Any], events: list[dict[str, Any]]) -> Profile:
        given = {name: head[name] for name in _HEAD}
        texts = [*given["threads"], *given["about"].values()]
        if not all(isinstance(given[name], kind) for name, kind in _HEAD.items()) or not _are(str, texts):
            raise TypeError("what it says of the whole run is of a wrong kind")
        spans: list[Span] = []
        for event in events:
            if event["ph"] != "X" or event["pid"] != _HOST:
                continue
            args = event["args"]
            start, duration = round(1000 * event["ts"]), round(1000 * event["dur"])
            device, facts = args.get("device", []), args.get("facts", {})
            span = Span(event["name"], args["parent"], event["tid"], start, duration, *device, facts=facts)
            numbers = [fact for fact in facts.values() if not isinstance(fact, str)]
            if not isinstance(span.name, str) or not _are(int, [span.parent, span.thread, *device]):
                raise TypeError(f"stage {len(spans)} is of a wrong kind")
            if len(device) not in (0, 2) or not all(map(math.isfinite, numbers)):
                raise ValueError(f"stage {len(spans)} has impossible numbers")
            if not -1 <= span.parent < len(spans) or not 0 <= span.thread < len(given["threads"]):
                raise ValueError(f"stage {len(spans)} is in no stage or thread that came before")
            spans.append(span)
        loaded = cls(spans=spans, **given)
        loaded.tree()  # which adds up all of it
        return loaded


def _are(kind: type, values: Sequence[object]) -> bool:
    return all(isinstance(value, kind) for value in values)


def _event(name: str, process: int, thread: int, start: int, duration: int, args: dict[str, Any]) -> dict[str, Any]:
    """A complete event; its times are microseconds, whose fractions keep every nanosecond."""
    times = {"ts": start / 1000, "dur": duration / 1000}
    return {"ph": "X", "name": name, "cat": "stage", "pid": process, "tid": thread, **times, "args": args}


def _named(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": name}}


def _plain(fact: Any) -> float | str:
    """As JSON can hold it: numbers of other libraries become Python's, and what is no finite number a text."""
    if isinstance(fact, (str, int)):
        return int(fact) if isinstance(fact, int) else fact
    number = float(fact)
    return number if math.isfinite(number) else str(number)


def _diagnose(path: Path, error: Exception) -> str:
    """Why a file is no JSON."""
    if path.stat().st_size == 0:
        return "this file is empty; record it again"
    if isinstance(error, json.JSONDecodeError) and path.read_text("utf-8").lstrip()[:1] in ("{", "["):
        if not error.doc[error.pos :].strip() or "Unterminated" in error.msg:
            return f"ends in the middle ({len(error.doc):,} characters), as a copy that broke off does; copy it again"
        return f"damaged JSON: {error.msg} in line {error.lineno}, column {error.colno}"
    return "not JSON; the .json file that 'fast-instantid profile' wrote is needed (the page cannot be read back)"


def _machine() -> dict[str, str]:
    """What times depend on, as far as it is loaded already: asking for more would take longer than some runs."""
    from .. import __version__

    found = {"": f"{platform.system()} {platform.machine()}", "processor": _processor()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["GPU"] = torch.cuda.get_device_name()
    found |= {"Python": platform.python_version(), "fast-instantid": __version__}
    for name in _LIBRARIES:
        if version := getattr(sys.modules.get(name), "__version__", None):
            found[name] = str(version)
    return found


def _processor() -> str:
    """Its name, as well as the system tells it, and how many cores there are."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name} ({os.cpu_count()} cores)"
