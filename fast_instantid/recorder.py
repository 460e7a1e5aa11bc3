"""Where the time of a run goes, told by the code that spends it.

    with Recorder() as recorder:
        image = generate(...)
    Profile.of(recorder, "a portrait").save("run.html")  # fast_instantid.observe.profile

Code says ``with stage("align"): ...`` around what it does. While nothing records, that is one look at a global and an
empty context manager, about 0.2 µs. While something does, times of a CUDA device come
from events in its queue, which nothing waits for before the end.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from .errors import FastInstantIDError

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

    Stage = AbstractContextManager[None]

logger = logging.getLogger("fast_instantid")

_NOTHING = nullcontext()
_MAX_SPANS = 200_000  # some 100 MB, and some 80 pictures of 30 steps
_MEMORY_DEPTH = 3  # reading it takes longer than a layer does, so the inner stages go without

_current: Recorder | None = None
_current_lock = threading.Lock()


def _forget() -> None:
    """In a fork: what its parent records is not its own, and locks may be held by threads that it does not have."""
    global _current, _current_lock
    _current, _current_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)


def stage(name: str, **facts: float | str) -> Stage:
    """A part of the work, for whoever records this process; outer stages contain inner ones.

    Args:
        name: in the field's words; the stages of equal names in the same outer stage are added up.
        facts: what is known about this one. Numbers are added up too; ``nbytes`` are the bytes that it read or moved.
    """
    recorder = _current
    return _NOTHING if recorder is None else _Open(recorder, name, facts)


def count(**facts: float) -> None:
    """Add to the facts of the stage that this thread is in, such as ``hits`` and ``misses`` of the cache."""
    recorder = _current
    if recorder is not None:
        recorder.count(facts)


def is_recording() -> bool:
    """Whether stages are recorded now."""
    return _current is not None


def stage_of(module: nn.Module, name: str) -> list[RemovableHandle]:
    """Hooks that make each call of ``module`` a stage, until they are removed. A call that torch compiles is none."""
    import torch

    open_stages: dict[int, Stage] = {}  # of each thread

    def enter(*_: Any) -> None:
        if not torch.compiler.is_compiling():
            leave()  # torch calls no hook when Ctrl-C ends a call
            opened = open_stages[threading.get_ident()] = stage(name)
            opened.__enter__()

    def leave(*_: Any) -> None:
        if not torch.compiler.is_compiling() and (opened := open_stages.pop(threading.get_ident(), None)):
            opened.__exit__(None, None, None)

    # The first to come and the last to go, so that the hooks of others count as a part of the call.
    return [
        module.register_forward_pre_hook(enter, prepend=True),
        module.register_forward_hook(leave, always_call=True),
    ]


@dataclass(slots=True)
class Span:
    """One stage that was passed. Times are nanoseconds since the recorder started."""

    name: str
    parent: int
    """Index of the stage around it in ``Recorder.spans``; -1 where there is none."""
    thread: int
    """Index of the thread in ``Recorder.threads``."""
    start: int
    duration: int = 0
    """On the host, which on a GPU mostly is the time to queue the work."""
    device_start: int | None = None
    device_duration: int | None = None
    """From when the device reached its begin in the queue to when it reached its end; None where it took no part."""
    facts: dict[str, float | str] = field(default_factory=dict[str, "float | str"])
    """What the code said, and for outer stages on CUDA ``allocated``: bytes that torch held at the end."""


class DeviceClock(Protocol):
    """Times on a device, without waiting for it."""

    def mark(self) -> Any:
        """Leave a mark in the device's queue; None where there is no device yet."""
        ...

    def allocated(self) -> int | None:
        """Bytes that torch holds on the device; None where there is no device yet."""
        ...

    def nanoseconds(self, marks: Sequence[tuple[Any, Any]]) -> list[tuple[int, int] | None]:
        """Wait for the device; then begin and duration of each pair of marks, on the host's ``perf_counter_ns``."""
        ...


