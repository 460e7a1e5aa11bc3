"""Seconds of the parts of a run, taken from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Watch:
    """Seconds of each part, in the order in which the parts began. An inner part does not count for the outer one.

    Args:
        wait: returns when the device is done.
    """

    def __init__(self, wait: Callable[[], object] = lambda: None) -> None:
        self._wait = wait
        self._seconds: dict[str, float] = {}
        self._inner = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block as a part."""
        self._seconds.setdefault(name, 0.0)
        self._inner.append(0.0)
        self._wait()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            passed = time.perf_counter() - start
            self._seconds[name] += passed - self._inner.pop()
            self._inner[-1] += passed

    def move(self, outer: str, name: str, seconds: float) -> None:
        """Move seconds from a part to one inside it."""
        self._seconds[outer] -= seconds
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """All parts since the last call, in seconds."""
        taken, self._seconds = self._seconds, {}
        return {name: round(seconds, 6) for name, seconds in taken.items()}

    def around(self, thing: Any, method: str, name: str) -> None:
        """Make each call of this object's method a part."""
        inner = getattr(thing, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return inner(*args, **kwargs)

        setattr(thing, method, watched)
