"""Spans added up by stage, so that self time and inner stages make up the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..recorder import Span

OUTSIDE = "not inside any stage"


@dataclass
class StageTotal:
    """All calls of one stage inside the same outer ones. Times are nanoseconds."""

    name: str
    calls: int = 0
    time: int = 0
    """On the host: the sum of all calls."""
    self_time: int = 0
    """The part of ``time`` that no inner stage accounts for."""
    device_time: int | None = None
    """In the queue of the device, the sum of all calls; None where it took no part."""
    device_self_time: int | None = None
    facts: dict[str, float] = field(default_factory=dict[str, float])
    """Sums of the numbers that the code told of it and of the stages inside."""
    allocated: int | None = None
    """Bytes that torch held on the device at the end of a call, the largest."""
    unfinished: int = 0
    """Calls that were cut off by the end of the recording."""
    inner: dict[str, StageTotal] = field(default_factory=dict[str, "StageTotal"])

    def walk(self) -> Iterator[StageTotal]:
        """This stage and all inside it, outer ones first, in order of their first call."""
        todo: list[StageTotal] = [self]
        while todo:
            total = todo.pop()
            yield total
            todo += reversed(total.inner.values())


@dataclass(frozen=True)
class Totals:
    """The whole run: what is inside it takes ``whole.time + overlap``, and nothing else of it is left over."""

    whole: StageTotal
    """Its time is the duration of the run. The last inside it is ``OUTSIDE``: when no thread was in a stage."""
    overlap: int
    """Nanoseconds that several threads spent in stages at the same time, beyond the first; 0 with one thread."""
    threads: int
    """How many threads were in stages."""

    def by_name(self) -> dict[str, StageTotal]:
        """Equal names added up wherever they are, by falling self time. Only self times and calls are filled in.

        On one thread they make up the whole run.
        """
        found: dict[str, StageTotal] = {}
        for total in self.whole.walk():
            if total is self.whole:
                continue
            sums = found.setdefault(total.name, StageTotal(total.name))
            sums.calls += total.calls
            sums.self_time += total.self_time
            if total.device_self_time is not None:
                # Below zero where the outer stage began before the device was in use.
                sums.device_self_time = (sums.device_self_time or 0) + max(0, total.device_self_time)
        return dict(sorted(found.items(), key=lambda item: -item[1].self_time))


def add_up(spans: Sequence[Span], duration: int) -> Totals:
    """The totals of a recording.

    Args:
        spans: in order of their begin, outer before inner ones, as ``Recorder.spans``.
        duration: nanoseconds of the whole run.
    """
    whole = StageTotal("whole run", calls=1, time=duration)
    totals: list[StageTotal] = []
    outer_of: list[tuple[StageTotal, StageTotal]] = []
    for span in spans:
        outer = whole if span.parent < 0 else totals[span.parent]
        total = outer.inner.get(span.name)
        if total is None:
            total = outer.inner[span.name] = StageTotal(span.name)
            outer_of.append((total, outer))
        totals.append(total)
        _add(total, span)
    # Inner stages were met after outer ones, so backwards each is complete before it is added to the one around it.
    for total, outer in reversed(outer_of):
        total.self_time += total.time
        outer.self_time -= total.time
        if total.device_time is not None:
            total.device_self_time = (total.device_self_time or 0) + total.device_time
            if outer.device_time is not None:
                outer.device_self_time = (outer.device_self_time or 0) - total.device_time
        for name, number in total.facts.items():
            outer.facts[name] = outer.facts.get(name, 0) + number
    outermost = [span for span in spans if span.parent < 0]
    covered = _covered(outermost)
    outside = whole.inner.setdefault(OUTSIDE, StageTotal(OUTSIDE))
    outside.calls += 1
    outside.time += duration - covered
    outside.self_time += duration - covered
    whole.self_time = 0
    overlap = sum(span.duration for span in outermost) - covered
    return Totals(whole, overlap, len({span.thread for span in spans}))


def _add(total: StageTotal, span: Span) -> None:
    total.calls += 1
    total.time += span.duration
    if span.device_duration is not None:
        total.device_time = (total.device_time or 0) + span.device_duration
    for name, value in span.facts.items():
        if isinstance(value, str):
            continue
        if name == "allocated":
            total.allocated = max(total.allocated or 0, int(value))
        elif name == "unfinished":
            total.unfinished += 1
        else:
            total.facts[name] = total.facts.get(name, 0) + value


def _covered(spans: Sequence[Span]) -> int:
    """Nanoseconds that lie in at least one of the spans, which are in order of their begin."""
    covered = end = 0
    for span in spans:
        covered += max(0, span.start + span.duration - max(end, span.start))
        end = max(end, span.start + span.duration)
    return covered
