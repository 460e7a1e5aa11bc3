"""The commands ``fast-instantid batch embed | generate``: many pictures, by several processes or machines."""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import FastInstantIDError
from ..scale.run_folder import run_folder
from ..scale.units import Workers, run_units
from . import run_jobs
from .generate import jobs_of, open_studio
from .jobs import Job
from .models import Models, face_analyzer, face_pack
from .options import command, face_options, generate_options, person_option, portable, positive
from .output import Remaining, output, print_json, say

_FACE_SETTINGS = ("backend", "face_threshold", "face_dtype", "face_sizes", "batch_size", "threads")
_SETTINGS = (
    *(*_FACE_SETTINGS, "pack", "base", "instantid", "dtype"),
    *("fast", "layers", "identity_range", "identity_net_range", "identity_net_every"),
)


def add_command(commands: Any) -> None:
    text = "work on many pictures, with several processes or machines"
    batch = command(commands, "batch", None, text, "embed photos -o embeddings")
    actions = batch.add_subparsers(required=True, metavar="ACTION")
    text = "find and recognise the faces of many pictures: Parquet files with a row for each face"
    embed = command(actions, "embed", _embed, text, "photos -o embeddings --workers 4")
    _worker_options(embed)
    text = "pictures, folders, patterns, or .csv and .parquet tables of paths; local, or of fsspec such as s3://"
    embed.add_argument("inputs", nargs="+", metavar="INPUT", help=text)
    text = "of a table, with the paths (default: path, file, image, ... or the only one)"
    embed.add_argument("--column", metavar="NAME", help=text)
    text = "pictures that are searched at once; eight batches make a file"
    embed.add_argument("--batch-size", type=positive, default=8, metavar="N", help=text)
    embed.add_argument("--json", action="store_true", help="print one JSON document")
    face_options(embed)

    text = "draw many pictures, and report.csv, as the command 'generate' does"
    draw = command(actions, "generate", _generate, text, "jobs.csv -o pictures --likeness --workers 2")
    _worker_options(draw)
    who = draw.add_mutually_exclusive_group()
    text = "a row for each picture; without a prompt, for each --prompt; without a seed, for each --seed"
    who.add_argument("jobs", nargs="?", type=Path, metavar="JOBS.csv", help=text)
    person_option(who)
    draw.set_defaults(photo=None)
    generate_options(draw)


def _worker_options(parser: argparse.ArgumentParser) -> None:
    text = "the folder to write, or to go on with"
    parser.add_argument("-o", "--output", type=output, required=True, help=text)
    pool = parser.add_argument_group("workers", "several need Ray; the results are the same for any number")
    text = "processes that work at the same time (default: one for each GPU, or one)"
    pool.add_argument("--workers", type=positive, metavar="N", help=text)
    text = "threads of each; N workers of one thread are faster than one of N, and need N times the memory"
    pool.add_argument("--threads", type=positive, default=1, metavar="T", help=text)
    text = "Ray cluster to join, also set by $RAY_ADDRESS; its machines share the folders (default: start one here)"
    pool.add_argument("--ray-address", default=os.environ.get("RAY_ADDRESS", ""), metavar="ADDRESS", help=text)


