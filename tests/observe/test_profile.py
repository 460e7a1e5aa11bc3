"""A profile: numbers that add up whatever was recorded, and files that lose nothing."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from fast_instantid import FastInstantIDError
from fast_instantid.observe.profile import Profile
from fast_instantid.observe.stages import OUTSIDE, add_up
from fast_instantid.observe.table import align, branches, format_bytes, format_time, stage_table
from fast_instantid.recorder import Recorder, Span, count, stage

NAMES = ("UNet", "VAE", "日本語", "</script>", "a\nb\x1b[31m", "", OUTSIDE, "stage {{data}}")


def random_profile(seed: int, threads: int = 3, device: bool = True) -> Profile:
    """A recording that could have been: nested, in some threads, with all kinds of names and facts."""
    dice = random.Random(seed)
    spans: list[Span] = []
    duration = dice.randrange(1, 10**10)

    def fill(parent: int, thread: int, start: int, end: int, depth: int) -> None:
        edges = sorted(dice.randint(start, end) for _ in range(2 * dice.randint(depth == 0, 3 if depth < 5 else 0)))
        for begin, stop in zip(edges[::2], edges[1::2], strict=True):
            facts = {name: dice.randrange(10**12) for name in ("nbytes", "hits", "misses") if dice.random() < 0.3}
            facts |= dice.choice([{}, {}, {"kind": "text"}, {"part": 0.1}, {"allocated": 7 << 30}, {"unfinished": 1}])
            times = (
                (begin + dice.randrange(-5, 10**6), stop - begin) if device and dice.random() < 0.7 else (None, None)
            )
            spans.append(Span(dice.choice(NAMES), parent, thread, begin, stop - begin, *times, facts))
            fill(len(spans) - 1, thread, begin, stop, depth + 1)

    for thread in range(threads):
        fill(-1, thread, 0, duration, 0)
    # As a recorder would have written them down: in order of their begin, outer ones first.
    order = sorted(range(len(spans)), key=lambda number: (spans[number].start, number))
    places = {number: place for place, number in enumerate(order)} | {-1: -1}
    spans = [replace(spans[number], parent=places[spans[number].parent]) for number in order]
    names = [f"thread {number}" for number in range(threads)]
    return Profile(
        "any 'title' </title>", spans, duration, dice.random() * 2e9, names, dice.randrange(3), "", {"": "x"}
    )


@pytest.fixture
def recorded() -> Profile:
    """A real recording with two threads."""
    with Recorder() as recorder:
        with stage("load", nbytes=3 << 20):
            time.sleep(0.002)
        thread = threading.Thread(target=lambda: _sleep_in("decode", 0.02), name="reader")
        thread.start()
        with stage("sampling"):
            for _ in range(3):
                with stage("UNet"):
                    _sleep_in("identity branch", 0.002)
                count(hits=1, misses=1, disk_hits=1)
        thread.join()
    return Profile.of(recorder, "a run")


def _sleep_in(name: str, seconds: float) -> None:
    with stage(name):
        time.sleep(seconds)


# --- adding up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("seed", range(10))
def test_the_numbers_add_up(seed, threads):
    profile = random_profile(seed, threads)
    whole = add_up(profile.spans, profile.duration)
    everything = [total for _, total in branches(whole)]
    overlap = sum(total.time for total in whole.inner.values()) - profile.duration
    assert overlap >= 0
    assert threads > 1 or not overlap
    for total in everything:
        inner = sum(part.time for part in total.inner.values())
        if total is whole:
            assert inner == profile.duration + overlap
        else:
            assert total.self_time + inner == total.time
            assert total.self_time >= 0
    assert sum(total.self_time for total in everything) == profile.duration + overlap
    assert sum(total.calls for total in everything) == len(profile.spans) + 2  # the whole run, and what is outside
    for fact in ("nbytes", "hits", "misses"):
        assert whole.facts.get(fact, 0) == sum(span.facts.get(fact, 0) for span in profile.spans)
    on_device = [span.device_duration for span in profile.spans if span.device_duration is not None]
    assert sum(total.device_time or 0 for total in everything) == sum(on_device)
    profile.tree()


def test_what_no_stage_covers_is_when_no_thread_was_in_one():
    spans = [Span("a", -1, 0, 10, 20), Span("b", -1, 1, 20, 20), Span("c", -1, 0, 50, 10)]
    assert add_up(spans, 100).inner[OUTSIDE].time == 100 - (40 - 10) - 10


def test_a_stage_thousands_deep_is_no_problem():
    spans = [Span("a", number - 1, 0, number, 10_000 - 2 * number) for number in range(3000)]
    assert sum(total.self_time for _, total in branches(add_up(spans, 10_000))) == 10_000


def test_the_tree_says_what_was_recorded(recorded):
    lines = recorded.tree().splitlines()
    assert lines[0] == "a run"
    assert lines[1].startswith(time.strftime("%Y-"))
    shown = {line.strip("├└─│ ").split("  ")[0]: line for line in lines}
    assert {"whole run", "load", "decode", "sampling", "UNet", "identity branch", OUTSIDE} <= shown.keys()
    assert "3.00 MiB" in shown["load"]
    assert "100.0 %" in shown["whole run"]
    assert "6 of 9" in shown["sampling"]
    assert "on GPU" not in recorded.tree()
    assert "The cache had 6 of 9 results." in lines
    assert lines[-1].startswith("Several threads worked")


def test_on_a_gpu_the_tree_says_what_host_time_means():
    with_device = Profile("x", [Span("a", -1, 0, 0, 10, 5, 2_000_000)], 100, 0, ["MainThread"])
    assert "2.00 ms" in with_device.tree()
    assert "'on GPU' is the time of the work there" in with_device.tree()


def test_the_tree_says_what_is_missing():
    assert "No stage was recorded" in Profile("x", [], 100, 0, []).tree()
    assert "7 further stages were not kept" in Profile("x", [], 100, 0, [], dropped=7).tree()
    assert "ended early (interrupted)" in Profile("x", [], 100, 0, [], ended_early="interrupted").tree()
    assert "a (cut off)" in Profile("x", [Span("a", -1, 0, 0, 5, facts={"unfinished": 1})], 5, 0, ["m"]).tree()


def test_names_move_no_cursor():
    spans = [Span(name, -1, 0, 10 * number, 10) for number, name in enumerate(["a\tb\x1b[31m", "x" * 99])]
    lines = stage_table(add_up(spans, 100)).splitlines()
    assert not any(ord(letter) < 32 for line in lines for letter in line)
    assert len({len(line) for line in lines if "%" in line}) == 1


@pytest.mark.parametrize(
    ("nanoseconds", "words"),
    [
        (0, "0 µs"),
        (1, "0.00 µs"),
        (999, "1.00 µs"),
        (45_600, "45.6 µs"),
        (999_999, "1.00 ms"),
        (123_400_000, "123 ms"),
        (999_999_999, "1.00 s"),
        (61_000_000_000, "61.0 s"),
        (5_000_000_000_000, "5,000 s"),
    ],
)
def test_times_are_three_digits_and_a_unit(nanoseconds, words):
    assert format_time(nanoseconds) == words


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 B"), (1000, "1000 B"), (1536, "1.50 KiB"), (24 << 30, "24.0 GiB")]
)
def test_bytes(number, words):
    assert format_bytes(number) == words


def test_empty_columns_are_left_out():
    assert align([["a", "empty", "c"], ["x", "", "1"]]) == "a  c\nx  1"


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_lost_in_a_file(seed, tmp_path):
    profile = random_profile(seed)
    profile.save(tmp_path / "run.json")
    assert Profile.load(tmp_path / "run.json") == profile
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_real_recording_is_the_same_from_a_file(recorded, tmp_path):
    recorded.save(tmp_path / "run.json")
    loaded = Profile.load(tmp_path / "run.json")
    assert loaded == recorded
    assert loaded.tree() == recorded.tree()
    assert loaded.threads == ["MainThread", "reader"]


def test_facts_of_other_libraries_and_odd_names_survive(tmp_path):
    with Recorder() as recorder, stage("a", nbytes=np.int64(5), part=np.float32(0.5), bad=math.nan, yes=True):
        pass
    profile = Profile.of(recorder, "undecodable \udcff")
    assert profile.spans[0].facts == {"nbytes": 5, "part": 0.5, "bad": "nan", "yes": 1}
    profile.save(tmp_path / "run.json")
    assert Profile.load(tmp_path / "run.json") == profile


def test_the_file_is_a_trace_that_viewers_open(tmp_path):
    """As the "Trace Event Format" demands it: complete events in microseconds, that nest in their lane."""
    random_profile(7).save(tmp_path / "run.json")
    trace = json.loads((tmp_path / "run.json").read_text("utf-8"))
    assert trace["displayTimeUnit"] == "ms"
    lanes: dict[tuple[int, int], list[tuple[int, int]]] = {}
    named = set()
    for event in trace["traceEvents"]:
        assert {"ph", "name", "pid", "tid"} <= event.keys()
        if event["ph"] == "M":
            named.add((event["name"], event["pid"], event["tid"]))
            continue
        assert event["ph"] == "X"
        assert event["dur"] >= 0
        lanes.setdefault((event["pid"], event["tid"]), []).append(
            (round(1000 * event["ts"]), round(1000 * (event["ts"] + event["dur"])))
        )
    assert {process for process, _ in lanes} == {1, 2}
    for process, thread in lanes:
        assert ("thread_name", process, thread) in named
        assert ("process_name", process, 0) in named
    for (process, _), times in lanes.items():
        if process == 2:
            continue  # made up at random here, unlike what a queue does
        for start, end in times:
            for other_start, other_end in times:
                apart = end <= other_start or other_end <= start
                nested = (start <= other_start and other_end <= end) or (other_start <= start and end <= other_end)
                assert apart or nested


def test_on_the_device_inner_stages_stay_inside_outer_ones(tmp_path):
    spans = [
        Span("outer", -1, 0, 0, 9, 1000, 500),
        Span("a clock's error early", 0, 0, 1, 2, 998, 100),
        Span("and late", 0, 0, 4, 2, 1400, 103),
        Span("without", 0, 0, 7, 1),
        Span("inside of it", 3, 0, 7, 1, 1450, 10),
    ]
    Profile("x", spans, 10, 0, ["main"]).save(tmp_path / "run.json")
    events = json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    times = [(event["ts"], event["dur"]) for event in events if event["ph"] == "X" and event["pid"] == 2]
    assert times == [(1.0, 0.5), (1.0, 0.098), (1.4, 0.1), (1.45, 0.01)]


def _changed(profile_json: str, change) -> str:
    document = json.loads(profile_json)
    change(document)
    return json.dumps(document)


def _set(*path, value):
    def change(document):
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


BROKEN = {
    "truncated": (lambda text: text[: len(text) // 2], "not JSON, or cut off"),
    "empty": (lambda text: "", "not JSON, or cut off"),
    "text": (lambda text: "no trace", "not JSON"),
    "nested without end": (lambda text: "[" * 100_000, "run.json: "),
    "a list of events": (lambda text: "[]", "not a file of 'fast-instantid profile'"),
    "a number": (lambda text: "7", "not a file of"),
    "of another program": (lambda text: '{"traceEvents": [], "otherData": {"v8": 1}}', "not a file of"),
    "of the future": (lambda text: _changed(text, _set("otherData", "version", value=2)), "in format 1"),
    "no duration": (lambda text: _changed(text, lambda document: document["otherData"].pop("duration")), "damaged"),
    "time as text": (lambda text: _changed(text, _set("otherData", "duration", value="long")), "damaged"),
    "date of no calendar": (lambda text: _changed(text, _set("otherData", "started_at", value=1e17)), "damaged"),
    "no events": (lambda text: _changed(text, _set("traceEvents", value=None)), "damaged"),
    "wrong events": (lambda text: _changed(text, _set("traceEvents", value=[5])), "damaged"),
    "wrong parent": (lambda text: _changed(text, _set("traceEvents", -1, "args", "parent", value=99)), "damaged"),
    "wrong facts": (lambda text: _changed(text, _set("traceEvents", -1, "args", "facts", value=[1])), "damaged"),
    "name as number": (lambda text: _changed(text, _set("traceEvents", -1, "name", value=3)), "damaged"),
    "wrong start": (lambda text: _changed(text, _set("traceEvents", -1, "ts", value="x")), "damaged"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_bad_file_is_explained(how, recorded, tmp_path):
    path = tmp_path / "run.json"
    recorded.save(path)
    damage, message = BROKEN[how]
    path.write_text(damage(path.read_text("utf-8")), "utf-8")
    with pytest.raises(FastInstantIDError, match=message) as error:
        Profile.load(path)
    assert str(path) in str(error.value)


def test_a_name_that_is_no_trace_is_refused(recorded, tmp_path):
    with pytest.raises(FastInstantIDError, match=r"must end in \.json"):
        recorded.save(tmp_path / "run.html")
    assert list(tmp_path.iterdir()) == []
