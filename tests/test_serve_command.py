"""The command that serves: its port, its errors, and its ends."""

from __future__ import annotations

import asyncio
import io
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest
from PIL import Image

from fast_instantid.cli import main
from fast_instantid.cli.serve import _BOUNDS, KEY
from fast_instantid.errors import BackendError
from fast_instantid.scale.serve.app import make_app
from fast_instantid.scale.serve.engine import Engine
from fast_instantid.scale.serve.limits import Limits

from .serving import MB, PROMPT, bomb, eventually, instantid, photo

ROOT = Path(__file__).resolve().parent.parent
MISSING = "neither a file nor a folder"
JSON, EVENTS = {"Content-Type": "application/json"}, {"Accept": "text/event-stream"}
PICTURE = {"prompt": PROMPT, "num_inference_steps": "40"}
FAULT = """
import sys
from fast_instantid.cli import main
from fast_instantid.scale.serve.engine import Engine

def fail(self):
    raise RuntimeError("no kernel image")

Engine._warm_up = fail
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def command(*more: str, program: tuple[str, ...] = ("-m", "fast_instantid")) -> Iterator[subprocess.Popen[str]]:
    """The command as a terminal starts it, with the miniature and at a free port."""
    words = [sys.executable, *program, "serve", "--base", "miniature", "--port", "0", *more]
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background ignores it
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=hears)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def address(process: subprocess.Popen[str]) -> str:
    """Where it serves, as soon as it says so."""
    line = process.stderr.readline()
    return re.match(r"(http://127\.0\.0\.1:[1-9]\d*) has the page", line)[1]


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def ends_quietly(process: subprocess.Popen[str], sent: signal.Signals, twice: bool = False) -> None:
    said = process.communicate(timeout=20)[1]
    expected = {signal.SIGINT: 130, signal.SIGTERM: -signal.SIGTERM}[sent]
    # A second Ctrl-C may come when Python has ended and no longer hears it. A shell says 130 of both.
    assert process.returncode in ((expected, -sent) if twice else (expected,)), said
    assert said == ("interrupted\n" if sent == signal.SIGINT else "")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_warm_up_ends_the_command(sent):
    with command() as process:
        url = address(process)
        eventually(lambda: not is_ready(url) and answers(url))
        process.send_signal(sent)
        ends_quietly(process, sent)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(("sent", "accept"), [(signal.SIGINT, "text/event-stream"), (signal.SIGTERM, "image/png")])
def test_a_signal_during_a_picture_ends_the_command_and_tells_the_client(sent, accept):
    with command("--max-steps", "1000", "--max-batch", "1") as process:
        url = address(process)
        eventually(lambda: is_ready(url))
        told: list[str] = []

        def draw() -> None:
            fields = {"prompt": PROMPT, "num_inference_steps": "1000"}
            headers = {"Accept": accept}
            with httpx.stream(
                "POST", f"{url}/v1/pictures", files=[photo()], data=fields, headers=headers, timeout=60
            ) as answer:
                told.append("".join(answer.iter_text()))

        clients = [Thread(target=draw) for _ in range(2)]  # one is drawn, one waits
        for client in clients:
            client.start()
        waiting = 'fast_instantid_waiting{queue="pictures"} 1.0'
        eventually(lambda: waiting in httpx.get(f"{url}/metrics").text)
        process.send_signal(sent)
        eventually(lambda: not answers(url))
        process.send_signal(sent)  # an impatient second one
        for client in clients:
            client.join()
        assert ["the service ends" in text for text in told] == [True, True], told
        ends_quietly(process, sent, twice=True)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process in /proc")
def test_memory_stays_flat_under_bombs_large_uploads_and_clients_that_leave():
    """With the bounds of a user: after each kind has come once, ten more of each take nothing."""
    block = bytes(MB)

    def resident(process: subprocess.Popen[str]) -> int:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024

    with command() as process:
        url = address(process)
        eventually(lambda: is_ready(url), 120)
        host, port = url.removeprefix("http://").split(":")
        with httpx.Client(base_url=url, timeout=120) as client:

            def ask() -> None:
                bombs = [("photos", bomb(12000, 9000))]
                assert client.post("/v1/faces", files=bombs).status_code == 413
                large = client.post("/v1/faces", content=(block for _ in range(100)), headers=JSON)
                assert large.status_code == 413
                with socket.create_connection((host, int(port))) as leaving:  # in the middle of an upload of 30 MB
                    leaving.sendall(b"POST /v1/faces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
                    leaving.sendall(b"Content-Length: 30000000\r\n\r\n" + block * 20)
                with client.stream("POST", "/v1/pictures", files=[photo()], data=PICTURE, headers=EVENTS) as stream:
                    assert "event: queued" in next(stream.iter_lines())
                assert client.post("/v1/faces", files=[photo()]).status_code == 200

            for _ in range(3):
                ask()
            before = resident(process)
            for _ in range(10):
                ask()
            assert resident(process) < before + 96 * MB, "a request of 32 MB that is held each time is 320 MB"


def test_requests_that_are_half_sent_do_not_hold_the_command():
    with command() as process:
        url = address(process)
        eventually(lambda: is_ready(url))
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as half:
            half.sendall(b"POST /v1/faces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            half.sendall(b"Content-Length: 1000\r\n\r\n{")
            eventually(lambda: is_ready(url))
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=20)[1]
            assert half.recv(100).startswith(b"HTTP/1.1 503 ")
    assert "Traceback" not in said
    assert process.returncode == -signal.SIGTERM


def test_nothing_that_a_client_sends_is_in_the_log():
    """Pillow warned of each damaged tag, a hundred thousand times, and Diffusers of long prompts, which it told."""
    damaged, form = Image.Exif(), io.BytesIO()
    damaged[0x010E] = "a description"
    tags = damaged.tobytes().replace(b"\0\0\0\x0e", b"\xff\xff\xff\xff")  # its length
    Image.new("RGB", (64, 64)).save(form, "PNG", exif=tags)
    with command() as process:
        url = address(process)
        eventually(lambda: is_ready(url))
        assert httpx.post(f"{url}/v1/faces", files=[("photos", form.getvalue())]).status_code == 200
        fields = {"prompt": "secret words " * 100, "num_inference_steps": "2"}
        assert httpx.post(f"{url}/v1/pictures", files=[photo()], data=fields, timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        ends_quietly(process, signal.SIGTERM)


def test_a_failed_warm_up_ends_the_command():
    with command(program=("-c", FAULT)) as process:
        said = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 1
    assert said[-1] == "error: the warm-up failed: RuntimeError: no kernel image"
    assert len(said) == 2, "and where it serves"


def test_a_taken_port_is_said_before_the_models_load(capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["serve", "--base", "/nowhere", "--port", str(port)]
        assert main(words) == 1
        assert f"--host 127.0.0.1, --port {port}: Address already in use" in capsys.readouterr()[1]
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        assert main([*words, "--ray"]) == 1
        assert f"--port {port}: Address already in use" in capsys.readouterr()[1]
    assert main(words) == 1
    assert MISSING in capsys.readouterr()[1]


@pytest.mark.parametrize("limit", ["queue", "batch", "photos", "people", "steps", "area", "pixels", "body", "seconds"])
def test_a_wrong_limit_names_its_option_before_the_models_load(limit, capsys):
    for value in ("0", "-1", "1.5"):
        with pytest.raises(SystemExit, match="2"):
            main(["serve", "--base", "/nowhere", f"--max-{limit}", value])
        assert f"argument --max-{limit}: {value!r}: expected a whole number from 1 to" in capsys.readouterr()[1]


@pytest.mark.parametrize("key", ["short", "x" * 15, "a secret with spaces", "sixteen-lettérs-", "x" * 16 + "\n"])
def test_a_key_that_is_short_or_no_header_is_refused(key, monkeypatch, capsys):
    monkeypatch.setenv(KEY, key)
    for more in ((), ("--host", "0.0.0.0"), ("--ray",)):
        assert main(["serve", "--base", "/nowhere", *more]) == 1
        assert f"${KEY}: expected 16 or more" in capsys.readouterr()[1]
    monkeypatch.setenv(KEY, "x" * 16)
    assert main(["serve", "--base", "/nowhere", "--port", "0"]) == 1
    assert MISSING in capsys.readouterr()[1]


def test_a_replica_whose_warm_up_failed_is_not_healthy(monkeypatch):
    from fast_instantid.scale.serve import on_ray

    engine = Engine(instantid(), Limits())
    monkeypatch.setattr(engine, "_warm_up", lambda: 1 / 0)
    replica = on_ray._Service()
    replica.app = make_app(engine)
    engine.start()
    with pytest.raises(BackendError, match="the warm-up failed") as raised:
        asyncio.run(replica.check_health())
    engine.join()
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_replica_takes_requests_after_its_warm_up(monkeypatch):
    from fast_instantid.scale.serve import on_ray

    engine, go = Engine(instantid(), Limits()), Event()
    monkeypatch.setattr(engine, "_warm_up", go.wait)
    replica = on_ray._Service()
    replica.app = make_app(engine)
    engine.start()
    asked = Thread(target=lambda: asyncio.run(replica.check_health()))
    asked.start()
    try:
        asked.join(0.5)
        assert asked.is_alive(), "the first question of Ray is answered when the engine is warm"
    finally:
        go.set()
    asked.join(60)
    assert engine.is_ready
    engine.stop()
    engine.join()


def test_a_folder_for_persons_that_cannot_be_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    for name in ("file", "file/persons"):
        assert main(["serve", "--base", "miniature", "--port", "0", "--persons", str(tmp_path / name)]) == 1
        assert f"{tmp_path / name}: no folder for persons: " in capsys.readouterr().err


def test_replicas_are_rays(capsys):
    assert main(["serve", "--base", "/nowhere", "--replicas", "2"]) == 1
    assert "--replicas needs --ray" in capsys.readouterr().err


def test_the_help_tells_each_default(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert len(_BOUNDS) == 9
    for name in _BOUNDS:
        assert f"--max-{name} N {int(getattr(Limits(), name))} " in text


@pytest.mark.parametrize(("limit", "most", "said"), [("steps", 1, "1 steps and"), ("area", 4095, "and 4095 pixels")])
def test_less_than_a_picture_has_is_refused(limit, most, said, capsys):
    assert main(["serve", "--base", "/nowhere", "--port", "0", f"--max-{limit}", str(most)]) == 1
    message = capsys.readouterr().err
    assert said in message
    assert "a picture takes 2 and 4096 or more" in message
