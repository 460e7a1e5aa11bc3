"""Watching GPUs: the verdict on swapping, the CSV file, and the command. All samples are synthetic."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fast_instantid import FastInstantIDError
from fast_instantid.cli import main
from fast_instantid.observe import nvml
from fast_instantid.observe.samples import COLUMNS, Sample, read_csv
from fast_instantid.observe.verdict import judge

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30
CARD = "NVIDIA GeForce RTX 3060 Ti"


def run_of(*states: tuple[float, float, float, float], period: float = 0.1, capacity: float = 31.5e9) -> list[Sample]:
    """Samples of ``(seconds, GiB used, utilisation, GB/s into the GPU)`` one after the other, on a card of 8 GiB."""
    states_of_samples = [state for state in states for _ in range(round(state[0] / period))]
    return [
        Sample(0, CARD, number * period, used * GIB, 8 * GIB, use, rate * 1e9, 0.0, capacity)
        for number, (_, used, use, rate) in enumerate(states_of_samples)
    ]


WORK, WAIT = (1.0, 7.9, 0.95, 0.1), (0.5, 7.9, 0.02, 6.0)
LONG_WORK = (20.0, 7.9, 0.95, 0.1)


def waits(count: int = 5, used: float = 7.9, idle: float = 0.02, work: float = 0.95, rate: float = 6.0) -> list[Sample]:
    """Half a second of waiting after each second of work."""
    return run_of(*[(1.0, used, work, 0.0), (0.5, used, idle, rate)] * count, (1.0, used, work, 0.0))


@pytest.mark.parametrize(
    ("samples", "answer", "text"),
    [
        # How often: the models of a picture are loads, further waits are not.
        (waits(1), "no", "waited 1 times"),
        (waits(2), "no", "no more than loads of models"),
        (waits(3), "cannot tell", "loads of models, or swapping"),
        (waits(4), "cannot tell", "waited 4 times"),
        (waits(5), "certain", "waited 5 times"),
        # How much at once: 12.6 GB may fill 8.6 GB once, if estimates err; 13.2 GB are too many.
        (run_of(WORK, (4.2, 7.9, 0.15, 3.0), WORK), "no", "12.6 GB"),
        (run_of(WORK, (4.4, 7.9, 0.15, 3.0), WORK), "certain", "13.2 GB"),
        # At what cost: 2.5 s of 126 and of 124.
        (run_of(*[(24.7, 7.9, 0.95, 0.0), WAIT] * 5), "no", "waited 5 times"),
        (run_of(*[(24.3, 7.9, 0.95, 0.0), WAIT] * 5), "certain", "(2%)"),
        # How full.
        (waits(used=6.39), "no", "there was room"),
        (waits(used=6.41), "likely", "nearly full"),
        (waits(used=7.59), "likely", "nearly full"),
        (waits(used=7.61), "certain", "was full"),
        # What a wait is, and what ends it.
        (waits(idle=0.29), "certain", "waited 5 times"),
        (waits(idle=0.31), "cannot tell", "while the GPU worked"),
        (waits(work=0.51, rate=1.5), "certain", "waited 5 times"),
        (waits(work=0.49, rate=1.5), "no", "waited 1 times"),
        (waits(rate=1.01), "certain", "waited 5 times"),
        (waits(rate=0.99), "no", "waited 0 times"),
        # Beside the work.
        (run_of((4.2, 7.9, 0.97, 3.0)), "no", "waited 0 times"),
        (run_of((4.5, 7.9, 0.97, 3.0)), "cannot tell", "13 GB came in while the GPU worked"),
        # Enough samples.
        (run_of((1.9, 4.0, 0.9, 0.0)), "cannot tell", "watch for longer"),
        (run_of((2.2, 4.0, 0.9, 0.0)), "no", "there was room"),
        (run_of((2.7, 4.0, 0.9, 0.0), period=0.3), "cannot tell", "9 samples in 2.4 s are too few"),
        (run_of(*[(2.5, 7.9, 0.9, 0.0), (2.5, 7.9, 0.0, 6.0)] * 5, period=0.49), "certain", "waited 5 times"),
        (run_of(*[(2.5, 7.9, 0.9, 0.0), (2.5, 7.9, 0.0, 6.0)] * 5, period=0.51), "likely", "waited 5 times"),
        ([], "cannot tell", "0 samples"),
    ],
)
def test_both_sides_of_every_threshold(samples: list[Sample], answer: str, text: str):
    verdict = judge(samples)
    assert (verdict.swapping, text in verdict.headline) == (answer, True), verdict.headline
    assert bool(verdict.advice) == (answer != "no" and bool(verdict.numbers))


def test_a_load_that_ends_with_full_memory_is_no_swapping():
    rising = [(0.1, 0.5 + 0.148 * i, 0.03, 1.6) for i in range(51)]
    assert judge(run_of(*rising, *[WORK] * 5)).swapping == "no"


def test_a_load_with_pauses_is_one_wait():
    for pause in (0.2, 0.8, 5.0):
        samples = run_of(WORK, *[(0.7, 7.9, 0.02, 1.5), (pause, 7.9, 0.0, 0.02)] * 6, LONG_WORK)
        verdict = judge(samples)
        assert verdict.swapping == "no"
        assert "waited 1 times" in verdict.headline


def test_a_pause_between_samples_makes_no_swapping_of_a_load():
    samples = run_of(WORK, (0.7, 7.9, 0.02, 6.0), WORK)
    assert judge([replace(sample, time=sample.time + 9 * (sample.time > 1.3)) for sample in samples]).swapping == "no"


def test_a_slow_link_is_busy_with_less():
    for rate, capacity, answer in ((0.9, 1e9, "certain"), (0.09, 1e9, "no"), (0.9, 31.5e9, "no")):
        samples = run_of(*[(1.0, 7.9, 0.95, 0.01), (2.0, 7.9, 0.02, rate)] * 6, capacity=capacity)
        assert judge(samples).swapping == answer


@pytest.mark.parametrize("counter", ["memory_used", "utilization", "pcie_in"])
def test_without_a_counter_there_is_no_answer(counter: str):
    verdict = judge([replace(sample, **{counter: None}) for sample in waits()])
    assert verdict.swapping == "cannot tell"
    assert verdict.advice


# The command


class Driver:
    """The driver's answers at the boundary of ``pynvml``, of a GPU that swaps."""

    NVML_PCIE_UTIL_RX_BYTES, NVML_PCIE_UTIL_TX_BYTES = 0, 1

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = iter(samples)

    def __getattr__(self, name: str):
        raise AttributeError(name)  # a function that this binding lacks

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return CARD.encode()  # older bindings return bytes

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> object:
        self.now = next(self.samples)
        return type("Memory", (), {"used": self.now.memory_used, "total": self.now.memory_total})

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> object:
        return type("Rates", (), {"gpu": 100 * (self.now.utilization or 0)})

    def nvmlDeviceGetPcieThroughput(self, handle: int, way: int) -> int:
        if way == self.NVML_PCIE_UTIL_TX_BYTES:
            raise RuntimeError("NVMLError_NotSupported")
        return int((self.now.pcie_in or 0) / 1000)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[object]:
        return [type("Process", (), {"pid": 7, "usedGpuMemory": GIB})]