class Recorder:
    """Takes down the stages of this process, in all threads, from ``with`` or :meth:`start` to its end; once.

    Args:
        clock: of the device; CUDA's by default.
        max_spans: further ones are counted, and not kept.
    """

    def __init__(self, clock: DeviceClock | None = None, max_spans: int = _MAX_SPANS) -> None:
        self.spans: list[Span] = []
        """In order of their begin."""
        self.dropped = 0
        """How many spans there were beyond ``max_spans``."""
        self.started_at = 0.0
        """Seconds since 1970."""
        self.duration = 0
        """Nanoseconds from start to stop."""
        self.threads: list[str] = []
        """Names of the threads that were in stages."""
        self._clock: DeviceClock = CudaClock() if clock is None else clock
        self._max_spans = max_spans
        self._zero = 0
        self._marks: dict[int, tuple[Any, Any]] = {}
        # By the thread itself: the system gives the number of one that has ended to another.
        self._lanes: dict[threading.Thread, int] = {}
        self._stacks: list[list[int]] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin.

        Raises:
            FastInstantIDError: another one records, of which there is one at a time in a process, or this one has.
        """
        global _current
        with _current_lock:
            if _current is not None:
                raise FastInstantIDError("this process is being recorded already: stop that first")
            if self._zero:
                raise FastInstantIDError("this recorder has recorded already: make another")
            self.started_at, self._zero = time.time(), time.perf_counter_ns()
            _current = self

    def stop(self) -> None:
        """End, and wait for the device once. Stages that are open are cut off here and get the fact ``unfinished``."""
        global _current
        with _current_lock:
            if _current is not self:
                return
            _current = None
        with self._lock:  # so that no stage begins or ends any more
            self.duration = time.perf_counter_ns() - self._zero
            for stack in self._stacks:
                self._cut_off(stack, self.duration)
                stack.clear()
            self._lanes.clear()
            marks, self._marks = self._marks, {}
        done = [index for index, (_, end) in marks.items() if end is not None]
        try:
            times = self._clock.nanoseconds([marks[index] for index in done]) if done else []
        except RuntimeError as error:  # the device failed, which is why the run ended
            logger.warning("the times on the device are lost: %s", error)
            return
        for index, device in zip(done, times, strict=True):
            if device is not None:
                span = self.spans[index]
                span.device_start, span.device_duration = device[0] - self._zero, device[1]

    def __enter__(self) -> Recorder:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def count(self, facts: dict[str, float]) -> None:
        """See :func:`count`."""
        lane = self._lanes.get(threading.current_thread())
        if lane is not None and (stack := self._stacks[lane]):
            counted = self.spans[stack[-1]].facts
            for name, number in facts.items():
                before = counted.get(name, 0)
                counted[name] = number + (before if isinstance(before, (int, float)) else 0)

    def enter(self, name: str, facts: dict[str, float | str]) -> int:
        """Open a stage in this thread; -1 where there is no room to keep it."""
        mark = self._clock.mark()
        thread = threading.current_thread()
        with self._lock:
            if _current is not self:  # it ended between the call of stage() and its ``with``
                return -1
            if len(self.spans) >= self._max_spans:
                self.dropped += 1
                return -1
            lane = self._lanes.get(thread)
            if lane is None:
                lane = self._lanes[thread] = len(self._lanes)
                self.threads.append(thread.name)
                self._stacks.append([])
            stack = self._stacks[lane]
            index = len(self.spans)
            start = time.perf_counter_ns() - self._zero
            self.spans.append(Span(name, stack[-1] if stack else -1, lane, start, facts=facts))
            stack.append(index)
            if mark is not None:
                self._marks[index] = (mark, None)
        return index

    def leave(self, index: int) -> None:
        """Close a stage that :meth:`enter` opened, and cut off what was left open inside it."""
        if index < 0 or _current is not self:
            return
        span, end = self.spans[index], time.perf_counter_ns() - self._zero
        mark = self._clock.mark() if index in self._marks else None
        with self._lock:
            stack = self._stacks[span.thread]
            if index not in stack:  # it was cut off
                return
            span.duration = end - span.start
            depth = stack.index(index)
            self._cut_off(stack[depth + 1 :], end)
            del stack[depth:]
            if mark is not None:
                self._marks[index] = (self._marks[index][0], mark)
        if mark is not None and depth < _MEMORY_DEPTH and (allocated := self._clock.allocated()) is not None:
            span.facts["allocated"] = allocated

    def _cut_off(self, indices: Sequence[int], end: int) -> None:
        for index in indices:
            self.spans[index].duration = end - self.spans[index].start
            self.spans[index].facts["unfinished"] = 1


class _Open:
    """A stage while it lasts."""

    __slots__ = ("_facts", "_index", "_name", "_recorder")

    def __init__(self, recorder: Recorder, name: str, facts: dict[str, float | str]) -> None:
        self._recorder, self._name, self._facts = recorder, name, facts

    def __enter__(self) -> None:
        self._index = self._recorder.enter(self._name, self._facts)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._recorder.leave(self._index)


class CudaClock:
    """The CUDA (or ROCm) device that is current, from when the process first uses one."""

    def __init__(self) -> None:
        self._zeros: dict[int, tuple[Any, int]] = {}  # by device: an event, and when it happened on the host

    def mark(self) -> Any:
        # Without torch, or before CUDA is used, there is nothing to time; asking would initialise it.
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():
            return None
        device = torch.cuda.current_device()
        if device not in self._zeros:
            torch.cuda.synchronize(device)
            zero = torch.cuda.Event(enable_timing=True)
            zero.record()
            self._zeros[device] = (zero, time.perf_counter_ns())
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return device, event

    def allocated(self) -> int | None:
        torch = sys.modules.get("torch")
        return torch.cuda.memory_allocated() if torch is not None and torch.cuda.is_initialized() else None

    def nanoseconds(self, marks: Sequence[tuple[Any, Any]]) -> list[tuple[int, int] | None]:
        torch = sys.modules["torch"]
        for device in self._zeros:
            torch.cuda.synchronize(device)
        return [self._between(begin, end) for begin, end in marks]

    def _between(self, begin: Any, end: Any) -> tuple[int, int] | None:
        if begin[0] != end[0]:  # the current device changed in between
            return None
        zero, host = self._zeros[begin[0]]
        return host + round(1e6 * zero.elapsed_time(begin[1])), round(1e6 * begin[1].elapsed_time(end[1]))
