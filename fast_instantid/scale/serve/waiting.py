"""A request that waits for its job: what the job reports meanwhile, and its result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException
from starlette.requests import Request

from .batch_queue import BatchQueue, Job

Messages: TypeAlias = "asyncio.Queue[tuple[str, Any]]"
_PULSE = 15.0  # seconds between signs of life in a stream


def submit(queue: BatchQueue, job: Job) -> Messages:
    """Queue a job. Return its messages: names and facts of ``job.tell``, and last "done". Raises Busy."""
    messages, loop = asyncio.Queue[tuple[str, Any]](), asyncio.get_running_loop()

    def tell(name: str, fact: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(messages.put_nowait, (name, fact))

    job.tell = tell
    job.future.add_done_callback(lambda _: tell("done", None))
    queue.put(job)
    return messages


async def events(
    request: Request, queue: BatchQueue, job: Job, messages: Messages, start: float, seconds: float
) -> AsyncIterator[tuple[str, Any]]:
    """First "queued", then what a job tells, "pulse" now and then, and last its "result".

    A client that leaves gives the job up. So does the end of its ``seconds`` since ``start``, a time of
    :func:`time.monotonic`. Both raise an HTTPException.
    """
    until = start + seconds
    gone = asyncio.ensure_future(_disconnect_of(request))
    gone.add_done_callback(lambda _: messages.put_nowait(("gone", None)))
    try:
        yield "queued", {"waiting": queue.waiting}
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
                raise HTTPException(504, f"not done in {seconds:g} s: ask for fewer steps, or later")
            yield name, fact
    finally:
        gone.cancel()
        if not job.future.cancel():  # it may hold an error, whose traceback holds this frame, and this the job
            job.future = Future()


async def result_of(request: Request, queue: BatchQueue, job: Job, start: float, seconds: float) -> Any:
    """Queue a job and wait for its result; see :func:`events`. Raises Busy."""
    return [fact async for _, fact in events(request, queue, job, submit(queue, job), start, seconds)][-1]


async def _disconnect_of(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
