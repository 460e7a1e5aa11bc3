"""Records how long each stage of a run takes.

    with Recorder() as recorder:
        image = generate(...)
    Profile.of(recorder, "a portrait").save("run.json")  # fast_instantid.observe.profile

Code marks its stages by ``with stage("align"): ...``. Without a recorder, this reads one global and enters an empty
context manager. With one, GPU times come from CUDA events, which are read once, at the end.
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
from typing import TYPE_CHECKING, Any

from .errors import FastInstantIDError

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

    Stage = AbstractContextManager[None]

logger = logging.getLogger("fast_instantid")

_NOTHING = nullcontext()
_MAX_SPANS = 200_000  # about 100 MB, or 80 pictures of 30 steps
_MEMORY_DEPTH = 3  # stages deeper than this do not read the allocator: that takes longer than a layer

_current: Recorder | None = None
_current_lock = threading.Lock()


def _forget() -> None:
    """Reset a forked child: it does not record for its parent, and a thread of the parent may hold the lock."""
    global _current, _current_lock
    _current, _current_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)


def stage(name: str, **facts: float | str) -> Stage:
    """Mark a block of code as a stage; stages nest.

    Args:
        name: stages of the same name inside the same outer stage are added up.
        facts: properties of this call. Numbers are added up; ``nbytes`` counts the bytes read or moved.
    """
    recorder = _current
    return _NOTHING if recorder is None else _Open(recorder, name, facts)


def count(**facts: float) -> None:
    """Add numbers to the facts of this thread's innermost stage, such as ``hits`` and ``misses`` of the cache."""
    if (recorder := _current) is not None:
        recorder.count(facts)


def is_recording() -> bool:
    """Whether a recorder is running."""
    return _current is not None


def stage_of(module: nn.Module, name: str) -> list[RemovableHandle]:
    """Add hooks that make each call of ``module`` a stage, and return them. Compiled calls are not recorded."""
    import torch

    open_stages: dict[int, Stage] = {}  # by thread

    def enter(*_: Any) -> None:
        if not torch.compiler.is_compiling():
            leave()  # torch does not call the forward hook after Ctrl-C
            opened = open_stages[threading.get_ident()] = stage(name)
            opened.__enter__()

    def leave(*_: Any) -> None:
        if not torch.compiler.is_compiling() and (opened := open_stages.pop(threading.get_ident(), None)):
            opened.__exit__(None, None, None)

    try:
        # Ours run first and last, so that the time of other hooks is included.
        return [
            module.register_forward_pre_hook(enter, prepend=True),
            module.register_forward_hook(leave, always_call=True),
        ]
    except BaseException:  # an interrupt, which may have come before torch returned a handle
        for hooks in (module._forward_pre_hooks, module._forward_hooks):  # pyright: ignore[reportPrivateUsage]
            for key in [key for key, hook in hooks.items() if hook in (enter, leave)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)  # pyright: ignore[reportPrivateUsage]
        raise


@dataclass(slots=True)
class Span:
    """One call of a stage. Times are nanoseconds since the recorder started."""

    name: str
    parent: int  # index of the outer stage in ``Recorder.spans``; -1 without one
    thread: int  # index of the thread in ``Recorder.threads``
    start: int
    duration: int = 0  # host time; for work on a GPU it is mostly the time to queue that work
    device_start: int | None = None
    device_duration: int | None = None  # GPU time between the events of start and end; None if the GPU was not used
    facts: dict[str, float | str] = field(default_factory=dict[str, "float | str"])
    """Facts of the stage; outer stages on CUDA also have ``allocated``, the bytes that torch held at the end."""


