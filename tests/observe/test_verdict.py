"""The verdict about swapping: recordings replayed through the command line, and evidence of made-up samples."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fast_instantid.cli import main
from fast_instantid.observe.evidence import Evidence
from fast_instantid.observe.gpu import GpuInfo
from fast_instantid.observe.record import GpuRecord
from fast_instantid.observe.samples import Sample, Trace, merged
from fast_instantid.observe.verdict import Holder, Verdict, judge
from tests.observe.make_traces import STORIES, TRACES, trace

GIB = 1 << 30
CARD = GpuInfo(0, "a card", "nvidia", memory_total=8 * GIB)

# Every recording, the answer, and what must be said about it.
EXPECTED: dict[str, tuple[str, list[str]]] = {
    "normal": ("no", ["at most 10.3 of 12.0 GiB", "waited 2 times", "no more than loads of models"]),
    "swapping": ("certain", ["was full, and the GPU waited 13 times", "with the memory full 13", "need less"]),
    "cut_off": ("certain", ["the recording was cut off"]),
    "two_processes": ("certain", ["the command at most 6.3 GiB", "close what else holds its memory: Game.x86_64"]),
    "driver_pages": ("certain", ["Sysmem Fallback Policy"]),
    "pcie_unknown": (
        "cannot tell",
        ["the GPU was idle 10.2 of 16.5 s", "what went over PCIe the driver does not tell"],
    ),
    "utilization_unknown": ("cannot tell", ["67 GB came over PCIe", "utilisation: the driver does not tell"]),
    "memory_unknown": ("cannot tell", ["PCIe was busy", "how full the memory was the driver does not tell"]),
    "long_load": ("no", ["waited once", "no more than loads of models", "(100%)"]),
    "full_and_busy": ("no", ["full, but the GPU did not wait"]),
    "idle_desktop": ("no", ["always was room"]),
    "room_unused": ("no", ["and yet the GPU waited 11 times", "without need", "--lowvram"]),
}


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.csv")), ids=lambda path: path.stem)
def test_recordings_get_the_verdict_they_should(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    answer, texts = EXPECTED[path.stem]
    assert main(["watch", "--replay", str(path), "-o", str(tmp_path / "again")]) == 0
    said = capsys.readouterr()
    assert f": swapping: {answer}\n" in said.out
    for text in texts:
        assert text in said.out + said.err
    if answer in ("certain", "likely"):
        assert "what to do:" in said.out
    png = (tmp_path / "again.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(png[16:20]), int.from_bytes(png[20:24])) == (1200, 800)


def test_the_recordings_are_those_of_the_generator():
    assert {path.stem for path in TRACES.glob("*.csv")} == {*STORIES, "cut_off"}
    for name in STORIES:
        assert (TRACES / f"{name}.csv").read_text() == trace(name)


def test_replay_prints_a_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["watch", "--replay", str(TRACES / "two_processes.csv"), "--json", "-o", str(tmp_path / "again")]
    assert main(arguments) == 0
    (gpu,) = json.loads(capsys.readouterr().out)["gpus"]
    assert gpu["verdict"]["swapping"] == "certain"
    assert gpu["numbers"]["full_waits"]["count"] == 11
    assert [(holder["name"], holder["watched"]) for holder in gpu["holders"]] == [
        ("python3", True),
        ("Game.x86_64", False),
    ]
    assert len(gpu["rows"]) == gpu["numbers"]["samples"] == 161
    assert len(gpu["rows"][0]) == len(gpu["columns"])


def evidence_of(samples: Iterable[Sample], info: GpuInfo = CARD, **facts: Any) -> Evidence:
    evidence = Evidence(info, **facts)
    for sample in samples:
        evidence.add(sample)
    return evidence


def verdict_of(samples: Iterable[Sample], holders: Iterable[Holder] = ()) -> Verdict:
    return judge(evidence_of(samples), list(holders))


def run_of(*states: tuple[float, float, float, float], period: float = 0.1, link: tuple[int, int] = (4, 16)):
    """Samples of ``(seconds, GiB used, utilisation, GB/s into the GPU)`` one after the other."""
    samples: list[Sample] = []
    for seconds, used, utilization, read in states:
        for _ in range(round(seconds / period)):
            samples.append(
                Sample(
                    len(samples) * period,
                    memory_used=used * GIB,
                    utilization=utilization,
                    pcie_read=read * 1e9,
                    pcie_write=0.0,
                    pcie=read * 1e9,
                    link_generation=link[0],
                    link_width=link[1],
                )
            )
    return samples


WORK, WAIT = (1.0, 7.9, 0.95, 0.1), (0.5, 7.9, 0.02, 6.0)
LONG_WORK = (20.0, 7.9, 0.95, 0.1)


def waits(count: int = 5, used: float = 7.9, idle: float = 0.02, work: float = 0.95, rate: float = 6.0) -> list[Sample]:
    """Half a second of waiting after each second of work."""
    return run_of(*[(1.0, used, work, 0.0), (0.5, used, idle, rate)] * count, (1.0, used, work, 0.0))


@pytest.mark.parametrize(
    ("samples", "answer", "text"),
    [
        # How often: a picture's models are loads, what comes again is not.
        (waits(1), "no", "waited once"),
        (waits(2), "no", "no more than loads of models"),
        (waits(3), "cannot tell", "may be loads of models or swapping"),
        (waits(4), "cannot tell", "waited 4 times"),
        (waits(5), "certain", "waited 5 times"),
        # For how much at once: 12.6 GB may fill 8.6 GB once, if estimates err; 13.2 GB are too many.
        (run_of(WORK, (4.2, 7.9, 0.15, 3.0), WORK), "no", "12.6 GB, 1.5 times"),
        (run_of(WORK, (4.4, 7.9, 0.15, 3.0), WORK), "certain", "13.2 GB, 1.5 times"),
        (run_of(WORK, (2.4, 7.9, 0.02, 3.0), WORK, (2.4, 7.9, 0.02, 3.0), WORK), "no", "14.4 GB"),  # two loads
        # At what cost: 2.5 s of 126 and of 124.
        (run_of(*[(24.7, 7.9, 0.95, 0.0), WAIT] * 5), "no", "full, but the GPU waited 5 times"),
        (run_of(*[(24.3, 7.9, 0.95, 0.0), WAIT] * 5), "certain", "(2%)"),
        # With how much memory in use.
        (waits(used=3.99), "no", "there always was room"),
        (waits(used=4.01), "cannot tell", "there always was room"),
        (waits(used=6.39), "cannot tell", "and yet the GPU waited 5 times"),
        (waits(used=6.41), "likely", "nearly full, and the GPU waited 5 times"),
        (waits(used=7.59), "likely", "nearly full, and the GPU waited 5 times"),
        (waits(used=7.61), "certain", "was full, and the GPU waited 5 times"),
        # What a wait is, and what ends it.
        (waits(idle=0.29), "certain", "waited 5 times"),
        (waits(idle=0.31), "cannot tell", "beside the GPU's work"),
        (waits(work=0.51, rate=1.5), "certain", "waited 5 times"),
        (waits(work=0.49, rate=1.5), "no", "waited once"),
        (waits(rate=1.01), "certain", "waited 5 times"),
        (waits(rate=0.99), "no", "did not wait"),
        # Beside the work.
        (run_of((4.2, 7.9, 0.97, 3.0)), "no", "did not wait"),
        (run_of((4.5, 7.9, 0.97, 3.0)), "cannot tell", "13 GB came over PCIe, 1.5 times what it holds"),
        (run_of(*[LONG_WORK] * 3, (1.2, 7.9, 0.4, 12.0)), "no", "did not wait"),  # 2 % of 60 s
        (run_of(*[LONG_WORK] * 2, (1.2, 7.9, 0.4, 12.0)), "cannot tell", "beside the GPU's work"),
        (run_of((10.0, 7.9, 0.97, 15.6)), "cannot tell", "the counters do not tell"),
        (run_of((10.0, 7.9, 0.97, 15.9)), "likely", "50% or more of what the link carries"),
        (run_of((10.0, 6.39, 0.97, 15.9)), "no", "always was room"),
        # Enough samples.
        (run_of((1.9, 4.0, 0.9, 0.0)), "cannot tell", "watch for longer"),
        (run_of((2.2, 4.0, 0.9, 0.0)), "no", "always was room"),
        (run_of((2.7, 4.0, 0.9, 0.0), period=0.3), "cannot tell", "9 samples in 2.4 s are too few"),
        (run_of((3.0, 4.0, 0.9, 0.0), period=0.3), "no", "always was room"),
        (run_of(*[(2.5, 7.9, 0.9, 0.0), (2.5, 7.9, 0.0, 6.0)] * 5, period=0.49), "certain", "waited 5 times"),
        (run_of(*[(2.5, 7.9, 0.9, 0.0), (2.5, 7.9, 0.0, 6.0)] * 5, period=0.51), "likely", "waited 5 times"),
    ],
)
def test_both_sides_of_every_threshold(samples: list[Sample], answer: str, text: str):
    verdict = verdict_of(samples)
    assert (verdict.swapping, text in verdict.headline) == (answer, True), verdict.headline


def test_loading_that_ends_with_full_memory_is_no_swapping():
    rising = [(0.1, 0.5 + 0.148 * i, 0.03, 1.6) for i in range(51)]
    assert verdict_of(run_of(*rising, *[WORK] * 5)).swapping == "no"


def test_a_load_with_pauses_is_one_wait():
    """The disk makes them, and 20 ms of every 100 in which PCIe is looked at; the GPU does not work in between."""
    for pause in (0.2, 0.8, 5.0):
        samples = run_of(WORK, *[(0.7, 7.9, 0.02, 1.5), (pause, 7.9, 0.0, 0.02)] * 6, LONG_WORK)
        assert verdict_of(samples).swapping == "no"
        assert evidence_of(samples).waits.count == 1


def test_an_idle_gpu_with_full_memory_is_no_swapping():
    """As while a person edits a prompt, or faces are looked for on the CPU."""
    assert verdict_of(run_of(*[WORK, (2.0, 7.9, 0.0, 0.01)] * 8)).swapping == "no"


def test_a_model_change_now_and_then_is_of_no_interest():
    hour = [(1200.0, 7.9, 0.95, 0.1), (2.0, 7.9, 0.02, 6.0)] * 6
    verdict = verdict_of(run_of(*hour, period=1.0))
    assert verdict.swapping == "no"
    assert "waited 6 times" in verdict.headline


def test_models_that_go_out_and_come_back_are_swapped_too():
    """The memory is not full when they come, since room was made."""
    picture = [(1.0, 6.6, 0.95, 0.1), (0.3, 3.0, 0.1, 0.0), (0.8, 6.5, 0.05, 6.0)]
    assert verdict_of(run_of(*picture * 5)).swapping == "likely"


def test_what_goes_out_is_no_wait_for_data():
    """Pictures that are fetched, for one; only where the driver tells both ways together they cannot be told apart."""
    outgoing = [replace(sample, pcie_read=0.0, pcie_write=sample.pcie) for sample in waits()]
    assert verdict_of(outgoing).swapping == "no"
    unknown = [replace(sample, pcie_read=None, pcie_write=None) for sample in waits()]
    verdict = verdict_of(unknown)
    assert verdict.swapping == "likely"
    assert any("both ways together" in reason for reason in verdict.reasons)


def test_one_way_is_enough_where_it_is_the_way_in():
    verdict = verdict_of(replace(sample, pcie=None, pcie_write=None) for sample in waits())
    assert verdict.swapping == "certain"
    assert any(reason.startswith("PCIe: about 15.0 GB in (") for reason in verdict.reasons)


def test_a_slow_link_is_busy_with_less():
    """One lane of PCIe 3 carries 1 GB/s, so 0.9 is all it can do, and 0.1 is a tenth."""
    for rate, link, answer in ((0.9, (3, 1), "certain"), (0.1, (3, 1), "certain"), (0.09, (3, 1), "no")):
        samples = run_of(*[(1.0, 7.9, 0.95, 0.01), (2.0, 7.9, 0.02, rate)] * 6, link=link)
        assert verdict_of(samples).swapping == answer
    samples = run_of(*[(1.0, 7.9, 0.95, 0.01), (2.0, 7.9, 0.02, 0.9)] * 6)
    assert verdict_of(samples).swapping == "no"  # nothing worth mentioning for 16 lanes


def stopped_for(seconds: float) -> list[Sample]:
    """One load, in the middle of which there are no samples."""
    samples = run_of(WORK, (0.7, 7.9, 0.02, 6.0), WORK)
    return [replace(sample, time=sample.time + (seconds - 0.1) * (sample.time > 1.3)) for sample in samples]


@pytest.mark.parametrize(
    ("interval", "longest"),
    [(0.1, 2.0), (1.0, 5.0)],
)
def test_time_without_samples_is_left_out(interval: float, longest: float):
    evidence = evidence_of(stopped_for(longest - 0.1), interval=interval)
    assert evidence.unseen_seconds == 0
    assert evidence.waits.longest == pytest.approx(0.6 + longest - 0.1)
    evidence = evidence_of(stopped_for(longest + 0.1), interval=interval)
    assert evidence.unseen_seconds == pytest.approx(longest + 0.1 - interval)
    assert evidence.waits.longest == pytest.approx(0.6 + interval)


def test_a_pause_in_a_load_makes_no_swapping_of_it():
    verdict = verdict_of(stopped_for(9.0))
    assert verdict.swapping == "no"
    assert "left out: 8.9 s without samples, as where the machine slept" in verdict.reasons


def test_no_samples_say_nothing():
    verdict = verdict_of([])
    assert verdict == Verdict("cannot tell", "0 samples in 0.0 s are too few; watch for longer", [], [])


def test_rare_samples_are_named():
    samples = run_of(*[(4.0, 7.9, 0.95, 0.1), (4.0, 7.9, 0.02, 12.0)] * 8, period=1.0)
    assert any("may have gone by unseen" in reason for reason in verdict_of(samples).reasons)


def test_room_is_enough_to_say_no_without_any_other_counter():
    samples = [Sample(i / 10, memory_used=3.0 * GIB) for i in range(50)]
    assert verdict_of(samples).swapping == "no"
    assert verdict_of([Sample(i / 10) for i in range(50)]).swapping == "cannot tell"


def test_without_memory_only_a_quiet_pcie_says_no():
    for work, answer in ((24.7, "no"), (24.3, "cannot tell")):
        samples = run_of(*[(work, 7.9, 0.95, 0.0), WAIT] * 5)
        assert verdict_of(replace(sample, memory_used=None) for sample in samples).swapping == answer


def test_without_utilization_only_what_a_load_can_bring_says_no():
    for seconds, answer in ((4.2, "no"), (4.4, "cannot tell")):
        samples = run_of(WORK, (seconds, 7.9, 0.0, 3.0), WORK)
        assert verdict_of(replace(sample, utilization=None) for sample in samples).swapping == answer


def test_without_pcie_a_busy_gpu_may_still_read_main_memory():
    verdict = verdict_of(Sample(i / 10, memory_used=7.9 * GIB, utilization=0.97) for i in range(50))
    assert verdict.swapping == "cannot tell"
    assert "idle 0.0 of 4.9 s" in verdict.headline


def test_a_counter_that_comes_and_goes_is_named():
    samples = run_of(*[WORK] * 10)
    samples[20:50] = [replace(sample, utilization=None) for sample in samples[20:50]]
    assert "utilisation: in 70 of 100 samples only" in verdict_of(samples).reasons


def test_who_holds_the_memory_is_advice_only_where_it_matters():
    other = Holder(9, "Xorg", GIB // 10, False)
    for held, advised in ((0.79, False), (0.81, True)):
        samples = [replace(sample, memory_watched=7 * GIB, memory_others=held * GIB) for sample in waits()]
        verdict = verdict_of(samples, [other])
        assert any("close what else holds" in advice for advice in verdict.advice) == advised
        assert any("Xorg (pid 9, 0.1 GiB)" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("vendor", "platform", "text"),
    [
        ("nvidia", "win32", "Sysmem Fallback"),
        ("nvidia", "wsl", "Sysmem Fallback"),
        ("nvidia", "linux", "managed memory"),
        ("amd", "linux", None),
        ("amd", "win32", None),
    ],
)
def test_what_the_driver_does_is_said_of_nvidias_only(vendor: str, platform: str, text: str | None):
    advice = judge(evidence_of(waits(), replace(CARD, vendor=vendor)), platform=platform).advice
    for known in ("Sysmem Fallback", "managed memory"):
        assert any(known in line for line in advice) == (known == text)


def test_lanes_are_advice_where_there_are_more():
    for width, max_width, advised in ((8, 8, False), (4, 8, True), (16, 16, False), (4, None, False)):
        evidence = evidence_of((replace(sample, link_width=width) for sample in waits()), max_width=max_width)
        assert any("PCIe lanes" in advice for advice in judge(evidence).advice) == advised


def test_merging_keeps_peaks_and_means_the_rest():
    two = [
        Sample(1.0, memory_used=3.0, utilization=0.2, pcie=None, clock=None),
        Sample(1.1, memory_used=5.0, utilization=0.4, pcie=8.0, clock=None),
    ]
    assert merged(two) == Sample(1.0, memory_used=5.0, utilization=pytest.approx(0.3), pcie=8.0, clock=None)


def test_a_trace_halves_its_resolution_and_covers_all_of_the_time():
    kept = Trace(max_rows=8)
    for i in range(1000):
        kept.add(Sample(float(i), memory_used=float(i == 777)))
    rows = kept.rows
    assert 4 <= len(rows) <= 8
    assert rows[0].time == 0
    assert [row.time for row in rows] == [i * kept.merging for i in range(len(rows))]
    assert rows[-1].time + kept.merging >= 1000
    assert max(row.memory_used or 0 for row in rows) == 1.0


@pytest.mark.slow
def test_a_million_samples_take_no_more_memory_than_ten_thousand():
    """A day and a night; the verdict is over all of them, also those that are no longer kept."""
    record = GpuRecord(CARD)
    pattern = run_of(*[WORK, WAIT] * 10)
    sizes: list[int] = []
    for count in (10_000, 1_000_000):
        for i in range(record.evidence.samples, count):
            record.add(replace(pattern[i % len(pattern)], time=i / 10))
        sizes.append(len(pickle.dumps(record)))
    assert sizes[1] < 2.5 * sizes[0]  # of a hundred times the samples; the resolution varies by two
    assert record.evidence.samples == 1_000_000
    assert record.evidence.waits.count == pytest.approx(1_000_000 / 15, rel=0.01)
    assert len(record.trace.rows) <= 4096


def test_processes_that_come_and_go_are_not_kept_for_ever():
    record = GpuRecord(CARD)
    for pid in range(10_000):
        record.see([Holder(pid, "worker", pid, False)])
    assert len(record.holders) <= 64
    assert record.holders[0].pid == 9999
