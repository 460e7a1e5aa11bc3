"""A cluster of Ray: one that is joined, or one of this machine alone, quiet and without a network."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout
from socket import create_connection
from typing import Any

from ..errors import BackendError, first_line

_STORE = 256 << 20  # bytes of shared memory for objects, which are small here
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_COLOR_PREFIX": "0"}
# Ray's own switch for "listen on the loopback only", where it is the default: its ports let everyone run code.
_LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Also without statistics, Ray asks 169.254.169.254 and metadata.google.internal for a cloud. Nothing is at port 9.
_NO_PROXY = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}


@contextmanager
def ray_cluster(address: str, cpus: int) -> Generator[Any]:
    """Join the cluster at ``address`` during the block, or start one with so many CPUs on this machine if it is "".

    Raises:
        BackendError: Ray is not installed, the cluster cannot be reached, or it fails during the block.
    """
    os.environ |= _QUIET if address else _QUIET | _LOCAL
    try:
        import ray
        from ray.exceptions import RayError
    except ModuleNotFoundError as error:
        raise BackendError("several workers need Ray: pip install 'fast-instantid[ray]', or --workers 1") from error
    options: dict[str, Any] = {"address": address or "local"}
    if direct := re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address):  # Ray itself tries for minutes
        try:
            create_connection((direct[1], int(direct[2])), 10).close()
        except OSError as error:
            raise BackendError(f"no cluster of Ray at {address}: {error}") from error
    if not address:
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _STORE}
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):  # Ray tells of each dead worker there
        before, ends = proxies(), signal.getsignal(signal.SIGTERM)
        try:
            os.environ |= before if address else _NO_PROXY
            with _silent(), interrupts(wait=True) as interrupted:  # a start that is cut off ends in a crash
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # they share no base
            raise BackendError(f"Ray does not start, or cannot be reached: {first_line(error)}") from error
        finally:
            os.environ |= before
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, ends)  # Ray's own prints a trace
        try:
            if interrupted():
                raise KeyboardInterrupt
            yield ray
        except RayError as error:
            said = f"Ray: {first_line(error)}; what is done stays, and the same command goes on from there"
            raise BackendError(said) from error
        finally:
            ray.shutdown()


def proxies() -> dict[str, str]:
    """The proxies of this process, for workers, which start without them. An empty one is none."""
    return {name: os.environ.get(name, "") for name in _NO_PROXY}


@contextmanager
def interrupts(wait: bool = False) -> Generator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed during the block: where Ray's code runs, a KeyboardInterrupt may be swallowed.

    Args:
        wait: let the block come to its end, unless Ctrl-C is pressed again.
    """
    pressed: list[int] = []

    def press(number: int, frame: Any) -> None:
        pressed.append(number)
        if len(pressed) > wait:
            raise KeyboardInterrupt

    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _silent() -> Generator[None]:
    """Drop what C++ code writes to stderr: Ray's tells that its log level is ours."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