def _embed(options: argparse.Namespace) -> int:
    from ..faces.pack import checksum_of, find_pack
    from ..scale.embed import is_done, units_of
    from ..scale.inputs import folder_of, listed
    from ..sources import local_path

    pack, folder, workers = face_pack(options), options.output, _workers(options)
    each = [listed([source], options.column) for source in options.inputs]
    paths, roots = [*chain(*each)], [*filter(None, map(folder_of, each))]
    found = find_pack(local_path(pack, "a face model pack"), options.cache, warns=False)  # the workers do
    settings: dict[str, Any] = {"run": "embed", "pictures": len(paths)}
    settings["inputs"] = hashlib.sha256("\0".join([*roots, *paths]).encode(errors="surrogatepass")).hexdigest()
    for name, network in (("detector", found.detector), ("recognizer", found.recognizer)):
        settings[name] = checksum_of(network.path, options.cache)
    with run_folder(folder, settings | _settings(options, _FACE_SETTINGS)):
        units = units_of(paths, options.batch_size)
        todo = [unit for unit in units if not is_done(folder / unit.file_name)]
        count = Counter(pictures=0, faces=0, errors=0)
        remaining, start = Remaining("pictures", sum(len(unit.paths) for unit in todo), workers.count), time.monotonic()

        def done(counts: dict[str, int]) -> None:
            count.update(counts)
            remaining.add(counts["pictures"])

        load = partial(_embedder, portable(options), pack, roots, folder, options.batch_size)
        run_units(todo, load, workers, done, folder)
    remaining.show()
    seconds = time.monotonic() - start
    kept = len(paths) - count["pictures"]
    if options.json:
        print_json({"output": str(folder), **count, "kept": kept, "seconds": round(seconds, 3)})
    else:
        counts = ", ".join(f"{value} {name[:-1] if value == 1 else name}" for name, value in count.items())
        rate = f" ({count['pictures'] / max(seconds, 1e-9):.1f} pictures/s, with the start)" if todo else ""
        say(f"{folder}: {counts}{rate}; done before: {kept}")
    return 1 if count["errors"] and not count["faces"] else 0


def _generate(options: argparse.Namespace) -> int:
    if not (options.jobs or options.person or options.settings):
        raise FastInstantIDError("nobody to draw: give JOBS.csv, --person or --from")
    workers, (wanted, models, default) = _workers(options), jobs_of(options)
    settings = {"run": "generate", **_settings(options, _SETTINGS)}
    with run_folder(options.output, settings):
        load = partial(_drawer, portable(options), models, default, options.output)
        return run_jobs.run(wanted, options.output, options.batch_size, load, workers, options.json)


def _embedder(options: argparse.Namespace, pack: Any, *given: Any) -> Any:
    """Load a worker's analyzer. Results are kept on disk only, and none in memory: they would depend on the order."""
    from ..cache import Cache
    from ..scale.embed import embed_unit

    kept = Cache(0, os.environ.get("FAST_INSTANTID_CACHE") or None) if options.cache is None else options.cache
    kept.max_bytes = 0
    analyzer = face_analyzer(argparse.Namespace(**{**vars(options), "cache": kept}), pack)
    return partial(embed_unit, analyzer, *given)


def _drawer(options: argparse.Namespace, models: Models, default: Job, folder: Path) -> Any:
    return partial(run_jobs.draw_batch, open_studio(options, models, default), folder)


def _settings(options: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names} | {"device": _device(options)[0], "version": __version__}


def _device(options: argparse.Namespace) -> tuple[str, str]:
    """Kind and index of the device that computes, such as "cuda" and ""."""
    from ..placement import Placement

    kind, _, index = (options.device or ("cpu" if options.backend == "onnxruntime" else "")).partition(":")
    if options.backend == "torch" and not (kind and options.ray_address):  # this machine says whether it is there
        kind = Placement.resolve(options.device or None).device.type
    return kind, index


def _workers(options: argparse.Namespace) -> Workers:
    """The pool that the options name."""
    from ..placement import gpu_count

    if options.ray_address and not options.workers:
        raise FastInstantIDError(f"Ray at {options.ray_address}: give --workers too, the number of them in the cluster")
    kind, index = _device(options)
    has_gpu = kind in ("cuda", "tensorrt")
    count = options.workers or (max(1, gpu_count()) if has_gpu and not index else 1)
    if index and count > 1:
        raise FastInstantIDError(f"--device {options.device} is one GPU: with {count} workers, give --device {kind}")
    used, cores = count * options.threads, os.cpu_count() or 1
    here = f"{count} worker(s) with {options.threads} thread(s) on {cores} cores"
    if kind == "cpu" and not options.ray_address and used < cores:
        say(f"{here}; --workers and, in a new folder, --threads take more")
    elif kind == "cpu" and not options.ray_address and used > cores:
        say(f"{here}: more than the cores is slower, and each worker needs memory of its own")
    if count > 1:
        say(f"{count} workers start with Ray: the first results take a while")
    return Workers(count, options.threads, has_gpu, options.ray_address)
