"""The recorder: what it takes down, and that neither it nor what goes wrong inside a stage breaks anything."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager, suppress

import pytest
import torch
from torch import nn

from fast_instantid import FastInstantIDError
from fast_instantid.recorder import CudaClock, Recorder, Span, count, is_recording, stage, stage_of


class MadeUpClock:
    """A device whose queue is five microseconds behind the host, and which remembers what it was asked."""

    behind = 5_000

    def __init__(self) -> None:
        self.waits = 0

    def mark(self) -> tuple[int, int] | None:
        return (time.perf_counter_ns(), threading.get_ident())

    def allocated(self) -> int | None:
        return 1 << 20

    def nanoseconds(self, marks: Sequence[tuple[tuple[int, int], tuple[int, int]]]) -> list[tuple[int, int] | None]:
        self.waits += 1
        return [(begin[0] + self.behind, end[0] - begin[0]) for begin, end in marks]


def named(recorder: Recorder, name: str) -> Span:
    [span] = [span for span in recorder.spans if span.name == name]
    return span


def check_nesting(recorder: Recorder) -> None:
    """What every recording holds: outer stages come first, contain inner ones of their thread, and none overlap."""
    ends: dict[tuple[int, int], int] = {}
    for number, span in enumerate(recorder.spans):
        assert -1 <= span.parent < number
        assert span.start >= 0
        assert span.duration >= 0
        assert span.start + span.duration <= recorder.duration
        if span.parent >= 0:
            outer = recorder.spans[span.parent]
            assert outer.thread == span.thread
            assert outer.start <= span.start
            assert span.start + span.duration <= outer.start + outer.duration
        assert ends.get((span.thread, span.parent), 0) <= span.start
        ends[span.thread, span.parent] = span.start + span.duration


def test_stages_lie_inside_each_other_and_keep_what_was_said():
    with Recorder() as recorder:
        assert is_recording()
        with stage("outer", nbytes=5, kind="test"):
            with stage("inner"):
                time.sleep(0.002)
                count(hits=1)
                count(hits=2, misses=1)
            with stage("inner"):
                pass
            count(hits=1)
        with stage("next"):
            pass
    assert not is_recording()
    assert [(span.name, span.parent) for span in recorder.spans] == [
        ("outer", -1),
        ("inner", 0),
        ("inner", 0),
        ("next", -1),
    ]
    assert recorder.spans[0].facts == {"nbytes": 5, "kind": "test", "hits": 1}
    assert recorder.spans[1].facts == {"hits": 3, "misses": 1}
    assert recorder.spans[1].duration >= 2_000_000
    assert abs(recorder.started_at - time.time()) < 60
    assert recorder.threads == ["MainThread"]
    check_nesting(recorder)


def test_threads_have_stages_of_their_own():
    both_in = threading.Barrier(2)

    def work(name: str) -> None:
        with stage(name):
            both_in.wait()
            with stage(f"{name} inside"):
                count(hits=1)
                both_in.wait()

    with Recorder() as recorder:
        threads = [threading.Thread(target=work, args=[name], name=f"worker {name}") for name in "ab"]
        with stage("main"):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    for name in "ab":
        outer, inner = named(recorder, name), named(recorder, f"{name} inside")
        assert outer.parent == -1
        assert recorder.spans[inner.parent] is outer
        assert inner.facts == {"hits": 1}
        assert recorder.threads[outer.thread] == f"worker {name}"
    check_nesting(recorder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_is_not_recorded_and_may_record_itself():
    with Recorder() as recorder, stage("parent"), recorder._lock:  # as if another thread held it
        child = os.fork()
        if child == 0:
            with stage("lost"):
                ended = 1 if is_recording() else 0
            with Recorder() as own, stage("own"):
                pass
            os._exit(ended or len(own.spans) != 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [span.name for span in recorder.spans] == ["parent"]


def test_threads_one_after_another_have_lanes_of_their_own():
    """The system may give all of them the same number."""

    def work():
        with stage("work"):
            pass

    with Recorder() as recorder:
        for name in "abc":
            thread = threading.Thread(target=work, name=name)
            thread.start()
            thread.join()
    assert [recorder.threads[span.thread] for span in recorder.spans] == ["a", "b", "c"]


def test_many_threads_lose_nothing():
    def work() -> None:
        for _ in range(200):
            with stage("outer"), stage("inner"):
                count(hits=1)

    with Recorder() as recorder:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(recorder.spans) == 8 * 200 * 2
    assert sum(span.facts.get("hits", 0) for span in recorder.spans) == 8 * 200
    check_nesting(recorder)


def test_an_exception_passes_and_ends_the_stages_it_leaves():
    with Recorder() as recorder:
        with pytest.raises(KeyError, match="inside"), stage("outer"), stage("inner"):
            raise KeyError("inside")
        with stage("after"):
            pass
    assert [(span.name, span.parent) for span in recorder.spans] == [("outer", -1), ("inner", 0), ("after", -1)]
    assert not any("unfinished" in span.facts for span in recorder.spans)
    check_nesting(recorder)


def test_an_exception_that_leaves_the_recorder_keeps_what_there_is():
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt), recorder, stage("outer"):
        raise KeyboardInterrupt
    assert not is_recording()
    assert [span.name for span in recorder.spans] == ["outer"]


def test_what_is_open_at_the_end_is_cut_off_there():
    recorder = Recorder()
    recorder.start()
    with stage("outer"):
        with stage("inner"):
            recorder.stop()
        with stage("not recorded any more"):
            pass
    assert [span.name for span in recorder.spans] == ["outer", "inner"]
    for span in recorder.spans:
        assert span.facts == {"unfinished": 1}
        assert span.start + span.duration == recorder.duration
    before = recorder.duration
    recorder.stop()
    assert recorder.duration == before


def test_what_is_left_open_inside_a_stage_is_cut_off_at_its_end():
    @contextmanager
    def held_open():
        with stage("held open"):
            yield

    with Recorder() as recorder:
        held = held_open()
        with stage("outer"):
            held.__enter__()
        with stage("after"):
            held.__exit__(None, None, None)
    assert named(recorder, "held open").facts == {"unfinished": 1}
    assert named(recorder, "after").parent == -1
    check_nesting(recorder)


def test_a_stage_that_ends_in_another_thread_is_closed_all_the_same():
    with Recorder() as recorder:
        opened = stage("moves")
        opened.__enter__()
        thread = threading.Thread(target=opened.__exit__, args=[None, None, None])
        thread.start()
        thread.join()
        with stage("after"):
            pass
    assert [(span.name, span.parent) for span in recorder.spans] == [("moves", -1), ("after", -1)]


def test_a_stage_begun_after_the_end_is_not_recorded():
    with Recorder() as recorder:
        late = stage("late")
    with late:
        pass
    assert recorder.spans == []


def test_one_recorder_at_a_time():
    with Recorder() as first:
        with pytest.raises(FastInstantIDError, match="recorded already: stop that first"):
            Recorder().start()
        Recorder().stop()  # one that never began ends nobody's recording
        with stage("goes on"):
            pass
    assert [span.name for span in first.spans] == ["goes on"]


def test_a_recorder_records_once():
    recorder = Recorder()
    with recorder, stage("first"):
        recorder.stop()
        with pytest.raises(FastInstantIDError, match="make another"):
            recorder.start()
    assert not is_recording()
    assert [span.name for span in recorder.spans] == ["first"]


def test_there_is_an_upper_bound_of_spans(monkeypatch):
    monkeypatch.setattr("fast_instantid.recorder._MAX_SPANS", 3)
    with Recorder() as recorder, stage("outer"):
        for number in range(5):
            with stage("inner", number=number), stage("innermost"):
                count(hits=1)
    assert [span.name for span in recorder.spans] == ["outer", "inner", "innermost"]
    assert recorder.dropped == 8
    assert sum(span.facts.get("hits", 0) for span in recorder.spans) == 5  # no hit gets lost with a span
    check_nesting(recorder)


# --- the device ------------------------------------------------------------------------------------------------------


def test_device_times_come_from_the_clock_which_is_waited_for_once():
    clock = MadeUpClock()
    with Recorder(clock) as recorder, ExitStack() as stages:
        for depth in range(5):
            stages.enter_context(stage(f"depth {depth}"))
            time.sleep(0.001)
        assert clock.waits == 0
        stages.close()
    assert clock.waits == 1
    for span in recorder.spans:
        assert span.device_start == pytest.approx(span.start + clock.behind, abs=1_000_000)
        assert span.device_duration == pytest.approx(span.duration, abs=1_000_000)
    has_memory = [span.facts.get("allocated") for span in recorder.spans]
    assert has_memory == [1 << 20] * 3 + [None] * 2


def test_a_stage_without_both_marks_has_no_device_time():
    class Late(MadeUpClock):
        """The device comes into use while the first stage is open."""

        used = False

        def mark(self):
            return super().mark() if self.used else None

    clock = Late()
    recorder = Recorder(clock)
    recorder.start()
    with stage("before"):
        clock.used = True
        with stage("inside"):
            pass
    with stage("open"):
        recorder.stop()
    assert named(recorder, "before").device_start is None
    assert named(recorder, "inside").device_duration is not None
    assert named(recorder, "open").device_start is None
    assert "allocated" not in named(recorder, "before").facts


def test_a_device_that_failed_costs_its_times_and_nothing_else(caplog):
    class Failing(MadeUpClock):
        def nanoseconds(self, marks):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with Recorder(Failing()) as recorder, stage("kept"):
        pass
    assert not is_recording()
    assert named(recorder, "kept").device_start is None
    assert "illegal memory access" in caplog.text


def test_without_a_gpu_cudas_clock_knows_nothing():
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is in use in this process")
    clock = CudaClock()
    assert clock.mark() is None
    assert clock.allocated() is None
    assert not torch.cuda.is_initialized(), "asking for the time must not start CUDA"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cudas_clock_times_the_work_and_not_its_queueing():
    left = torch.randn(4096, 4096, device="cuda")
    (left @ left).sum().item()
    with Recorder() as recorder:
        with stage("work"), stage("inner"):
            for _ in range(50):
                left = left @ left * 1e-3
        queued = time.perf_counter_ns()
        torch.cuda.synchronize()
        waited = time.perf_counter_ns() - queued
    work, inner = recorder.spans
    assert work.device_duration > work.duration  # queueing is faster than 50 products
    assert work.device_duration == pytest.approx(work.duration + waited, rel=0.3)
    assert 0 < inner.device_duration <= work.device_duration
    assert work.facts["allocated"] >= left.nbytes


# --- modules ---------------------------------------------------------------------------------------------------------


class Halves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.isnan().any():
            raise ArithmeticError("not a number")
        return x / 2


def test_each_call_of_a_module_is_a_stage_until_the_hooks_are_removed():
    model = nn.Sequential(Halves(), Halves())
    hooks = stage_of(model, "all") + stage_of(model[1], "second")
    with Recorder() as recorder:
        model(torch.ones(1))
        for hook in hooks:
            hook.remove()
        model(torch.ones(1))
    assert [(span.name, span.parent) for span in recorder.spans] == [("all", -1), ("second", 0)]


def test_a_module_that_raises_ends_its_stage():
    model = Halves()
    stage_of(model, "halves")
    with Recorder() as recorder:
        for x in (torch.tensor([float("nan")]), torch.ones(1)):
            with stage("call"), suppress(ArithmeticError):
                assert model(x) == 0.5
    assert [(span.name, span.parent) for span in recorder.spans] == [
        ("call", -1),
        ("halves", 0),
        ("call", -1),
        ("halves", 2),
    ]
    assert not any("unfinished" in span.facts for span in recorder.spans)
    check_nesting(recorder)


def test_a_call_that_ctrl_c_ended_is_over_when_the_next_begins():
    class Interrupted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.isnan().any():
                raise KeyboardInterrupt
            return x

    model = Interrupted()
    stage_of(model, "model")
    with Recorder() as recorder:
        with suppress(KeyboardInterrupt):
            model(torch.tensor([float("nan")]))
        model(torch.ones(1))
    assert [(span.name, span.parent) for span in recorder.spans] == [("model", -1), ("model", -1)]


def test_a_module_that_several_threads_call_at_once():
    inside = threading.Barrier(2)

    class Meets(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inside.wait()
            time.sleep(float(x))
            return x

    model = Meets()
    stage_of(model, "meets")
    with Recorder() as recorder:
        threads = [threading.Thread(target=model, args=[torch.tensor(seconds)]) for seconds in (0.0, 0.1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    short, long = sorted(recorder.spans, key=lambda span: span.duration)
    assert (short.parent, long.parent) == (-1, -1)
    assert short.thread != long.thread
    assert not short.facts
    assert not long.facts
    assert long.duration - short.duration > 50_000_000


def test_a_compiled_module_keeps_one_graph_and_is_no_stage():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    stage_of(model[0], "first")
    stage_of(model, "all")
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = torch.ones(2)
    off = compiled(x)
    with Recorder() as recorder:
        assert torch.equal(compiled(x), off)
        assert recorder.spans == []
        assert torch.equal(model(x), off)
    assert [span.name for span in recorder.spans] == ["all", "first"]
    assert len(graphs) == 1
    check_nesting(recorder)


# --- off -------------------------------------------------------------------------------------------------------------


def test_off_every_stage_is_the_same_object_and_nothing_is_kept():
    assert stage("a") is stage("b", nbytes=1)
    with stage("a"):
        count(hits=1)
    with Recorder() as recorder:
        pass
    assert recorder.spans == []


def test_off_nothing_is_allocated():
    def work() -> None:
        for _ in range(1000):
            with stage("a", nbytes=1):
                count(hits=1)

    work()
    tracemalloc.start()
    try:
        before = tracemalloc.take_snapshot()
        work()
        after = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    ours = [line for line in after.compare_to(before, "lineno") if line.traceback[0].filename.endswith("recorder.py")]
    assert sum(line.size_diff for line in ours) < 500  # 1000 spans take a hundred times that


def test_the_recorder_needs_no_torch():
    code = "import sys; from fast_instantid.recorder import Recorder, stage\nwith Recorder(), stage('a'): pass\n"
    printed = subprocess.check_output([sys.executable, "-c", code + "print('torch' in sys.modules)"], text=True)
    assert printed == "False\n"
