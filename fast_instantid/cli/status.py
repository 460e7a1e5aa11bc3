"""A line of status at the foot of a terminal, out of the way of whatever else writes into it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from types import TracebackType


class StatusLine:
    """Keeps the last line of the terminal to itself, from ``with`` to its end; nothing where stderr is no terminal.

    The terminal scrolls only what is above. Each change goes out in one piece, and puts the cursor back.
    """

    def __init__(self) -> None:
        self._size: os.terminal_size | None = None
        self._works = sys.stderr.isatty() and os.environ.get("TERM", "dumb" if os.name == "posix" else "") != "dumb"

    def __enter__(self) -> StatusLine:
        return self

    def show(self, text: str) -> None:
        """Replace the text; what does not fit is cut off."""
        if not self._works:
            return
        try:
            size = os.get_terminal_size(sys.stderr.fileno())
        except OSError:  # the terminal was closed
            return
        if size.lines < 4 or size.columns < 20:
            return
        reserve = ""
        if size != self._size:  # also after the window was resized
            # A line feed makes room below, if the cursor is on the last line. Setting the region moves the cursor.
            reserve = f"\n\0337\033[1;{size.lines - 1}r\0338\033[1A"
            self._size = size
        _write(f"{reserve}\0337\033[{size.lines};1H\033[7m{text[: size.columns - 1]}\033[0m\033[K\0338")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._size is not None:
            _write(f"\0337\033[r\033[{self._size.lines};1H\033[2K\0338")


def _write(text: str) -> None:
    with suppress(OSError):  # a terminal that was closed is no reason to end
        sys.stderr.write(text)
        sys.stderr.flush()
