"""The command for a bare machine with a GPU: its rows, what ends them, and the bundle that it travels in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import schema
from benchmarks.gpu import suite
from benchmarks.gpu.rows import ROWS, Row

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 60_000_000
CHECKOUTS = [os.environ.get(name, "") for name in ("COMFYUI_PATH", "REFERENCE_PATH")]
CHECKOUTS = CHECKOUTS if all(CHECKOUTS) else []
# A suite that writes a row each tenth of a second, as many as QUICK says.
SUITE = """
import json, os, sys, time
from pathlib import Path
name, target = sys.argv[1], Path(sys.argv[-1])
with open(os.environ["STARTS"], "a") as starts: starts.write(name + "\\n")
if name == "fails": sys.exit("no memory is left on the card")
if name == "missing": import no_such_package
about = {"date": "2026-11-30", "machine": "", "processor": "", "cores": 1, "python": "3.12", "versions": {"torch": "2"}}
rows = []
for i in range(int(os.environ["QUICK"]) if name == "slow" else 1):
    rows.append({"name": f"turn {i}", "process": os.getpid()})
    if "prints" in sys.argv: print(json.dumps(rows[-1]))
    else:
        target.with_suffix(".unfinished").write_text(json.dumps({"suite": "slow", "about": about, "results": rows}))
        target.with_suffix(".unfinished").replace(target)
    time.sleep(0.1)
