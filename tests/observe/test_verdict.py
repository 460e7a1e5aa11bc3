"""The verdict about swapping: recordings replayed through the command line, and evidence of made-up samples."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

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
    "normal": ("no", ["at most 10.3 of 12.0 GiB", "did not keep waiting"]),
    "swapping": ("certain", ["was full, and the GPU waited", "12 of them began with the memory full", "need less"]),
    "cut_off": ("certain", ["the recording was cut off"]),
    "two_processes": ("certain", ["the command at most 6.3 GiB", "close what else holds its memory: Game.x86_64"]),
    "driver_pages": ("certain", ["Sysmem Fallback Policy"]),
    "pcie_unknown": ("cannot tell", ["PCIe: the driver does not tell", "idle at times"]),
    "utilization_unknown": ("likely", ["utilisation: the driver does not tell"]),
    "memory_unknown": ("cannot tell", ["the driver tells not how full"]),
    "long_load": ("no", ["no longer than a load of models", "(100%)"]),
    "full_and_busy": ("no", ["full, but the GPU did not wait"]),
    "idle_desktop": ("no", ["always was room"]),
    "room_unused": ("no", ["but the GPU waited", "without need", "--lowvram"]),
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
    assert gpu["numbers"]["stalls"]["at_limit"] == 10
    assert [(holder["name"], holder["watched"]) for holder in gpu["holders"]] == [
        ("python3", True),
        ("Game.x86_64", False),
    ]
    assert len(gpu["rows"]) == gpu["numbers"]["samples"] == 161
    assert len(gpu["rows"][0]) == len(gpu["columns"])


def verdict_of(samples: Iterable[Sample], holders: Iterable[Holder] = ()) -> Verdict:
    evidence = Evidence(CARD)
    for sample in samples:
        evidence.add(sample)
    return judge(evidence, list(holders))


def run_of(*states: tuple[float, float, float, float], period: float = 0.1) -> list[Sample]:
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
                    link_generation=4,
                    link_width=16,
                )
            )
    return samples


WORK, WAIT = (1.0, 7.9, 0.95, 0.1), (0.5, 7.9, 0.02, 6.0)


def test_one_wait_is_a_load_and_repeated_ones_are_not():
    assert verdict_of(run_of(WORK, WAIT, *[WORK] * 10)).swapping == "no"
    assert verdict_of(run_of(WORK, WAIT, *[WORK] * 10, WAIT, WORK)).swapping == "no"
    assert verdict_of(run_of(*[WORK, WAIT] * 3, WORK)).swapping == "likely"
    assert verdict_of(run_of(*[WORK, WAIT] * 6)).swapping == "certain"


def test_waits_that_never_pause_are_told_from_a_load_by_their_bytes():
    """A load brings what fits; here the same weights come again and again, and the GPU is never busy in between."""
    slow = (1.0, 7.9, 0.15, 3.0)
    assert verdict_of(run_of(WORK, *[slow] * 2, WORK)).swapping == "no"  # 6 GB
    verdict = verdict_of(run_of(WORK, *[slow] * 12, WORK))  # 36 GB
    assert verdict.swapping == "certain"


def test_loading_that_ends_with_full_memory_is_no_swapping():
    rising = [(0.1, 0.5 + 0.148 * i, 0.03, 1.6) for i in range(51)]
    assert verdict_of(run_of(*rising, *[WORK] * 5)).swapping == "no"


def test_pauses_in_what_pcie_counts_do_not_split_a_load():
    """20 ms of every 100 are looked at: a load in which some look empty is one load."""
    holes = [(0.2, 7.9, 0.02, 1.5), (0.2, 7.9, 0.02, 0.0)] * 8
    assert verdict_of(run_of(WORK, *holes, *[WORK] * 5)).swapping == "no"


def test_an_idle_gpu_with_full_memory_is_no_swapping():
    """As while a person edits a prompt, or faces are looked for on the CPU."""
    assert verdict_of(run_of(*[WORK, (2.0, 7.9, 0.0, 0.01)] * 8)).swapping == "no"


def test_streaming_beside_the_work_is_named():
    verdict = verdict_of(run_of((30.0, 7.9, 0.97, 4.0)))
    assert verdict.swapping == "likely"
    assert "went on working" in verdict.headline


def test_models_that_go_out_and_come_back_are_swapped_too():
    """The memory is not full when they come, since room was made; but more comes than one load brings."""
    picture = [(1.0, 6.6, 0.95, 0.1), (0.3, 3.0, 0.1, 0.0), (0.8, 6.5, 0.05, 6.0)]
    verdict = verdict_of(run_of(*picture * 5))
    assert verdict.swapping == "likely"
    assert "went out and came back" in verdict.headline


def test_a_slow_link_is_busy_with_less():
    """One lane of PCIe 3 carries 1 GB/s, so 0.9 is all it can do."""
    samples = run_of(*[(1.0, 7.9, 0.95, 0.01), (2.0, 7.9, 0.02, 0.9)] * 6)
    assert verdict_of(replace(sample, link_generation=3, link_width=1) for sample in samples).swapping == "certain"
    assert verdict_of(samples).swapping == "no"  # nothing worth mentioning for 16 lanes


def test_too_few_samples_say_nothing():
    for samples in ([], run_of(WAIT), run_of(*[WORK, WAIT] * 2, period=0.5)):
        verdict = verdict_of(samples)
        assert verdict.swapping == "cannot tell"
        assert "watch for longer" in verdict.headline


def test_rare_samples_make_it_less_sure():
    samples = run_of(*[(4.0, 7.9, 0.95, 0.1), (4.0, 7.9, 0.02, 12.0)] * 8, period=1.0)
    verdict = verdict_of(samples)
    assert verdict.swapping == "likely"
    assert any("may have gone by unseen" in reason for reason in verdict.reasons)


def test_room_is_enough_to_say_no_without_any_other_counter():
    samples = [Sample(i / 10, memory_used=2 * GIB) for i in range(50)]
    assert verdict_of(samples).swapping == "no"
    assert verdict_of([Sample(i / 10) for i in range(50)]).swapping == "cannot tell"


def test_without_pcie_a_gpu_that_never_rests_is_enough_to_say_no():
    samples = [Sample(i / 10, memory_used=7.9 * GIB, utilization=0.97) for i in range(50)]
    assert verdict_of(samples).swapping == "no"


def test_a_counter_that_comes_and_goes_is_named():
    samples = run_of(*[WORK] * 10)
    samples[20:50] = [replace(sample, utilization=None) for sample in samples[20:50]]
    assert "utilisation: in 70 of 100 samples only" in verdict_of(samples).reasons


def test_who_holds_the_memory_is_advice_only_where_it_matters():
    small = Holder(9, "Xorg", GIB // 10, False)
    samples = [replace(s, memory_watched=7 * GIB, memory_others=GIB // 10) for s in run_of(*[WORK, WAIT] * 6)]
    verdict = verdict_of(samples, [small])
    assert not any("close" in advice for advice in verdict.advice)
    assert any("Xorg (pid 9, 0.1 GiB)" in reason for reason in verdict.reasons)


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
    assert record.evidence.stalls.count == pytest.approx(1_000_000 / 15, rel=0.01)
    assert len(record.trace.rows) <= 4096


def test_processes_that_come_and_go_are_not_kept_for_ever():
    record = GpuRecord(CARD)
    for pid in range(10_000):
        record.see([Holder(pid, "worker", pid, False)])
    assert len(record.holders) <= 64
    assert record.holders[0].pid == 9999
