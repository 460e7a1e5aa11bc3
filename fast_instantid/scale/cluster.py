"""A cluster of Ray: one that is joined, or one of this machine alone, quiet and without a network."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ..errors import BackendError

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
    if not address:
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _STORE}
    with redirect_stdout(sys.stderr):  # Ray tells of dead workers on stdout
        before = proxies()
        try:
            os.environ |= before if address else _NO_PROXY
            with _silent():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            os.environ |= before
            yield ray
        except (RayError, ConnectionError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BackendError(f"Ray: {reason}; what is done stays, and the same command goes on from there") from error
        finally:
            os.environ |= before
            ray.shutdown()


def proxies() -> dict[str, str]:
    """The proxies of this process, for workers, which start without them. An empty one is none."""
    return {name: os.environ.get(name, "") for name in _NO_PROXY}


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
