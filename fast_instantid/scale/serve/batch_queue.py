"""A bounded queue of jobs, which one thread runs in batches, and requests that wait for them."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from ...errors import FastInstantIDError

_PULSE = 15.0  # seconds between signs of life in a stream


class Busy(FastInstantIDError):
    """The queue is full. ``seconds`` estimates when there is room."""

    def __init__(self, waiting: int, seconds: float) -> None:
        seconds = max(1, math.ceil(seconds))
        self.headers = {"Retry-After": str(seconds)}
        super().__init__(f"{waiting} requests are waiting, as many as may: ask again in about {seconds} s")


@dataclass(eq=False)
class Job:
    """One request's work. Whoever waits for it cancels the future to give it up."""

    work: Any
    kind: Hashable = None  # jobs of equal kinds may run in one batch
    cost: float = 1.0
    tell: Callable[[str, dict[str, Any]], None] = lambda name, fact: None
    """Called from the worker's thread with the name of an event and what it says."""
    future: Future[Any] = field(default_factory=Future)


class BatchQueue:
    """Jobs of many threads, run by one thread. What waits when it is free runs together: no request waits for others.

    Args:
        run: runs the jobs of a batch, and returns a result or an exception for each.
        length: jobs that may wait; one more is refused.
        capacity: of a batch, for the sum of the jobs' costs. A job of a larger cost runs alone.
    """

    seen: Callable[[int], object] = staticmethod(lambda size: None)  # called with the size of each batch

    def __init__(self, run: Callable[[list[Job]], Sequence[Any]], length: int, capacity: float) -> None:
        self._run, self._length, self._capacity = run, length, capacity
        self._jobs: list[Job] = []
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._seconds = 1.0  # of a job
        self._is_open = True
        self._thread = threading.Thread(target=self._work, name="fast-instantid batches")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Cancel all jobs, also those to come. The thread ends after the batch that runs."""
        with self._changed:
            self._is_open = False
            jobs = self._jobs + self._running
            self._changed.notify_all()
        for job in jobs:
            job.future.cancel()

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._thread.ident:
            self._thread.join()

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    def check(self) -> None:
        """Raise Busy if a job would be refused now."""
        if len(self._jobs) >= self._length:
            raise Busy(len(self._jobs), self._seconds * (len(self._jobs) + len(self._running)))

    def put(self, job: Job) -> Job:
        """Queue a job, and return it. Raises Busy if the queue is full."""
        with self._changed:
            self.check()
            self._jobs.append(job)
            self._changed.notify_all()
        job.future.add_done_callback(self._forget)  # which does not hold the job: it would be held until a collection
        if not self._is_open:
            job.future.cancel()
        return job

    def _forget(self, _: object) -> None:
        with self._changed:
            self._jobs = [job for job in self._jobs if not job.future.done()]

    def _next(self) -> list[Job]:
        """The oldest job, and all that may run with it."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or not self._is_open)
            batch: list[Job] = []
            room = self._capacity
            for job in self._jobs:
                if not batch or (job.kind == batch[0].kind and job.cost <= room):
                    batch.append(job)
                    room -= job.cost
            self._jobs = [job for job in self._jobs if job not in batch]
            self._running = batch
            return batch

    def _work(self) -> None:
        while batch := self._next():
            self.seen(len(batch))
            start = time.monotonic()
            self.finish(batch)
            self._seconds = 0.7 * self._seconds + 0.3 * (time.monotonic() - start) / len(batch)
            self._running = batch = []  # and the faces in it

    def finish(self, batch: list[Job]) -> None:
        """Run a batch; where that fails, each of its jobs alone. Jobs that were given up meanwhile get no result."""
        for job, result in zip(batch, self._results(batch), strict=True):
            with suppress(InvalidStateError):
                job.future.set_exception(result) if isinstance(result, Exception) else job.future.set_result(result)
            del result  # the traceback of an error holds this frame

    def _results(self, batch: list[Job]) -> Sequence[Any]:
        try:
            return self._run(batch)
        except Exception as error:
            if len(batch) == 1:
                return [error]
        return [self._results([job])[0] if not job.future.done() else None for job in batch]


class Waiting:
    """A request that waits for its job, which is queued now. Raises Busy.

    Args:
        start: when the request came, of :func:`time.monotonic`.
        seconds: from then on, after which the job is given up.
    """

    def __init__(self, request: Request, queue: BatchQueue, job: Job, start: float, seconds: float) -> None:
        self._request, self._queue, self._job = request, queue, job
        self._start, self._seconds = start, seconds
        self._messages = messages = asyncio.Queue[tuple[str, Any]]()
        loop = asyncio.get_running_loop()

        def tell(name: str, fact: Any) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(messages.put_nowait, (name, fact))

        job.tell = tell
        job.future.add_done_callback(lambda _: tell("done", None))
        queue.put(job)

    async def events(self) -> AsyncIterator[tuple[str, Any]]:
        """First "queued", then what the job tells, "pulse" now and then, and last its "result".

        A client that leaves gives the job up, and so does the end of the time. Both raise an HTTPException.
        """
        job, messages, until = self._job, self._messages, self._start + self._seconds
        gone = asyncio.ensure_future(_disconnect_of(self._request))
        gone.add_done_callback(lambda _: messages.put_nowait(("gone", None)))
        try:
            yield "queued", {"waiting": self._queue.waiting}
            while True:
                name, fact = "pulse", None
                with suppress(asyncio.TimeoutError):
                    left = until - time.monotonic()
                    name, fact = await asyncio.wait_for(messages.get(), min(_PULSE, max(left, 0.01)))
                if name == "pulse" and job.future.done():  # in Python 3.11, wait_for may lose what comes at its end
                    name = "done"
                if name == "gone":
                    raise HTTPException(499, "the client left")  # nginx's status
                if job.future.cancelled():
                    raise HTTPException(503, "the service ends")
                if name == "done":
                    yield "result", job.future.result()
                    return
                if time.monotonic() > until:
                    raise HTTPException(504, f"not done in {self._seconds:g} s: ask for fewer steps, or later")
                yield name, fact
        finally:
            gone.cancel()
            if not job.future.cancel():  # it may hold an error, whose traceback holds this frame, and this the job
                job.future = Future()

    async def result(self) -> Any:
        """Wait for the result; see :meth:`events`."""
        return [fact async for _, fact in self.events()][-1]


async def _disconnect_of(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
