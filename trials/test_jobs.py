"""Thirty pictures, drawn by a process that is killed again and again."""

from __future__ import annotations

import csv
import io
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from fast_instantid import FaceAnalyzer, miniature, pipelines
from fast_instantid.cli import jobs, main
from fast_instantid.people import find_person
from tests.adversity import needs_posix
from trials.forked import fork, kill_after

pytestmark = needs_posix
COMMAND = ["generate", "--jobs", "jobs.csv", "-o", "out", "--base", "miniature", "--device", "cpu", "--steps", "1"]


@pytest.fixture
def thirty(tmp_path, monkeypatch):
    """A folder with six persons and thirty jobs, and the pipeline loaded for the children."""
    monkeypatch.chdir(tmp_path)
    files = miniature.files()
    analyzer = FaceAnalyzer.load(files.pack, device="cpu")
    people = [find_person(analyzer, portrait) for portrait in files.portraits]
    for person in people:
        person.save(f"{person.name}.safetensors")
    with open("jobs.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["person", "prompt", "seed"])
        writer.writerows([f"{people[i % 6].name}.safetensors", f"picture {i}", i] for i in range(30))
    loaded = pipelines.load_pipeline(files.base, files.instantid, "cpu")
    monkeypatch.setattr(pipelines, "load_pipeline", lambda *_: loaded)
    return people


def pictures() -> set[Path]:
    """Without the temporary files that kills leave, which a later run removes."""
    return {path for path in Path("out").glob("*.png") if not path.name.startswith(".")}


def test_a_batch_that_is_killed_ends_complete(thirty, trials, note):
    """At the first end without a kill, each picture is there once, whole, and none was drawn twice."""
    kills = 0
    for source in trials:
        drawn: dict[Path, int] = {}
        longest = 1.0
        while kill_after(fork(lambda: os._exit(main(COMMAND))), source.uniform(0.05, longest)):
            kills += 1
            longest *= 1.2  # a busy machine draws nothing in a second
            for path in pictures():
                assert drawn.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
        with open("out/report.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["status"] for row in rows} <= {"drawn", "kept"}
        assert {row["output"] for row in rows} == {path.name for path in pictures()}
        assert len({row["output"] for row in rows}) == 30
        for row in rows:
            settings = jobs.settings_of(Path("out", row["output"]))
            assert (settings["prompt"], settings["seed"]) == (row["prompt"], int(row["seed"]))
            assert np.asarray(Image.open(Path("out", row["output"]))).std() > 1
        for path in Path("out").iterdir():
            path.unlink()
    note(f"{kills} kills")


def test_a_child_that_is_killed_in_a_progress_bar_blocks_no_other():
    def hold() -> None:
        tqdm.get_lock().acquire()
        time.sleep(60)

    tqdm.get_lock()  # made here, before the fork
    assert kill_after(fork(hold), 0.5)
    drawing = threading.Thread(target=lambda: [*tqdm(range(3), file=io.StringIO())], daemon=True)
    drawing.start()
    drawing.join(30)
    assert not drawing.is_alive()
