"""``fast-instantid watch`` as people run it: a process of its own, on a stand-in for the driver library."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from fast_instantid.cli import main
from fast_instantid.cli.recordings import name_by_time
from fast_instantid.observe.command import Stop
from fast_instantid.observe.gpu import Gpu, GpuInfo, Gpus
from fast_instantid.observe.replay import read_recording
from tests.adversity import needs_posix, unprivileged

LIBRARY = Path(__file__).parent / "nvml_library.py"
TRACES = Path(__file__).parent / "traces"
ROOT = LIBRARY.parents[2]
SLEEPER = "import time; print('up', flush=True); time.sleep(60)"

Watch = Callable[..., "subprocess.Popen[str]"]


def arguments_of(machine: str, *arguments: object) -> list[str]:
    return [sys.executable, str(LIBRARY), machine, "watch", *map(str, arguments)]


def watched(
    machine: str, *arguments: object, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command line on one of the machines of ``nvml_library.py``, run until it ends."""
    return subprocess.run(
        arguments_of(machine, *arguments),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
    )


@pytest.fixture
def watching(tmp_path: Path) -> Generator[Watch]:
    """Starts one in a session of its own, without a terminal; what is left of it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(machine: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            arguments_of(machine, *arguments),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if os.name == "posix":
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.communicate()


def wait_for_rows(path: Path, count: int) -> None:
    """Until the CSV has so many lines."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not get {count} lines")


def test_a_command_is_watched_and_its_output_and_exit_code_are_its_own(tmp_path: Path):
    script = "import sys, time; print('hello'); print('oops', file=sys.stderr); time.sleep(3); sys.exit(7)"
    result = watched("swapping", "-o", "run", "--", sys.executable, "-c", script, cwd=tmp_path)
    assert result.returncode == 7
    assert result.stdout == "hello\n"  # nothing of ours in what may go into a pipe
    assert "oops" in result.stderr
    assert "swapping: certain" in result.stderr
    assert "\033" not in result.stderr  # no status line where there is no terminal
    assert {path.name for path in tmp_path.iterdir()} == {"run.csv", "run.json", "run.png"}
    document = json.loads((tmp_path / "run.json").read_text())
    assert document["exit_code"] == 7
    assert document["command"][0] == sys.executable
    numbers = document["gpus"][0]["numbers"]
    assert 2.5 < numbers["seconds"] < 6
    assert numbers["samples"] == len(document["gpus"][0]["rows"]) > 15
    recording = read_recording(tmp_path / "run.csv")
    assert recording.notes == []
    assert recording.gpus["0"].evidence.numbers() == numbers


def test_memory_of_the_command_and_of_others_is_told_apart(tmp_path: Path):
    """Also that of a process which the command started."""
    held = tmp_path / "held"
    held.mkdir()
    (held / str(os.getpid())).write_text(str(3 << 30))
    grandchild = f"import os, time; open('{held}/' + str(os.getpid()), 'w').write(str(2 << 30)); time.sleep(2)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    result = watched(
        "steady", "-o", "run", "--", sys.executable, "-c", script, cwd=tmp_path, env={"FAKE_NVML_PROCESSES": str(held)}
    )
    assert result.returncode == 0
    (gpu,) = json.loads((tmp_path / "run.json").read_text())["gpus"]
    assert gpu["numbers"]["peak_watched"] == 2 << 30
    assert gpu["numbers"]["peak_others"] == 3 << 30
    assert {holder["pid"]: holder["watched"] for holder in gpu["holders"]}[os.getpid()] is False
    assert [holder["memory"] for holder in gpu["holders"]] == [3 << 30, 2 << 30]
    assert "the command at most 2.0 GiB, other processes at most 3.0 GiB" in result.stderr


def test_a_worker_that_left_the_family_is_still_of_the_command(tmp_path: Path):
    """As servers start theirs; and a process that nobody knows, as of another container, is nobody's."""
    held = tmp_path / "held"
    held.mkdir()
    (held / str(2**22 + 1)).write_text(str(1 << 30))  # more than a pid can be
    daemon = f"open('{held}/' + str(os.getpid()), 'w').write(str(2 << 30)); time.sleep(2)"
    script = f"import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        {daemon}\n"
    script += "    os._exit(0)\nos.wait(); time.sleep(2.5)"
    result = watched(
        "steady", "-o", "run", "--", sys.executable, "-c", script, cwd=tmp_path, env={"FAKE_NVML_PROCESSES": str(held)}
    )
    assert result.returncode == 0, result.stderr
    (gpu,) = json.loads((tmp_path / "run.json").read_text())["gpus"]
    assert [(holder["memory"], holder["watched"]) for holder in gpu["holders"]] == [(2 << 30, True)]


