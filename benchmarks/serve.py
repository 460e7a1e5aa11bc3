"""The service on loopback, on the miniature. For 16 clients at once, "reference" is without batching. For the requests
of a new process, "reference" is the first one, and "ours" the tenth. Clients and service share the machine."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
    """The address of a service."""
    engine = Engine(instantid, Limits(**bounds), miniature.SIZE)
    if not warm:
        engine._warm_up = lambda: None  # pyright: ignore[reportPrivateUsage]
    run = server(make_app(engine), "127.0.0.1", 0)
    thread = threading.Thread(target=run.run)
    thread.start()
    while not (run.started and engine.is_ready):
        time.sleep(0.01)
    yield f"http://127.0.0.1:{run.servers[0].sockets[0].getsockname()[1]}"
    run.should_exit = True
    thread.join()


def asked(address: str, route: str, number: int, steps: int) -> None:
    """Send one request."""
    portraits = miniature.files().portraits
    files = {"photos": portraits[number % len(portraits)].read_bytes()}
    fields = {"prompt": "soft portrait", "num_inference_steps": str(steps), "likeness": "false"}
    fields = fields if route == "pictures" else {"embeddings": "true"}
    httpx.post(f"{address}/v1/{route}", files=files, data=fields, timeout=300).raise_for_status()


def burst(address: str, route: str, steps: int) -> Callable[[int], None]:
    """All clients at once."""

    def run(_: int) -> None:
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda number: asked(address, route, number, steps), range(CLIENTS)))

    return run


def first_and_tenth(warm: bool, results: Any) -> None:
    """Seconds of the first ten requests of this process."""
    seconds: list[float] = []
    with served(InstantID.from_pretrained("miniature", device="cpu", cache=Cache(max_bytes=0)), warm) as address:
        for number in range(10):
            start = time.perf_counter()
            asked(address, "pictures", number, 4)
            seconds.append(time.perf_counter() - start)
    results.put((seconds[0], seconds[9]))


def run(runs: int, steps: int, json_path: Path | None) -> None:
    """Measure, print, and save where asked."""
    rows: list[Comparison] = []
    start_process, results = multiprocessing.get_context("spawn").Process, multiprocessing.get_context("spawn").Queue()
    for warm in (False, True):
        pairs: list[tuple[float, float]] = []
        for _ in range(min(runs, 2)):
            process = start_process(target=first_and_tenth, args=(warm, results))
            process.start()
            pairs.append(results.get())
            process.join()
        first, tenth = zip(*pairs, strict=True)
        name = f"first and tenth picture, {'with' if warm else 'without'} the warm-up"
        rows.append(Comparison(name, [*first], [*tenth]))
    instantid = InstantID.from_pretrained("miniature", device="cpu", cache=Cache(max_bytes=0))
    with served(instantid, batch=1, face_batch=1) as off, served(instantid, batch=4) as on:
        for route in ("faces", "pictures"):
            sides = [burst(address, route, steps) for address in (off, on)]
            rows.append(compare(f"{CLIENTS} clients, {route}", *sides, runs, recorder=None))
    about = metadata(["torch", "diffusers", "fastapi", "uvicorn"]) | {"networks": "the miniature, fp32 on the CPU"}
    report(json_path, "serve", rows, about | {"steps": steps, "notes": notes(__doc__)})
