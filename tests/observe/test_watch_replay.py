"""What ``watch --replay`` says of files that it did not write, or not to their end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fast_instantid.cli import main
from fast_instantid.observe.gpu import GpuInfo
from fast_instantid.observe.record import GpuRecord
from fast_instantid.observe.replay import read_recording
from fast_instantid.observe.verdict import Holder

TRACES = Path(__file__).parent / "traces"


def replay(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["watch", "--replay", str(path)])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def lines() -> list[str]:
    """Of a whole recording: two of the head, the rows, the end."""
    return (TRACES / "swapping.csv").read_text().splitlines(keepends=True)


def csv(folder: Path, lines: list[str]) -> Path:
    path = folder / "run.csv"
    path.write_text("".join(lines))
    return path


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, _, err = replay(tmp_path / "no.csv", capsys)
    assert code == 1
    assert "no.csv" in err
    assert replay(tmp_path, capsys)[0] == 1


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "empty"),
        ("a,b,c\n1,2,3\n", "expected a .csv or .json file that fast-instantid watch wrote"),
        ("# a comment\n1,2,3\n", "expected a .csv or .json file"),
        ("# {}\n1,2,3\n", "'kind' is missing"),
        ("# []\n", "expected a .csv or .json file"),
        ('# {"kind": "other", "format": 1}\n', "another kind, 'other'"),
        ('# {"kind": "fast-instantid watch", "format": 99}\n', "reads format 1"),
        ("{", "damaged or cut off"),
        ("{}", "'kind' is missing"),
        ('{"kind": "fast-instantid watch", "format": 1}', "is missing"),
        ("\x89PNG\r\n\x1a\n\x00\x00\n", "expected a .csv or .json file"),
        ("{" * 100_000, "damaged or cut off"),
        ('{"a":' * 100_000, "damaged or cut off"),
    ],
)
def test_a_file_that_is_no_recording(content: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "file"
    path.write_text(content, encoding="latin-1")
    code, out, err = replay(path, capsys)
    assert code == 1
    assert out == ""
    assert text in err
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_columns(tmp_path: Path, lines: list[str], capsys: pytest.CaptureFixture[str]):
    lines[1] = lines[1].replace("utilization", "use")
    code, _, err = replay(csv(tmp_path, lines), capsys)
    assert code == 1
    assert "line 2: its columns are 'gpu,time,memory_used" in err


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("nan", "utilization is nan"),
        ("inf", "utilization is inf"),
        ("-1", "utilization is -1.0"),
        ("a", "could not convert string to float"),
        ("1,2", "12 numbers instead of 11"),
    ],
)
def test_a_bad_line_is_named(cell: str, text: str, tmp_path: Path, lines: list[str], capsys):
    cells = lines[50].split(",")
    cells[5] = cell
    lines[50] = ",".join(cells)
    code, _, err = replay(csv(tmp_path, lines), capsys)
    assert code == 1
    assert "line 51" in err
    assert text in err
    # The same as the last line: what the machine did not finish writing as it went down.
    code, out, err = replay(csv(tmp_path, lines[:51]), capsys)
    assert code == 0
    assert "line 51" in err
    assert "left out" in err
    assert "swapping" in out


def test_lines_of_an_unknown_gpu_or_out_of_order(tmp_path: Path, lines: list[str], capsys: pytest.CaptureFixture[str]):
    assert "time goes back" in replay(csv(tmp_path, [*lines[:50], lines[40], *lines[50:]]), capsys)[2]
    lines[50] = "7" + lines[50][1:]
    assert "there is no GPU '7'" in replay(csv(tmp_path, lines), capsys)[2]


def test_every_cut_is_readable(tmp_path: Path, lines: list[str]):
    """Wherever a kill hits: what is whole counts, and that something is missing is said."""
    text = "".join(lines)
    path = tmp_path / "run.csv"
    begin = len(lines[0]) + len(lines[1])
    for end in range(begin, begin + 400):
        path.write_text(text[:end])
        recording = read_recording(path)
        assert recording.gpus["0"].evidence.samples == text[:end].count("\n") - 2
        assert any("cut off" in note for note in recording.notes)


def test_a_json_document_gives_the_same_verdict_as_its_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("swapping", "two_processes", "room_unused"):
        original = read_recording(TRACES / f"{name}.csv")
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(original.document()))
        assert read_recording(path).document() == original.document()
        assert replay(path, capsys)[0] == 0


def test_a_cut_json_document_points_to_the_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = json.dumps(read_recording(TRACES / "swapping.csv").document())
    path = tmp_path / "run.json"
    path.write_text(text[: len(text) // 2])
    code, _, err = replay(path, capsys)
    assert code == 1
    assert "replay the CSV file beside it" in err


def test_a_json_document_with_wrong_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    document = read_recording(TRACES / "swapping.csv").document()
    path = tmp_path / "run.json"
    width = len(document["gpus"][0]["columns"])
    for row in ([1.0], ["x"] * width, [[]] * width, [None] * width, [0.1] * (width - 1) + [1e300], None, 5):
        broken = json.loads(json.dumps(document))
        broken["gpus"][0]["rows"][3] = row
        path.write_text(json.dumps(broken))
        code, _, err = replay(path, capsys)
        assert code == 1
        assert "expected a .csv or .json file that fast-instantid watch wrote" in err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("index", 10**400),
        ("name", 5),
        ("name", None),
        ("name", "half a character: \ud800"),
        ("vendor", []),
        ("memory_total", 10**400),
        ("memory_total", -1),
        ("memory_total", True),
        ("memory_total", "8"),
        ("max_clock", "x"),
        ("max_clock", float("nan")),
        ("max_width", 1.5),
        ("interval", None),
        ("interval", 1e300),
    ],
)
def test_a_head_that_was_changed(name: str, value: object, tmp_path: Path, lines: list[str], capsys):
    head = json.loads(lines[0][1:])
    (head if name in head else head["gpus"][0])[name] = value
    code, out, err = replay(csv(tmp_path, [f"# {json.dumps(head)}\n", *lines[1:]]), capsys)
    assert (code, out) == (1, "")
    assert f"line 1: {name} is" in err or "utf-8" in err


@pytest.mark.parametrize(
    "change",
    [{"memory": "6 GB"}, {"memory": 10**400}, {"pid": None}, {"name": 7}, {"name": "\ud800"}, {"color": "red"}],
)
def test_a_holder_that_was_changed(change: dict[str, object], tmp_path: Path, lines: list[str], capsys):
    holder = {"pid": 5, "name": "python3", "memory": 1, "watched": True, **change}
    lines.insert(60, f"# {json.dumps({'gpu': '0', 'holders': [holder]})}\n")
    code, _, err = replay(csv(tmp_path, lines), capsys)
    assert code == 1
    assert "line 61: " in err


@pytest.mark.parametrize(
    "change",
    [{"swapping": "maybe"}, {"headline": 5}, {"reasons": "text"}, {"advice": [None]}, {"headline": "\ud800"}],
)
def test_a_verdict_that_was_changed(change: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    document = read_recording(TRACES / "swapping.csv").document()
    document["gpus"][0]["verdict"] |= change
    path = tmp_path / "run.json"
    path.write_text(json.dumps(document))
    code, out, err = replay(path, capsys)
    assert (code, out) == (1, "")
    assert "expected a .csv or .json file that fast-instantid watch wrote" in err


def test_a_json_document_of_a_long_recording_keeps_its_verdict_and_its_waits(tmp_path: Path):
    """Half an hour, of which neighbours are merged: judged anew, they would be waits no longer."""
    recording = read_recording(TRACES / "swapping.csv")
    gpu = recording.gpus["0"]
    pattern = [row for row in gpu.trace.rows if row.time >= 8]
    for i in range(18_000):
        gpu.add(replace(pattern[i % len(pattern)], time=30 + i / 10))
    assert gpu.trace.merging == 8
    document = recording.document()
    path = tmp_path / "run.json"
    path.write_text(json.dumps(document))
    again = read_recording(path)
    assert again.verdicts() == recording.verdicts()
    assert again.document() == document
    for rows in (gpu.trace.rows, again.gpus["0"].trace.rows):
        waited = sum(row.waited or 0.0 for row in rows) / len(rows)
        assert waited == pytest.approx(gpu.evidence.waits.seconds / gpu.evidence.seconds, rel=0.02)


def test_what_has_grown_is_in_the_csv():
    """Who replays it is told of the same sizes as who watched."""
    gpu = GpuRecord(GpuInfo(0, "a card", "nvidia"))
    assert gpu.see([Holder(5, "python3", 250 << 20, True)])
    assert not gpu.see([Holder(5, "python3", 300 << 20, True)])
    assert gpu.see([Holder(5, "python3", 6 << 30, True)])
    assert not gpu.see([Holder(5, "python3", 1 << 30, True)])
    assert [holder.memory for holder in gpu.holders] == [6 << 30]


def test_a_picture_in_the_way_of_another_name_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("other.png", "second.gpu0.png", "third.gpuamd0.png"):
        (tmp_path / name).write_text("mine")
        output = tmp_path / name.partition(".")[0]
        assert main(["watch", "--replay", str(TRACES / "swapping.csv"), "-o", str(output)]) == 1
        assert f"{name}: this exists" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 3
