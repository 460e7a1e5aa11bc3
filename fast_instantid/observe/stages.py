"""Recorded spans added up by stage: each stage's own time and that of its inner stages make up the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..recorder import Span

OUTSIDE = "not inside any stage"


@dataclass
class StageTotal:
    """All calls of one stage inside the same outer stages. Times are in nanoseconds."""

    name: str
    calls: int = 0
    time: int = 0  # host time of all calls
    self_time: int = 0  # ``time`` without inner stages
    device_time: int | None = None  # between the events of start and end; None if the device was not used
    facts: dict[str, float] = field(default_factory=dict[str, float])  # sums of numeric facts, with the inner stages
    allocated: int | None = None  # the most bytes that torch held on the device at the end of a call
    unfinished: int = 0  # calls that were still open when the recording ended
    inner: dict[str, StageTotal] = field(default_factory=dict[str, "StageTotal"])


def add_up(spans: Sequence[Span], duration: int) -> StageTotal:
    """Sum the spans of a recording by stage, and return the whole run.

    Its last inner stage is ``OUTSIDE``, the time in which no thread was in a stage. With several threads the inner
    stages may take longer together than the run.

    Args:
        spans: ordered by start, outer before inner, as in ``Recorder.spans``.
        duration: of the whole run, in nanoseconds.
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
    for total, outer in reversed(outer_of):  # inner stages first, so that each is complete when it is added
        total.self_time += total.time
        outer.self_time -= total.time
        for name, number in total.facts.items():
            outer.facts[name] = outer.facts.get(name, 0) + number
    covered = end = 0
    for span in (span for span in spans if span.parent < 0):
        covered += max(0, span.start + span.duration - max(end, span.start))
        end = max(end, span.start + span.duration)
    outside = whole.inner.setdefault(OUTSIDE, StageTotal(OUTSIDE))
    outside.calls += 1
    outside.time += duration - covered
    outside.self_time += duration - covered
    whole.self_time = 0
    return whole
