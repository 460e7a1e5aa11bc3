"""How time and memory grow with people, references, pictures at once, picture size, workers and the length of a run.

Each curve has the law that it should follow, told before measuring, and is fitted to it by least squares of relative
errors. "deviation" is the largest relative distance of a point from its fit.

- people, batch: a pipeline of diffusers with an IdentityNet and guidance, 2 steps. Each person acts everywhere.
- size: one step without guidance, 32 channels. Its attentions are those of UNet and IdentityNet.
- references: photographs of 512 x 512 pixels, of one person, through networks of antelopev2's sizes; with --size tiny
  through those of the miniature, as in workers.
- workers: 8 new photographs and identities of a mapped adapter, by processes of one torch thread each, and by threads
  of one process. Bytes are proportional set sizes, added up.
- long run: 200 new persons, a picture of one step with 32 channels of each, and identities in a cache of 8 MiB.

UNets have SDXL's 70 layers and random weights. Live tensors are the peak, counted in a run that is not timed.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import active_children, get_context
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Barrier
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.common import metadata, notes, report
from benchmarks.networks import ADAPTER, write_adapter, write_faces
from benchmarks.pipelines.suite import PIPELINE_SIZES, Bench
from benchmarks.report.growth import row
from benchmarks.sizes import EMBEDDING_DIM, SIZES, WEIGHT
from benchmarks.step.measure import take
from benchmarks.worker import begin, photographs, proportional_bytes, work
from fast_instantid import Cache, FaceAnalyzer, miniature
from fast_instantid.people import find_person


@torch.no_grad()
def run(device: str, size: str, points: int, runs: int, json_path: Path | None) -> None:
    """Measure, print, and save where asked."""
    print(__doc__, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        grown = Growth(torch.device(device), size, points, runs, Path(folder))
        for part in (grown.long_run, grown.people, grown.batch, grown.size, grown.references, grown.workers):
            print(f"{part.__name__} ...", flush=True)
            part()
    rows = [row(*curve, found) for curve, found in grown.found.items()]
    about = metadata(["torch", "diffusers", "numpy"], grown.device) | {"dtype": str(grown.dtype).removeprefix("torch.")}
    about |= {"channels": PIPELINE_SIZES[size].channels, "side": PIPELINE_SIZES[size].side, "runs": runs}
    report(json_path, "growth", rows, about | {"notes": notes(__doc__)})


class Growth:
    """The curves.

    Args:
        size: of the networks of people, batch, references and workers.
        points: of each curve, the first so many.
        runs: of people and batch, in turn; their median counts. The others run once.
    """

    def __init__(self, device: torch.device, size: str, points: int, runs: int, folder: Path) -> None:
        self.found: dict[tuple[str, str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        """Name, unit and law of a curve -> its values at each n."""
        self.device, self.dtype = device, torch.float16 if device.type == "cuda" else torch.float32
        self._tiny, self._size, self._points, self._runs = size == "tiny", PIPELINE_SIZES[size], points, runs
        self._faces, self._adapter = miniature.files().pack if self._tiny else folder, folder / ADAPTER

    def long_run(self) -> None:
        bench = Bench(SIZES["tiny"], self.device, self.dtype, 1)
        bench.adapter.cache.max_bytes = 8 << 20
        for number in range(1, min(20 * self._points, 200) + 1):
            bench.ours(self._embedding(), number, 1)
            if number % 20 == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                self._note("long run: resident memory", number, pages * os.sysconf("SC_PAGE_SIZE"), "bytes", "a")
                self._note("long run: cache of identities", number, bench.adapter.cache.stats.bytes, "bytes", "a")

    def people(self) -> None:
        bench, n, calls = Bench(self._size, self.device, self.dtype, 2), range(1, 9)[: self._points], Counter[str]()
        identities = [bench.adapter.identity(self._embedding()) for _ in n]

        def draw(people: int) -> None:
            with bench.instantid.attached(identities[:people], scale=WEIGHT):
                bench.limit(identities[0].tokens, 0, 2)

        self._time("people", draw, n, self._runs)
        for net in bench.instantid.networks():
            net.register_forward_hook(lambda *_: calls.update(["evaluations"]))
        for people in n:
            calls.clear()
            with _Attentions(self.device) as attentions:
                draw(people)
            self._note("people: evaluations in a step", people, calls["evaluations"] / 2, "", "a")
            self._note("people: attentions in a step", people, attentions.calls / 2, "")
            held = sum(identity.nbytes for identity in identities[:people])
            self._note("people: identities", people, held, "bytes")

    def batch(self) -> None:
        bench = Bench(self._size, self.device, self.dtype, 2)
        identity = bench.adapter.identity(self._embedding())

        def draw(pictures: int) -> None:
            with bench.instantid.attached(identity, scale=WEIGHT):
                bench.limit(identity.tokens, 0, 2, num_images_per_prompt=pictures)

        self._time("batch", draw, [1, 2, 4, 8, 16][: self._points], self._runs)

    def size(self) -> None:
        bench = Bench(replace(SIZES["tiny"], head_channels=64), self.device, self.dtype, 1)
        identity = bench.adapter.identity(self._embedding())
        sides = [512, 768, 1024, 1536, 2048][: self._points]

        def draw(area: float) -> None:
            side = round(area**0.5 * 1024)
            hint = torch.rand(1, 3, side, side, device=self.device).to(self.dtype)
            how = {"height": side, "width": side, "image": hint, "guidance_scale": 1.0}
            with bench.instantid.attached(identity, scale=WEIGHT), _Attentions(self.device) as attentions:
                bench.limit(identity.tokens, 0, 1, **how)
            for kind, law in (("self-attention", "a + b n²"), ("attention over 16 keys", "a + b n")):
                self.found[f"size: {kind}", "s", law][area] = [attentions.seconds[kind]]  # the last counts no memory

        self._time("size", draw, [(side / 1024) ** 2 for side in sides], 1, "a + b n + c n²")

    def references(self) -> None:
        if not self._tiny:
            from examples.seeing_detector import write_seeing_detector

            write_faces(self._faces, write_seeing_detector)
        for count in [1, 4, 16, 64][: self._points]:
            cache, photos = Cache(), photographs(count)
            analyzer = FaceAnalyzer.load(self._faces, device=self.device, cache=cache)
            find_person(analyzer, photographs(1))  # loads the networks
            for kind, law, times in ("new", "a + b n", 1), ("known", "a", 7):
                before = cache.stats.misses
                for _ in range(times):
                    start = time.perf_counter()
                    find_person(analyzer, photos)
                    self._note(f"references: {kind}", count, time.perf_counter() - start, "s")
                self._note(f"references: network results, {kind}", count, cache.stats.misses - before, "", law)

    def workers(self) -> None:
        write_adapter(self._adapter, self._size)
        spawn, photos = get_context("spawn"), 8
        for count in [1, 2, 4][: self._points]:
            for kind, pool_of, barrier in ("processes", spawn.Pool, spawn.Barrier), ("threads", ThreadPool, Barrier):
                ready = barrier(count + 1)
                with pool_of(count, begin, (str(self._faces), str(self._adapter), ready)) as pool:
                    ready.wait(300)
                    seconds, _ = take(lambda pool=pool: pool.map(work, photographs(photos), 1), self.device)
                    self._note(f"workers: {kind}", count, seconds, "s", "a + b / min(n, cores)")
                    sizes = [proportional_bytes(child.pid, self._adapter) for child in active_children()]
                for name, law, place in ("mapped adapter", "a", 0), ("all else", "a + b n", 1):
                    if kind == "processes":
                        self._note(f"workers: {name}", count, sum(size[place] for size in sizes), "bytes", law)

    def _time(
        self, name: str, draw: Callable[[Any], None], n: Sequence[float], runs: int, law: str = "a + b n"
    ) -> None:
        """Note the seconds of a job, and its peak of live tensors in a first run, which warms up."""
        from tests.live_bytes import LiveBytes

        for one in n:
            with LiveBytes() as live:
                draw(one)
            self._note(f"{name}: live tensors", one, live.peak, "bytes")
        for one in [*n] * runs:
            self._note(f"{name}: drawing", one, take(lambda one=one: draw(one), self.device)[0], "s", law)

    def _note(self, name: str, n: float, value: float, unit: str, law: str = "a + b n") -> None:
        self.found[name, unit, law][n].append(value)

    def _embedding(self) -> torch.Tensor:
        return torch.randn(1, EMBEDDING_DIM, device=self.device).to(self.dtype)


class _Attentions(TorchFunctionMode):
    """Calls of attention, and their seconds by kind."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device, self.calls, self.seconds = device, 0, Counter[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        results: list[Any] = []
        seconds, _ = take(lambda: results.append(func(*args, **(kwargs or {}))), self._device)
        queries, keys = args[0].shape[-2], args[1].shape[-2]
        self.calls += 1
        self.seconds["self-attention" if queries == keys else f"attention over {keys} keys"] += seconds
        return results[0]