def test_each_gpu_gets_a_verdict_and_a_plot(tmp_path: Path):
    result = watched("two", "--duration", 3, "-o", "run", cwd=tmp_path)
    assert result.returncode == 0
    assert "GPU 0, NVIDIA GeForce RTX 3060 Ti: swapping: no" in result.stdout
    assert "GPU 1, NVIDIA RTX A4000: swapping: no" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"run.csv", "run.json", "run.gpu0.png", "run.gpu1.png"}
    assert set(read_recording(tmp_path / "run.csv").gpus) == {"0", "1"}


def test_one_gpu_of_several(tmp_path: Path):
    result = watched("two", "--gpu", 1, "--duration", 1, "-o", "run", "--json", cwd=tmp_path)
    assert [gpu["name"] for gpu in json.loads(result.stdout)["gpus"]] == ["NVIDIA RTX A4000"]
    result = watched("two", "--gpu", 2, cwd=tmp_path)
    assert result.returncode == 1
    assert "there are 0 (NVIDIA GeForce RTX 3060 Ti), 1 (NVIDIA RTX A4000)" in result.stderr


def test_files_are_named_by_the_time(tmp_path: Path):
    assert watched("bare", "--duration", 0.5, cwd=tmp_path).returncode == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 3
    assert all(name.startswith("watch-20") for name in names)


def test_a_second_one_at_the_same_time_gets_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda text: "watch-now")
    names: list[str] = []
    for _ in range(3):
        names.append(name_by_time().name)
        Path(f"{names[-1]}.csv").touch()
    assert names == ["watch-now", "watch-now-2", "watch-now-3"]


def gpu_of(vendor: str, index: int) -> Gpu:
    return cast(Gpu, SimpleNamespace(info=GpuInfo(index, "a card", vendor)))


@pytest.mark.parametrize(
    ("vendors", "wanted", "chosen"),
    [
        (["nvidia", "nvidia", "amd", "amd"], "0", ["0"]),
        (["nvidia", "nvidia", "amd", "amd"], "amd1", ["amd1"]),
        (["amd", "amd"], "1", ["amd1"]),
        (["nvidia", "amd"], None, ["0", "amd0"]),
    ],
)
def test_a_gpu_is_chosen_by_its_label_first(vendors: list[str], wanted: str | None, chosen: list[str]):
    from fast_instantid.cli.watch import _chosen  # pyright: ignore[reportPrivateUsage]

    gpus = [gpu_of(vendor, vendors[:i].count(vendor)) for i, vendor in enumerate(vendors)]
    assert [gpu.info.label for gpu in _chosen(Gpus(gpus, []), wanted)] == chosen