def test_the_driver_is_read_as_far_as_it_answers():
    gpu = nvml.Gpu(Driver(waits()), 0)
    sample = gpu.sample(1.0)
    assert (sample.name, sample.time, sample.memory_used, sample.memory_total) == (CARD, 1.0, 7.9 * GIB, 8 * GIB)
    assert (sample.utilization, sample.pcie_in, sample.pcie_out, sample.pcie_capacity) == (0.95, 0, None, None)
    assert gpu.holders() == [nvml.Holder(7, "a process", GIB)]


def test_gpus_that_cannot_be_asked_are_explained(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.find_gpus() == ([], "the package nvidia-ml-py is not installed: pip install nvidia-ml-py")
    monkeypatch.setitem(sys.modules, "pynvml", type(sys)("pynvml"))  # a module of that name, but another one
    assert "could not be asked" in nvml.find_gpus()[1]


def test_a_command_is_watched_and_judged_and_its_csv_judged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    gpu = nvml.Gpu(Driver(waits(40)), 0)
    monkeypatch.setattr(nvml, "find_gpus", lambda: ([gpu], ""))
    path = tmp_path / "run.csv"
    script = "import time, sys; print('hello'); time.sleep(2.5); sys.exit(7)"
    command = ["watch", "--interval", "0.02", "-o", str(path), "--", sys.executable, "-c", script]
    assert main(command) == 7
    printed = capfd.readouterr()
    assert printed.out == "hello\n"  # nothing of ours in a pipe
    assert f"GPU 0, {CARD}: swapping: " in printed.err
    assert "memory held now by a process (pid 7)" in printed.err
    samples = read_csv(path)
    assert len(samples) >= 50
    assert main(["watch", "--replay", str(path)]) == 0
    assert capfd.readouterr().out in printed.err
    assert main(command) == 1, "an existing file is kept"
    assert "File exists" in capfd.readouterr().err

    text = path.read_text()
    path.write_text(text[:-9])  # as a crash leaves it
    assert read_csv(path) == samples[:-1]
    path.write_text(text + "0,x,soon,,,,,,\n")
    with pytest.raises(FastInstantIDError, match=f"line {len(samples) + 2} is damaged"):
        read_csv(path)
    path.write_text("time,memory\n1,2\n")
    with pytest.raises(FastInstantIDError, match=COLUMNS[0]):
        read_csv(path)


@pytest.mark.skipif(bool(nvml.find_gpus()[0]), reason="needs a machine without a GPU of NVIDIA's")
def test_without_a_gpu_there_is_nothing_to_watch(capsys: pytest.CaptureFixture[str]):
    assert main(["watch", "--", "true"]) == 1
    assert "no GPU to watch" in capsys.readouterr().err


def test_a_command_that_does_not_exist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(nvml, "find_gpus", lambda: ([nvml.Gpu(Driver(waits()), 0)], ""))
    assert main(["watch", "-o", str(tmp_path / "run.csv"), "--", "no-such-command"]) == 1
    assert "no-such-command: cannot be started" in capsys.readouterr().err


SIGNALLED = """
import sys
sys.path.insert(0, sys.argv[1])
from fast_instantid import cli
from fast_instantid.observe import nvml
from tests.observe.test_watch import Driver, waits
nvml.find_gpus = lambda: ([nvml.Gpu(Driver(waits(1000)), 0)], "")
script = "import pathlib, time; pathlib.Path('up').touch(); time.sleep(60)"
sys.exit(cli.main(["watch", "--", sys.executable, "-c", script]))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX's signals")
def test_ctrl_c_ends_the_command_and_its_code_is_returned(tmp_path: Path):
    command = [sys.executable, "-c", SIGNALLED, str(ROOT)]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert "swapping: " in process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGINT


@pytest.mark.parametrize("arguments", [["--interval", "0"], ["--replay", "x.csv", "--", "true"]])
def test_wrong_usage(arguments: list[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["watch", *arguments])
