"""Batches on a real local cluster of Ray: two workers, kills, and the bytes of one process."""

from __future__ import annotations

import csv
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("ray")

from fast_instantid import miniature
from fast_instantid.cli import main
from fast_instantid.errors import BackendError, ImageError
from fast_instantid.scale.units import Workers, _Worker, run_units
from tests.batches import (
    FACES,
    addresses,
    below,
    contents,
    is_running,
    kill,
    rows,
    start,
    wait_until,
    workers_below,
    write_portraits,
)
from tests.fresh import fresh_python

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers to kill in /proc")
LOOPBACK = ("0100007F", f"{'0' * 16}FFFF00000100007F", f"{'0' * 24}01000000")  # of IPv4, mapped, and of IPv6
PREFIX = ".fast-instantid-89abcdef"
MINIATURE = ("--base", "miniature", "--device", "cpu", "--steps", "1", "--size", "64x64")


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster with two CPUs, on the loopback."""
    import ray
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield made.address
    ray.shutdown()
    made.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    write_portraits(folder, 96)
    (folder / "00050.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def whole(library, tmp_path_factory):
    """What one process without Ray writes."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["batch", "embed", str(library), "-o", str(folder), "--batch-size", "1", *FACES]) == 0
    return folder


def test_a_worker_is_killed_and_nothing_is_lost_or_done_twice(cluster, library, whole, tmp_path, capfd):
    out, killed = tmp_path / "out", []

    def kill_one():
        wait_until(lambda: len(workers_below(os.getpid())) == 2 and len(contents(out)) in range(2, 9))
        killed.append(workers_below(os.getpid())[0])
        killed.append({path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")})
        kill(killed[0])

    killer = threading.Thread(target=kill_one)
    killer.start()
    options = ("--batch-size", "1", "--workers", "2", "--ray-address", cluster, *FACES)
    assert main(["batch", "embed", str(library), "-o", str(out), *options]) == 0
    killer.join()
    pid, before = killed
    assert not is_running(pid)
    assert contents(out, "") == contents(whole, "")
    assert [row["path"] for row in rows(out)] == [str(path) for path in sorted(library.iterdir())]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    output = capfd.readouterr()
    assert output.out == ""
    assert "96 pictures, 95 faces, 1 error " in output.err


def test_pictures_are_the_same_from_one_process_and_from_two_workers(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for path in miniature.files().portraits[:3]:
        shutil.copy(path, path.name)
    names = [path.name for path in miniature.files().portraits[:3]]
    Path("jobs.csv").write_text("person\n" + "".join(f"{name}\n" for name in names) + "missing.png\n")
    command = ["batch", "generate", "jobs.csv", "--prompt", "a", "b", "--seed", "1", "2", "--likeness", *MINIATURE]
    assert main([*command, "-o", "one"]) == 1
    assert main([*command, "-o", "two", "--workers", "2", "--ray-address", cluster]) == 1
    report = list(csv.DictReader(Path("one/report.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["status"] for row in report] == ["drawn"] * 12 + ["failed"] * 4
    assert all(row["likeness"] for row in report[:12])
    assert len(contents(Path("one"), ".png")) == 12
    assert contents(Path("one"), "") == contents(Path("two"), "")
    assert main([*command, "-o", "one", "--batch-size", "3"]) == 1
    assert "holds results of another run: batch_size was 4 and is 3" in capsys.readouterr().err
    # A batch of which a part is there is drawn as before, and only what lacks is written.
    gone = Path("two") / report[5]["output"]
    gone.unlink()
    times = {path: path.stat().st_mtime_ns for path in Path("two").glob("*.png")}
    assert main([*command, "-o", "two"]) == 1
    assert contents(Path("one"), ".png") == contents(Path("two"), ".png")
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_warnings_of_workers_are_shown_once(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.open(miniature.files().portraits[0]).rotate(-90, expand=True).save("turned.png")
    command = ["batch", "generate", "--person", "turned.png", "--prompt", *"abcdef", *MINIATURE, "--batch-size", "1"]
    assert main([*command, "-o", "out", "--workers", "2", "--ray-address", cluster]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: turned.png: the face")]
    assert len(warned) == 1


def test_a_unit_that_ended_three_workers_ends_the_run(tmp_path, request):
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    worker = _Worker(lambda: str, 1, os.getcwd(), tmp_path / PREFIX, {})
    tried = tmp_path / f"{PREFIX}{7:08x}"
    for tries in (0, 2):
        tried.write_bytes(b"." * tries)
        assert pickle.loads(worker({"unit": pickle.dumps((7, 5))})["result"]) == ("5", None, tries + 1)
        assert not tried.exists(), "a unit that is done is tried anew by another run"
    tried.write_bytes(b"...")
    _, error, _ = pickle.loads(worker({"unit": pickle.dumps((7, 5))})["result"])
    assert isinstance(error, BackendError)
    assert "unit 7 ended 3 workers" in str(error)


def test_a_worker_that_ends_while_it_loads_counts_as_a_try(tmp_path, request):
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    tried = tmp_path / f"{PREFIX}{7:08x}"
    seen = []

    def load():
        seen.append(tried.read_bytes())
        return str

    worker = _Worker(load, 1, os.getcwd(), tmp_path / PREFIX, {})
    assert pickle.loads(worker({"unit": pickle.dumps((7, 5))})["result"])[0] == "5"
    assert seen == [b"."]


def test_tries_belong_to_one_start(cluster, tmp_path, recwarn):
    """Where nothing sweeps the folder, those of starts that Ctrl-C ended say nothing of the unit."""

    def load():
        return lambda unit: [path.name for path in tmp_path.iterdir()]

    seen = []
    for _ in range(2):
        run_units(["unit"], load, Workers(2, 1, address=cluster), seen.extend, tmp_path)
    assert len({*seen}) == 2
    assert not [str(warned.message) for warned in recwarn if "actors" in str(warned.message)]


class TwoArguments(Exception):
    """Cannot be unpickled."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (KeyError("x"), KeyError, "'x'"),
        (ImageError("a.png: damaged"), ImageError, "a.png: damaged"),
        (TwoArguments("x", "y"), RuntimeError, "TwoArguments: x: y"),
    ],
)
def test_what_a_unit_raises_reaches_the_command(tmp_path, request, raised, kind, text):
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))

    def work(unit):
        raise raised

    worker = _Worker(lambda: work, 1, os.getcwd(), tmp_path / PREFIX, {})
    _, error, _ = pickle.loads(worker({"unit": pickle.dumps((7, 5))})["result"])
    assert (type(error), str(error)) == (kind, text)


def test_an_error_of_the_disk_names_its_file(tmp_path, request):
    """That of a full disk has no name, where a file is written without its path."""
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    for named in (("out/part-00000.parquet",), ()):

        def work(unit, named=named):
            raise OSError(28, "No space left", *named)

        worker = _Worker(lambda work=work: work, 1, os.getcwd(), tmp_path / PREFIX, {})
        _, error, _ = pickle.loads(worker({"unit": pickle.dumps((7, 5))})["result"])
        assert (error.errno, error.strerror, error.filename) == (28, "No space left", *(named or [str(tmp_path)]))


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_command_that_ends_leaves_no_process_and_goes_on_later(sent, library, whole, tmp_path):
    """On a cluster of its own, which says nothing."""
    out = tmp_path / "out"
    process = start("batch", "embed", library, "-o", out, "--batch-size", 1, "--workers", 2, *FACES)
    try:
        wait_until(lambda: process.poll() or (contents(out) and len(workers_below(process.pid)) == 2), 240)
        workers = workers_below(process.pid)
        used = addresses(below(process.pid))
        (os.killpg if sent == signal.SIGINT else os.kill)(process.pid, sent)  # as a terminal sends Ctrl-C
        wait_until(lambda: not any(map(is_running, workers)))
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert LOOPBACK[0] in used
    assert used <= {*LOOPBACK}, "Ray's ports let everyone who reaches them run code"
    assert stdout == ""
    said = [line for line in stderr.splitlines() if " worker" not in line]
    assert said == (["interrupted"] if sent == signal.SIGINT else [])
    assert process.returncode == (130 if sent == signal.SIGINT else -sent)
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert 0 < len(before) < 12
    assert main(["batch", "embed", str(library), "-o", str(out), "--batch-size", "1", *FACES]) == 0
    assert contents(out, "") == contents(whole, "")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_interrupt_while_ray_starts_ends_the_command_in_order(library, tmp_path):
    """Cut off there, Ray crashes at the end of the process."""
    code = """
import os, signal, sys, ray
signal.signal(signal.SIGINT, signal.default_int_handler)
made = ray._raylet.CoreWorker
def make(*arguments, **options):
    worker = made(*arguments, **options)
    os.kill(os.getpid(), signal.SIGINT)
    return worker
ray._raylet.CoreWorker = make
from fast_instantid.cli import main
sys.exit(main(sys.argv[1:]))
"""
    command = [
        sys.executable,
        "-c",
        code,
        "batch",
        "embed",
        str(library),
        "-o",
        str(tmp_path / "out"),
        "--workers",
        "2",
    ]
    done = subprocess.run([*command, *FACES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "interrupted")
    assert contents(tmp_path / "out") == {}


def test_a_cluster_that_is_not_there_is_said_at_once(library, tmp_path, capsys):
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        options = ("--workers", "2", "--ray-address", address, *FACES)
        assert main(["batch", "embed", str(library), "-o", str(tmp_path / "out"), *options]) == 1
        assert f"no cluster of Ray at {address}: [Errno 111] Connection refused" in capsys.readouterr().err


def test_ray_that_is_not_there_is_named(library, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["batch", "embed", str(library), "-o", str(tmp_path / "out"), "--workers", "2", *FACES]) == 1
    assert "several workers need Ray: pip install 'fast-instantid[ray]', or --workers 1" in capsys.readouterr().err


def test_one_worker_imports_no_ray(library, tmp_path):
    code = "import sys\nfrom fast_instantid.cli import main\nmain(sys.argv[1:])\nprint('ray' in sys.modules)"
    picture = library / "00000.png"
    assert fresh_python(code, "batch", "embed", str(picture), "-o", str(tmp_path / "out"), *FACES).stdout == "False\n"