def test_without_a_gpu_the_command_runs_and_that_nothing_is_seen_is_said(tmp_path: Path):
    result = watched("none", "-o", "run", "--", sys.executable, "-c", "print(1); raise SystemExit(5)", cwd=tmp_path)
    assert result.returncode == 5
    assert result.stdout == "1\n"
    assert "running the command all the same" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert "no GPU was watched" in last
    assert result.stderr.count("not loaded") == last.count("not loaded") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_and_a_command_there_is_nothing_to_do(tmp_path: Path):
    result = watched("none", cwd=tmp_path)
    assert result.returncode == 1
    assert "there is no GPU to watch" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_does_not_start_leaves_nothing(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.txt").write_text("1")
    for command, code, text in (
        ("no-such-command", 127, "no such command"),
        ("", 126, "'': an empty text is no command"),
        ("./folder", 126, "this is a folder"),
        ("./data.txt", 126, "may not be executed"),
    ):
        if os.name != "posix" and code == 126:
            continue
        result = watched("steady", "-o", "run", "--", command, cwd=tmp_path)
        assert (result.returncode, text in result.stderr) == (code, True), result.stderr
        assert "Traceback" not in result.stderr
        assert not list(tmp_path.glob("run*"))


@needs_posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_on_to_the_command_and_everything_is_written(tmp_path: Path, watching: Watch, number: int):
    script = f"""
import signal, sys, time
def leave(number, frame):
    print('got', number, flush=True); time.sleep(0.5); sys.exit(9)
signal.signal({int(number)}, leave)
{SLEEPER}
"""
    process = watching("swapping", "-o", "run", "--", sys.executable, "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    time.sleep(2.5)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 9
    assert out == f"got {int(number)}\n"  # once
    assert "swapping: certain" in err
    assert {path.name for path in tmp_path.iterdir()} == {"run.csv", "run.json", "run.png"}


@needs_posix
def test_a_signal_that_comes_while_the_command_is_started_reaches_it():
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        process = stop.run([sys.executable, "-c", SLEEPER])
        assert process.wait(timeout=60) == -signal.SIGTERM
    assert stop.asked.is_set()


def test_the_end_of_the_csv_is_that_of_the_command(tmp_path: Path):
    """Also where the watching ended before it."""
    script = "import time; time.sleep(2); raise SystemExit(7)"
    result = watched("steady", "-o", "run", "--duration", 1, "--", sys.executable, "-c", script, cwd=tmp_path)
    assert result.returncode == 7
    recording = read_recording(tmp_path / "run.csv")
    assert recording.exit_code == 7
    assert recording.notes == []
    assert recording.gpus["0"].evidence.seconds < 2


@needs_posix
def test_a_command_that_a_signal_ends_gives_128_and_its_number(tmp_path: Path, watching: Watch):
    process = watching("steady", "-o", "run", "--", sys.executable, "-c", SLEEPER)
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert (tmp_path / "run.json").exists()


@needs_posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watching_without_a_command_ends_by_a_signal(tmp_path: Path, watching: Watch, number: int):
    process = watching("steady", "-o", "run")
    wait_for_rows(tmp_path / "run.csv", 30)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "swapping: no" in out
    assert (tmp_path / "run.png").exists()


@needs_posix
def test_ctrl_c_in_a_terminal_reaches_the_command_once(tmp_path: Path):
    """The terminal tells the whole process group, so handing it on would make it twice. The live line is there too."""
    import pty

    script = (
        "import time\n"
        "try:\n    print('up', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('first', flush=True)\n"
        "try:\n    time.sleep(1)\n"
        "except KeyboardInterrupt:\n    print('second', flush=True)\n"
    )
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
        command = arguments_of("swapping", "-o", "run", "--", sys.executable, "-c", script)
        os.execve(sys.executable, command, environment)
    import fcntl
    import struct
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    seen = b""
    sent = False
    while True:
        try:
            data = os.read(terminal, 4096)
        except OSError:  # Linux says so at the end
            break
        if not data:
            break
        seen += data
        if not sent and b"up" in seen and b"7.9/8.0 GiB 99%" in seen:
            os.write(terminal, b"\x03")
            sent = True
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert seen.count(b"first") == 1
    assert b"second" not in seen
    assert b"PCIe in" in seen
    assert seen.rindex(b"\033[r") > seen.rindex(b"PCIe in"), "the terminal was not given back"
    assert (tmp_path / "run.json").exists()


@needs_posix
@pytest.mark.parametrize("ignoring", [True, False])
def test_a_terminal_that_is_closed_costs_nothing(tmp_path: Path, ignoring: bool):
    """A command that ignores that goes on, and is watched to its end."""
    import pty

    script = "import signal, time; "
    script += "signal.signal(signal.SIGHUP, signal.SIG_IGN); time.sleep(5)" if ignoring else "time.sleep(60)"
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        command = arguments_of("swapping", "-o", "run", "--", sys.executable, "-c", script)
        os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"})
    import fcntl
    import struct
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    wait_for_rows(tmp_path / "run.csv", 20)
    os.close(terminal)
    os.waitpid(child, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"run.csv", "run.json", "run.png"}
    recording = read_recording(tmp_path / "run.csv")
    assert recording.notes == []
    assert recording.exit_code == (0 if ignoring else 128 + signal.SIGHUP)
    if ignoring:
        assert recording.gpus["0"].evidence.seconds > 3


@needs_posix
def test_a_reader_that_has_enough_costs_nothing(tmp_path: Path):
    watch = shlex.join(arguments_of("steady", "--json", "-o", "run", "--duration", 4))
    result = subprocess.run(
        ["sh", "-c", f"{watch} | head -c 10"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.stdout == '{"kind": "'
    assert "run.png" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"run.csv", "run.json", "run.png"}


@needs_posix
def test_what_was_recorded_before_a_kill_is_replayed(
    tmp_path: Path, watching: Watch, capsys: pytest.CaptureFixture[str]
):
    process = watching("swapping", "-o", "run", "--", sys.executable, "-c", SLEEPER)
    wait_for_rows(tmp_path / "run.csv", 40)
    process.kill()
    process.wait()
    assert not (tmp_path / "run.json").exists()
    assert main(["watch", "--replay", str(tmp_path / "run.csv")]) == 0
    said = capsys.readouterr()
    assert "swapping: certain" in said.out
    assert "cut off" in said.err
    assert (tmp_path / "run.png").exists()


def test_an_output_that_exists_is_not_replaced(tmp_path: Path):
    (tmp_path / "run.png").write_text("mine")
    result = watched("steady", "-o", "run.csv", "--", sys.executable, "-c", "print('ran')", cwd=tmp_path)
    assert result.returncode == 1
    assert "run.png: this exists" in result.stderr
    assert result.stdout == ""  # known before the command was started
    assert (tmp_path / "run.png").read_text() == "mine"


def test_an_output_that_cannot_be_written_is_known_before_the_command_starts(tmp_path: Path):
    for output, text in ((tmp_path / "no" / "run", "there is no folder"), (tmp_path, "this is a folder")):
        result = watched("steady", "-o", output, "--", sys.executable, "-c", "print('ran')", cwd=tmp_path)
        assert (result.returncode, text in result.stderr, result.stdout) == (1, True, "")


@needs_posix
def test_a_folder_that_may_not_be_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "closed"
    folder.mkdir()
    (folder / "run.csv").write_text((TRACES / "swapping.csv").read_text())
    folder.chmod(0o555)
    import matplotlib.figure  # noqa: F401 - now, since nobody else may read some of where they are installed

    with unprivileged(tmp_path):
        code = main(["watch", "--replay", "closed/run.csv"])
    folder.chmod(0o755)
    said = capsys.readouterr()
    assert "swapping: certain" in said.out  # the answer is there
    assert code == 1
    assert "closed/run.png: Permission denied" in said.err


@needs_posix
def test_a_full_disk_costs_files_and_not_the_verdict(tmp_path: Path):
    """Every file may grow to 2000 bytes here, which is less than any of the three."""
    code = (
        "import resource, sys, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
        f"sys.argv = {arguments_of('swapping', '-o', 'run', '--duration', 4)[1:]!r}; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 1
    assert "swapping: certain" in result.stdout
    assert "could not be written further" in result.stderr
    assert "Traceback" not in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"run.csv"}  # the others whole or not at all


def test_without_matplotlib_everything_but_the_plot_is_written(tmp_path: Path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('no matplotlib here')")
    result = watched(
        "steady", "--duration", 1, "-o", "run", cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    )
    assert result.returncode == 0
    assert "pip install matplotlib" in result.stderr
    assert {path.name for path in tmp_path.glob("run*")} == {"run.csv", "run.json"}
    result = watched("none", "--replay", "run.csv", cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert "pip install matplotlib" in result.stderr
    assert "written" not in result.stderr


def usage_error(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as error:
        main(["watch", *arguments])
    assert error.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--"], "no command after --"),
        (["--interval", "0"], "from 0.02 to 10"),
        (["--interval", "nan"], "from 0.02 to 10"),
        (["--interval", "fast"], "expected seconds"),
        (["--duration", "-1"], "expected seconds"),
        (["--replay", "x.csv", "--", "ls"], "give no command"),
        (["--replay", "x.csv", "--gpu", "0"], "give no command"),
        (["--replay", "x.csv", "--interval", "1"], "give no command"),
    ],
)
def test_wrong_usage(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]):
    assert text in usage_error(arguments, capsys)


def test_options_of_the_command_are_its_own(tmp_path: Path):
    script = "import sys; print(sys.argv[1:])"
    result = watched("none", "--", sys.executable, "-c", script, "--gpu", "x", "--", "-o", cwd=tmp_path)
    assert result.stdout == "['--gpu', 'x', '--', '-o']\n"
