"""Which processes belong to a command that we started."""

from __future__ import annotations

import os
from pathlib import Path

MARK = "FAST_INSTANTID_WATCHED_BY"
"""A variable in the environment of a command that is watched: our pid."""
_PROC = Path("/proc")


class Family:
    """A process and all that it started, by their parents, and where those have ended by :data:`MARK`.

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
        if current not in self._known and not _is_marked(pid):
            return False
        self._known.update(chain if current in self._known else [pid])  # known also when those between have ended
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


def _is_marked(pid: int) -> bool:
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:  # somebody else's, which are not ours either
        return False
    return f"{MARK}={os.getpid()}".encode() in environment.split(b"\0")
