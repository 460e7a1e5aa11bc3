"""Independent units of work: one after another in this process, or by a pool of workers of Ray Data.

What a unit yields depends on the unit alone. A run is therefore the same whatever the number of workers.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import BackendError
from .cluster import interrupts, proxies, ray_cluster

Load: TypeAlias = Callable[[], Callable[[Any], Any]]
"""Loads the networks of a worker, and returns the function of one unit. It is pickled; so are units and results."""

logger = logging.getLogger("fast_instantid")

_TRIES = 3  # of a unit whose worker dies. Ray Data would start workers for it forever.


@dataclass(frozen=True)
class Workers:
    """How many processes work, and with what; see :func:`run_units`."""

    count: int = 1
    threads: int = 0
    """Of torch in each; 0 leaves torch's own number. Numbers may differ in their last bits with it."""
    gpu: bool = False
    """Whether each gets a GPU, or its share of one."""
    address: str = ""
    """Of a Ray cluster to join, such as ``auto`` or ``ray://head:10001``; by default a local one is started."""


def run_units(
    units: Sequence[Any], load: Load, workers: Workers, done: Callable[[Any], None], folder: Path = Path()
) -> None:
    """Work on all units, and hand over their results as they come, in any order.

    A worker that dies is started again, and its units with it: a unit must be idempotent.

    Args:
        folder: shared by all workers; there they count how often a unit is tried.

    Raises:
        BackendError: several workers without Ray, a cluster that cannot be reached, or a unit that ends each worker.
        Exception: what ``load`` or a unit raised, as one process would.
    """
    if not units:
        return
    if workers.count == 1 and not workers.address:
        _pin_threads(workers.threads)
        work = load()
        for unit in units:
            done(work(unit))
        return
    threads = workers.threads or 1
    with ray_cluster(workers.address, workers.count * threads) as ray:
        from ray import data

        data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised here
        kind, need = ("GPU", 1) if workers.gpu else ("CPU", threads)
        there = int(ray.cluster_resources().get(kind, 0))
        if there < need:
            raise BackendError(
                f"the cluster of Ray has {there} {kind}s, and a worker needs {need}; see --device, --threads"
            )
        share: dict[str, Any] = {"num_gpus": 1 / -(-workers.count // there)} if workers.gpu else {"num_cpus": threads}
        rows = [{"unit": pickle.dumps((number, unit))} for number, unit in enumerate(units)]
        tries = folder / f".fast-instantid-{secrets.token_hex(4)}"  # of this start; swept like other temporary files
        results = data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,  # pyright: ignore[reportArgumentType]  # Ray makes it
            fn_constructor_args=(load, workers.threads, os.getcwd(), tries, proxies()),
            # Few units wait for a worker, so that none is idle at the end.
            compute=data.ActorPoolStrategy(size=min(workers.count, len(rows)), max_tasks_in_flight_per_actor=2),
            **share,
        )
        with interrupts() as interrupted:
            told: set[str] = set()
            for row in results.iter_rows():
                result, error, tries = pickle.loads(row["result"])  # noqa: S301  # of our own workers
                if interrupted():
                    raise KeyboardInterrupt
                said = {*pickle.loads(row["said"])} - told  # noqa: S301  # each worker warns of the models
                told |= said
                for text in sorted(said):
                    logger.warning("%s", text)
                if error is not None:
                    raise error
                if tries > 1:
                    logger.warning("a worker died, by a crash or for lack of memory; another one did its unit")
                done(result)


class _Worker:
    """One process of the pool; it loads its networks with its first unit."""

    def __init__(self, load: Load, threads: int, home: str, tries: Path, proxies: dict[str, str]) -> None:
        os.environ |= proxies
        with suppress(ValueError):  # of another thread than the main one
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to workers too; the driver ends them
        self.load, self.threads, self.home, self.tries = load, threads, home, tries
        self.work: Callable[[Any], Any] | None = None
        self.said: list[str] = []  # warnings, which the command shows
        handler = logging.Handler()
        handler.emit = lambda record: self.said.append(record.getMessage())
        logger.addHandler(handler)

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        number, unit = pickle.loads(row["unit"])  # noqa: S301
        result, error, count = None, None, 0
        try:
            os.chdir(self.home)  # relative paths mean the same everywhere
            tries = self.tries.with_name(f"{self.tries.name}{number:08x}")
            with tries.open("ab") as file:
                file.write(b".")
                count = file.tell()
                if count > _TRIES:
                    raise BackendError(f"unit {number} ended {_TRIES} workers: by a crash, or for lack of memory")
            if self.work is None:  # loading may end a worker too
                _pin_threads(self.threads)
                self.work = self.load()
            result = self.work(unit)
            tries.unlink(missing_ok=True)
        except Exception as raised:  # Ray would wrap it
            error = _portable(raised, self.tries.parent)
        said, self.said[:] = pickle.dumps(self.said), []
        return {"result": pickle.dumps((result, error, count)), "said": said}


def _portable(error: Exception, folder: Path) -> Exception:
    """An error as it is, or its text where it cannot be pickled. An OSError names its file, or the folder."""
    if isinstance(error, OSError) and error.errno and not error.filename:  # as of a full disk
        error.filename = str(folder)
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _pin_threads(threads: int) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)
