"""Scripts under ``fast-instantid profile``: they run as in Python, and what was recorded outlives them."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fast_instantid.observe.profile import Profile
from tests.observe.profile_command import names, shell, start, write_script


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """See ``write_script``."""
    return partial(write_script, tmp_path)


def test_a_script_runs_as_python_runs_it(tmp_path, script):
    (tmp_path / "beside.py").write_text("value = 5")
    program = script(
        "import beside\nif __name__ == '__main__':\n"
        "    with stage('main', nbytes=beside.value): print(sys.argv)\n    sys.exit(3)"
    )
    result = shell(tmp_path, "-o", "run", "--", program, "--option", "-o", "x")
    assert result.returncode == 3
    assert result.stdout == "['program.py', '--option', '-o', 'x']\n"
    profile = Profile.load(tmp_path / "run.json")
    assert [span.name for span in profile.spans] == ["first", "main"]
    assert profile.title == "program.py --option -o x"
    assert profile.ended_early == "exit code 3"


def test_a_script_that_raises_leaves_its_traceback_and_the_profile(tmp_path, script):
    result = shell(tmp_path, "-o", "run", "--", script("with stage('bad'): raise KeyError('boo')"))
    assert result.returncode == 1
    assert result.stderr.startswith('Traceback (most recent call last):\n  File "program.py", line 4')
    assert "KeyError: 'boo'" in result.stderr
    profile = Profile.load(tmp_path / "run.json")
    assert [span.name for span in profile.spans] == ["first", "bad"]
    assert profile.ended_early == "KeyError: 'boo'"
    assert "did not end as it should (KeyError: 'boo')" in result.stderr


def test_a_script_that_cannot_be_read_leaves_only_its_own_traceback(tmp_path, script):
    result = shell(tmp_path, "-o", "run", "--", script("1 +"))
    assert result.returncode == 1
    assert result.stderr.startswith('  File "program.py", line 4')
    assert "SyntaxError" in result.stderr
    assert "runpy" not in result.stderr


def test_a_script_that_raises_no_exception_is_kept_too(tmp_path, script):
    result = shell(tmp_path, "-o", "run", "--", script("class Odd(BaseException): pass\nraise Odd('boo')"))
    assert result.returncode == 1
    assert 'File "program.py", line 5' in result.stderr
    assert Profile.load(tmp_path / "run.json").ended_early == "Odd: boo"


def test_a_script_that_fails_before_any_stage_is_told_of(tmp_path):
    (tmp_path / "program.py").write_text("import sys; sys.exit(2)")
    result = shell(tmp_path, "-o", "run", "--", "program.py")
    assert result.returncode == 2
    assert "No stage was met" in result.stderr
    assert names(tmp_path) == ["run.html", "run.json"]


def test_a_fork_leaves_the_profile_to_the_process_that_began_it(tmp_path, script):
    program = script(
        "child = os.fork()\nif not child:\n    with stage('child'): sys.exit(5)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "read, write = os.pipe()\nasleep = os.fork()\n"
        "if not asleep:\n    os.write(write, b'x')\n    time.sleep(60)\n    os._exit(0)\n"
        "os.read(read, 1)\nos.kill(asleep, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(asleep, 0)[1]))\n"
        "with stage('parent'): pass"
    )
    result = shell(tmp_path, "-o", "run", "--", program)
    assert result.returncode == 0
    assert [line for line in result.stdout.splitlines() if line] == ["5", "-15"]
    assert result.stderr.count("whole run") == result.stderr.count("written: run.json") == 1
    assert [span.name for span in Profile.load(tmp_path / "run.json").spans] == ["first", "parent"]


THREAD = (
    "import threading\ndef work():\n    time.sleep(0.3)\n    with stage('late'): print('late', flush=True)\n"
    "    time.sleep(float(sys.argv[1]))\n"
)


@pytest.mark.parametrize(
    ("begin", "code"),
    [
        ("threading.Thread(target=work).start()", 0),
        ("threading.Thread(target=work).start()\nraise KeyError", 1),
        ("import concurrent.futures as f\nsys.pool = f.ThreadPoolExecutor(2)\nsys.pool.submit(work)", 0),
        ("threading.Thread(target=threading.Event().wait, daemon=True).start(); work()", 0),
    ],
)
def test_threads_that_a_script_leaves_running_are_recorded(begin, code, tmp_path, script):
    result = shell(tmp_path, "-o", "run", "--", script(THREAD + begin), "0")
    assert result.returncode == code
    assert "Exception in thread" not in result.stderr
    assert [span.name for span in Profile.load(tmp_path / "run.json").spans] == ["first", "late"]


def test_a_signal_ends_threads_too(tmp_path, script):
    process = start(
        tmp_path, "-o", "run", "--", script(THREAD + "threading.Thread(target=work, name='T').start()"), "60"
    )
    assert process.stdout.readline() == "late\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    assert [span.name for span in Profile.load(tmp_path / "run.json").spans] == ["first", "late"]


def test_a_message_given_to_exit_is_shown(tmp_path, script):
    result = shell(tmp_path, "-o", "run", "--", script("sys.exit('that was it')"))
    assert result.returncode == 1
    assert "that was it" in result.stderr
    assert names(tmp_path) == ["run.html", "run.json"]


@pytest.mark.parametrize(
    ("number", "code", "why"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, -signal.SIGTERM, "ended from outside (SIGTERM)"),
        (signal.SIGHUP, -signal.SIGHUP, "ended from outside (SIGHUP)"),
    ],
)
def test_a_run_that_is_stopped_keeps_what_was_recorded(number, code, why, tmp_path, script):
    program = script(
        "with stage('outer'):\n    with stage('waits'):\n        print('ready', flush=True)\n        time.sleep(60)\n"
        "with stage('never'): pass"
    )
    began = time.monotonic()
    process = start(tmp_path, "-o", "run", "--", program)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 50
    assert process.returncode == code
    assert "Traceback" not in err
    profile = Profile.load(tmp_path / "run.json")
    assert profile.ended_early == why
    assert [span.name for span in profile.spans] == ["first", "outer", "waits"]
    assert names(tmp_path) == ["run.html", "run.json"]
    assert why in (tmp_path / "run.html").read_text("utf-8")


def test_a_closed_terminal_costs_no_profile(tmp_path, script):
    process = start(tmp_path, "-o", "run", "--", script("print('ready', flush=True)\ntime.sleep(60)"))
    assert process.stdout.readline() == "ready\n"
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == -signal.SIGHUP
    assert names(tmp_path) == ["run.html", "run.json"]


def test_a_script_that_swallows_the_first_signal_dies_of_the_second(tmp_path, script):
    program = script(
        "for line in ('first', 'second'):\n    try:\n        print(line, flush=True)\n        time.sleep(60)\n"
        "    except BaseException: pass"
    )
    process = start(tmp_path, "-o", "run", "--", program)
    for line in ("first\n", "second\n"):
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM


def test_a_full_disk_costs_the_profile_and_leaves_nothing_half_written(tmp_path, script):
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    result = shell(tmp_path, "-o", "run", "--", script("print('done')"), preexec_fn=small_files)
    assert result.returncode == 1
    assert result.stdout == "done\n"
    assert "run.json: the profile could not be written (File too large)" in result.stderr
    assert "whole run" in result.stderr
    assert names(tmp_path) == []


def test_two_runs_at_the_same_time_do_not_replace_each_other(tmp_path, script):
    program = script("")
    processes = [start(tmp_path, "--", program) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(names(tmp_path)) == 4
