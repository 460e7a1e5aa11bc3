"""The service on loopback, on the miniature. For 16 clients at once, "reference" is without batching. For the requests
of a new process, "reference" is the first one, and "ours" the tenth. Clients and service share the machine. The 16
clients are threads of a process of their own."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.common import Comparison, compare, metadata, notes, report
from fast_instantid import Cache, InstantID, miniature
from fast_instantid.scale.serve.app import make_app
from fast_instantid.scale.serve.engine import Engine
from fast_instantid.scale.serve.limits import Limits
from fast_instantid.scale.serve.server import server

CLIENTS = 16


@contextmanager
def served(instantid: InstantID, warm: bool = True, **bounds: Any) -> Iterator[str]:
    """The address of a service, which ends with the block."""
    engine = Engine(instantid, Limits(**bounds), miniature.SIZE)
    if not warm:
        engine._warm_up = lambda: None  # pyright: ignore[reportPrivateUsage]
    run = server(make_app(engine), "127.0.0.1", 0)
    thread = threading.Thread(target=run.run)
    thread.start()
    try:
        while not (run.started and engine.is_ready):
            if engine.failure or not thread.is_alive():
                raise RuntimeError(f"the service did not start: {engine.failure or 'see above'}")
            time.sleep(0.01)
        yield f"http://127.0.0.1:{run.servers[0].sockets[0].getsockname()[1]}"
    finally:
        run.should_exit = True
        thread.join()


def new_process() -> ProcessPoolExecutor:
    """An executor of one process that shares nothing with this one."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def asked(address: str, route: str, number: int, steps: int) -> None:
    """Send one request."""
    portraits = miniature.files().portraits
    files = {"photos": portraits[number % len(portraits)].read_bytes()}
    fields = {"prompt": "soft portrait", "num_inference_steps": str(steps), "likeness": "false"}
    fields = fields if route == "pictures" else {"embeddings": "true"}
    httpx.post(f"{address}/v1/{route}", files=files, data=fields, timeout=300).raise_for_status()


def burst(address: str, route: str, steps: int) -> None:
    """All clients at once."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda number: asked(address, route, number, steps), range(CLIENTS)))


def elsewhere(clients: Executor, *request: Any) -> Callable[[int], None]:
    """A burst of the process of the clients. Threads here would take turns with the service's."""
    return lambda _: clients.submit(burst, *request).result()


def first_and_tenth(warm: bool) -> tuple[float, float]:
    """Seconds of the first and the tenth request of this process."""
    seconds: list[float] = []
    with served(InstantID.from_pretrained("miniature", device="cpu", cache=Cache(max_bytes=0)), warm) as address:
        for number in range(10):
            start = time.perf_counter()
            asked(address, "pictures", number, 4)
            seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[9]


def run(runs: int, steps: int, json_path: Path | None) -> None:
    """Measure, print, and save where asked."""
    rows: list[Comparison] = []
    for warm in (False, True):
        pairs: list[tuple[float, float]] = []
        for _ in range(runs):
            with new_process() as process:
                pairs.append(process.submit(first_and_tenth, warm).result())
        first, tenth = zip(*pairs, strict=True)
        name = f"first and tenth picture, {'with' if warm else 'without'} the warm-up"
        rows.append(Comparison(name, [*first], [*tenth]))
    instantid = InstantID.from_pretrained("miniature", device="cpu", cache=Cache(max_bytes=0))
    with new_process() as clients, served(instantid, batch=1, face_batch=1) as off, served(instantid, batch=4) as on:
        for route in ("faces", "pictures"):
            sides = [elsewhere(clients, address, route, steps) for address in (off, on)]
            rows.append(compare(f"{CLIENTS} clients, {route}", *sides, runs, recorder=None))
    about = metadata(["torch", "diffusers", "fastapi", "uvicorn"]) | {"networks": "the miniature, fp32 on the CPU"}
    report(json_path, "serve", rows, about | {"steps": steps, "notes": notes(__doc__)})
