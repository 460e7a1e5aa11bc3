"""Which processes belong to a command that we started."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


class Family:
    """A process and all that it started.

    Args:
        root: pid of the process.
    """

    def __init__(self, root: int) -> None:
        self._known = {root}

    def has(self, pid: int) -> bool | None:
        """Whether ``pid`` is one of it; None where this system does not say (Windows, pids of a container's host)."""
        chain: list[int] = []
        current = pid
        while current > 1 and current not in self._known:
            chain.append(current)
            parent = _parent(current)
            if parent is None:
                return None
            current = parent
        if current not in self._known:
            return False
        self._known.update(chain)  # so they stay known when those between them have ended
        return True


def _parent(pid: int) -> int | None:
    if os.name != "posix":
        return None
    try:
        stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # "pid (name) state parent ...", and the name may hold anything.
    return int(stat.rpartition(")")[2].split()[1])