"""
FAILS, MISSING, SLOW, LAST = (Row(name, f"a_suite {name}", 0.5) for name in ("fails", "missing", "slow", "last"))
PRINTS = Row("slow", "a_suite slow prints", 0.5)
RUN = """
import sys
from pathlib import Path
from benchmarks.gpu import suite
from benchmarks.gpu.rows import Row
suite.ROWS = (Row("slow", sys.argv[2], 0.5), Row("last", "a_suite last", 0.5))
suite.run(10, Path(sys.argv[1]), "cpu", "full", None, None, Path(sys.argv[1]), (), False)
"""


@pytest.fixture(autouse=True)
def _suite(tmp_path, monkeypatch):
    (tmp_path / "a_suite.py").write_text(SUITE)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setattr(signal, "signal", lambda *_: None)


def measure(folder: Path, table: tuple[Row, ...], minutes: float = 5.0, **options: Any) -> dict[str, dict[str, Any]]:
    """The rows of the document after a call."""
    given = {"size": "full", "comfyui": None, "reference": None, "rows": (), "listed": False} | options
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(suite, "ROWS", table)
        suite.run(minutes, folder / "results", "cpu", work=folder / "work", **given)
    return rows_in(folder / "results")


def rows_in(folder: Path) -> dict[str, dict[str, Any]]:
    document = json.loads((folder / "gpu.json").read_text())
    schema.validate(document)
    return {row["name"]: row for row in document["results"]}


def starts(folder: Path) -> list[str]:
    return (folder / "starts").read_text().split()


def test_a_row_that_fails_stops_no_other(tmp_path):
    packs = Row("packs", "a_suite {packs}", 0.5)
    found = measure(tmp_path, (FAILS, MISSING, packs, LAST))
    assert [row["status"] for row in found.values()] == ["failed", "not measured", "not measured", "done"]
    assert found["fails"]["reason"] == "no memory is left on the card"
    assert found["missing"]["reason"] == "ModuleNotFoundError: No module named 'no_such_package'"
    assert "--comfyui" in found["packs"]["reason"]
    assert found["last"]["measured"][0]["results"][0]["name"] == "turn 0"
    assert "no memory is left" in (tmp_path / "results" / "gpu.log").read_text()


def test_a_second_call_repeats_neither_what_is_done_nor_what_failed(tmp_path):
    rows = FAILS, MISSING, LAST
    measure(tmp_path, rows)
    measure(tmp_path, rows)
    assert starts(tmp_path) == ["fails", "missing", "last", "missing"], "what was missing may be there now"
    measure(tmp_path, rows, rows=["fails", "last"])
    assert starts(tmp_path)[4:] == ["fails"], "a row that is named is tried again"


@pytest.mark.parametrize("row", [SLOW, PRINTS], ids=["writes", "prints"])
def test_time_is_up_and_a_second_call_takes_up_what_is_left(tmp_path, monkeypatch, row):
    monkeypatch.setenv("QUICK", "1000")
    monkeypatch.setattr(suite, "_GRACE", 0)
    begin = time.monotonic()
    found = measure(tmp_path, (row, LAST), minutes=0.06)
    assert time.monotonic() - begin < 20
    assert (found["slow"]["status"], found["slow"]["reason"]) == ("partial", "cut off: the time was up")
    assert len(found["slow"]["measured"][0]["results"]) >= 1
    assert (found["last"]["status"], found["last"]["reason"]) == ("not measured", "not reached yet")
    assert not psutil.pid_exists(found["slow"]["measured"][0]["results"][0]["process"])
    measure(tmp_path, (row, LAST), minutes=0.02)  # too little for either: the first of a call is tried all the same
    monkeypatch.setenv("QUICK", "3")
    found = measure(tmp_path, (row, LAST))
    assert [row["status"] for row in found.values()] == ["done", "done"]
    [whole] = found["slow"]["measured"]
    assert len(whole["results"]) == 3


def test_a_row_has_a_limit_of_its_own_and_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("QUICK", "1000")
    monkeypatch.setattr(suite, "SPARE", 3)
    found = measure(tmp_path, (Row("slow", "a_suite slow", 0.001), LAST))
    assert found["slow"]["reason"] == "cut off after 3 seconds"
    assert found["last"]["status"] == "done"
    measure(tmp_path, (SLOW, LAST))
    assert starts(tmp_path) == ["slow", "last"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("row", [SLOW, PRINTS], ids=["writes", "prints"])
def test_a_call_that_is_killed_loses_nothing(tmp_path, monkeypatch, number, row):
    monkeypatch.setenv("QUICK", "1000")
    results = tmp_path / "results"
    process = subprocess.Popen([sys.executable, "-c", RUN, str(results), row.command], cwd=tmp_path)
    log = results / "gpu.log"
    deadline = time.monotonic() + 120
    while not ((results / "slow-0.json").exists() or (log.exists() and '"turn 2"' in log.read_text())):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.send_signal(number)  # as timeout does
    process.wait(30)
    for child in children:
        if number == signal.SIGKILL:
            child.kill()  # as the machine does with what a killed command leaves
        child.wait(30)
    found = rows_in(results)["slow"]
    assert found["status"] == "partial"
    assert ("measured" in found) == (number == signal.SIGTERM)
    with open(log, "a") as other:
        other.write('\n#### other #### \n{"name": "not a row of slow"}\n')
    monkeypatch.setenv("QUICK", "1")
    taken_up = measure(tmp_path, (FAILS, row), rows=["fails"])["slow"]["measured"][0]["results"]
    assert taken_up[0]["name"] == "turn 0"
    assert all(one["name"].startswith("turn") for one in taken_up)
    found = measure(tmp_path, (row,))  # not measured whole before
    assert found["slow"]["status"] == "done"
    assert starts(tmp_path) == ["slow", "fails", "slow"], "what was not whole is measured again"


def test_what_was_cut_off_is_kept_until_the_row_is_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("QUICK", "1000")
    monkeypatch.setattr(suite, "_GRACE", 0)
    first = measure(tmp_path, (SLOW,), minutes=0.06)["slow"]["measured"]
    again = measure(tmp_path, (SLOW,), minutes=0.06)["slow"]["measured"]
    assert again[0] == first[0]
    assert len(again) == 2
    (tmp_path / "results" / "last-0.json").write_text(json.dumps(first[0]))  # as a call that was killed leaves it
    document = json.loads((tmp_path / "results" / "gpu.json").read_text())
    document["results"].append({"name": "last", "status": "partial", "reason": suite.CUT})
    (tmp_path / "results" / "gpu.json").write_text(json.dumps(document))
    found = measure(tmp_path, (SLOW, LAST, FAILS), rows=["fails"])
    assert found["last"]["measured"] == first
    assert found["slow"]["measured"] == again


def test_two_processes_at_once_have_a_document_each(tmp_path):
    [row] = measure(tmp_path, (Row("two", "a_suite last", 0.5, processes=2),)).values()
    first, second = (one["results"][0]["process"] for one in row["measured"])
    assert first != second


def test_results_stay_with_their_device_and_rows_have_names(tmp_path, capsys):
    measure(tmp_path, (LAST,))
    with pytest.raises(SystemExit, match="another device or size"):
        measure(tmp_path, (LAST,), size="tiny")
    with pytest.raises(SystemExit, match="no row 'first'"):
        measure(tmp_path, (LAST,), rows=["first"])
    capsys.readouterr()
    measure(tmp_path, (LAST, SLOW), listed=True)
    listed = capsys.readouterr().out
    assert "done" in listed
    assert "not reached yet" in listed
    assert "a_suite slow" in listed
    assert starts(tmp_path) == ["last"]


def test_rows_that_were_printed_are_read_as_far_as_they_are_whole():
    assert suite._row_in('{"name": "one", "seconds": 1}') == {"name": "one", "seconds": 1}
    assert suite._row_in('{"name": "one", "sec') is None
    assert suite._row_in('{"suite": "faces"}') is None
    test = "tests/test_fused.py::test_it[1-a b] "
    assert suite._row_in(f"{test}PASSED [ 4%]") == {"name": test.strip(), "outcome": "PASSED"}


def test_rows_have_names_of_their_own_and_fit_into_a_call():
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert all(row.minutes <= 8 for row in ROWS)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("a bare machine")
    archive = folder / "gpu-bundle.tar.gz"
    command = ["bash", str(ROOT / "benchmarks" / "gpu" / "bundle.sh"), str(archive), str(ROOT / "build" / "wheels")]
    printed = subprocess.run([*command, *CHECKOUTS], check=True, stdout=subprocess.PIPE, text=True).stdout
    sys.stdout.write(printed)
    assert archive.stat().st_size < LARGEST
    with tarfile.open(archive) as packed:
        assert sum(member.size for member in packed) < LARGEST
        packed.extractall(folder, filter="data")
    return folder / "gpu-bundle"


def call(bundle: Path, *arguments: str) -> str:
    """What ``run.sh`` prints, started outside of any checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHON": sys.executable}
    command = ["bash", str(bundle / "run.sh"), "--device", "cpu", "--size", "tiny", *arguments]
    return subprocess.run(
        command, cwd=bundle.parent, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def test_the_bundle_imports_nothing_of_ours_from_elsewhere(bundle):
    names = "benchmarks, examples.tiny_faces, fast_instantid, tests.fresh"
    (bundle / "project" / "probe.py").write_text(f"import {names}\nfor one in ({names}): print(one.__file__)\n")
    script = (bundle / "run.sh").read_text().replace('-m benchmarks gpu "${packs[@]}"', "-m probe")
    (bundle / "probe.sh").write_text(script)
    environment = os.environ | {"PYTHON": sys.executable}
    printed = subprocess.run(
        ["bash", str(bundle / "probe.sh")], cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    paths = [line for line in printed.splitlines() if line.endswith(".py")]
    assert len(paths) == 4
    assert all(Path(path).is_relative_to(bundle) for path in paths)


@pytest.mark.slow
def test_the_bundle_runs_from_end_to_end(bundle):
    """With COMFYUI_PATH and REFERENCE_PATH all rows, for as long as it takes; else those that are quick without."""
    quick = {"pipelines", "tests that a GPU changes"}
    rows = [] if CHECKOUTS else ["--rows", *(row.name for row in ROWS if "{packs}" in row.command or row.name in quick)]
    printed = call(bundle, "--minutes", "60", "--results", "out", *rows)
    found = rows_in(bundle.parent / "out")
    left_out = {name for name, row in found.items() if row["status"] == "not measured"}
    sys.stdout.write(f"left out: {', '.join(left_out) or 'none'}\n")
    assert left_out == (set() if CHECKOUTS else found.keys() - quick), printed
    assert all(row["status"] == "done" for name, row in found.items() if name not in left_out), printed
    assert len([*(bundle.parent / "out").iterdir()]) <= 8