class Recorder:
    """Records the stages of all threads of this process, once. One recorder can run at a time.

    Args:
        clock: times the device; CUDA's by default.
    """

    def __init__(self, clock: CudaClock | None = None) -> None:
        self.spans: list[Span] = []  # ordered by start
        self.dropped = 0  # spans that were not kept, beyond 200,000
        self.started_at = 0.0  # seconds since 1970
        self.duration = 0  # nanoseconds from start to stop
        self.threads: list[str] = []  # names of the threads that were in stages
        self._clock = CudaClock() if clock is None else clock
        self._zero = 0
        self._marks: dict[int, tuple[Any, Any]] = {}
        # Not by the thread's number, which the system uses again.
        self._lanes: dict[threading.Thread, int] = {}
        self._stacks: list[list[int]] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start recording.

        Raises:
            FastInstantIDError: a recorder is running in this process, or this one was used before.
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
        """Stop recording and synchronise with the device. Open stages end here, with the fact ``unfinished``."""
        global _current
        with _current_lock:
            if _current is not self:
                return
            _current = None
        with self._lock:
            self.duration = time.perf_counter_ns() - self._zero
            for stack in self._stacks:
                self._cut_off(stack, self.duration)
                stack.clear()
            self._lanes.clear()
            marks, self._marks = self._marks, {}
        done = [index for index, (_, end) in marks.items() if end is not None]
        try:
            times = self._clock.nanoseconds([marks[index] for index in done]) if done else []
        except RuntimeError as error:  # the device failed
            logger.warning("no GPU times: %s", error)
            return
        for index, device in zip(done, times, strict=True):
            if device is not None:
                span = self.spans[index]
                span.device_start, span.device_duration = device[0] - self._zero, device[1]

    def __enter__(self) -> Recorder:
        try:
            self.start()
        except BaseException:  # also an interrupt, which may have come after the start
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.stop()  # completes what an interrupt left

    def count(self, facts: dict[str, float]) -> None:
        """Add numbers to the facts of this thread's innermost stage."""
        lane = self._lanes.get(threading.current_thread())
        if lane is not None and (stack := self._stacks[lane]):
            counted = self.spans[stack[-1]].facts
            for name, number in facts.items():
                before = counted.get(name, 0)
                counted[name] = number + (before if isinstance(before, (int, float)) else 0)

    def enter(self, name: str, facts: dict[str, float | str]) -> int:
        """Open a stage in this thread and return its index; -1 if it is not kept."""
        mark = self._clock.mark()
        thread = threading.current_thread()
        with self._lock:
            if _current is not self:  # stopped between stage() and its ``with``
                return -1
            if len(self.spans) >= _MAX_SPANS:
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
        """Close a stage that :meth:`enter` opened, and the stages left open inside it."""
        if index < 0 or _current is not self:
            return
        span, end = self.spans[index], time.perf_counter_ns() - self._zero
        mark = self._clock.mark() if index in self._marks else None
        with self._lock:
            stack = self._stacks[span.thread]
            if index not in stack:  # closed already
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
    """The context manager of one call of a stage."""

    __slots__ = ("_facts", "_index", "_name", "_recorder")

    def __init__(self, recorder: Recorder, name: str, facts: dict[str, float | str]) -> None:
        self._recorder, self._name, self._facts = recorder, name, facts

    def __enter__(self) -> None:
        self._index = self._recorder.enter(self._name, self._facts)

    def __exit__(self, *_: object) -> None:
        self._recorder.leave(self._index)


class CudaClock:
    """Times the current CUDA (or ROCm) device by events, without synchronising before the end."""

    def __init__(self) -> None:
        self._zeros: dict[int, tuple[Any, int]] = {}  # by device: an event and its host time

    def mark(self) -> Any:
        """Queue an event; None while CUDA is not in use, which this does not initialise."""
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
        """The bytes that torch holds on the device; None while CUDA is not in use."""
        torch = sys.modules.get("torch")
        return torch.cuda.memory_allocated() if torch is not None and torch.cuda.is_initialized() else None

    def nanoseconds(self, marks: Sequence[tuple[Any, Any]]) -> list[tuple[int, int] | None]:
        """Synchronise; then start and duration of each pair of marks, in the host's ``perf_counter_ns``."""
        torch = sys.modules["torch"]
        for device in self._zeros:
            torch.cuda.synchronize(device)
        times: list[tuple[int, int] | None] = []
        for (device, begin), (device_at_end, end) in marks:
            zero, host = self._zeros[device]
            start = host + round(1e6 * zero.elapsed_time(begin))
            times.append((start, round(1e6 * begin.elapsed_time(end))) if device == device_at_end else None)
        return times
