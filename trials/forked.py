"""Children of this process for trials: a fork costs milliseconds, and an import of torch seconds."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

LONGEST = 60  # seconds until a child counts as hanging


def fork(work: Callable[[], object]) -> int:
    """Run ``work`` in a child and return its process id. The child ends with 0, or with 1 after an exception."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(LONGEST)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def kill_after(child: int, seconds: float) -> int:
    """Kill a child after a time; 0 if it had ended well, else the signal or exit code that ended it."""
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return wait(child)


def wait(child: int) -> int:
    """Wait for a child; 0 if it ended well, else minus the signal, or the exit code, that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
