"""The service against hostile, slow and leaving clients: answered as documented, and alive."""

from __future__ import annotations

import base64
import io
import json
import math
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from fast_instantid import Face, Person
from fast_instantid.cli import main
from fast_instantid.scale.serve import server as serve_server
from fast_instantid.scale.serve.batch_queue import BatchQueue, Busy, Job
from fast_instantid.scale.serve.limits import Guard, Limits

from .serving import MB, PORTRAITS, PROMPT, bomb, eventually, photo, serving

ROOT = Path(__file__).resolve().parent.parent
KEY = "a secret of the tests"
LONG = {"prompt": PROMPT, "num_inference_steps": "60", "likeness": "false"}


@pytest.fixture(scope="module")
def client():
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(serve_server._Protocol, "seconds", 1.5)
    with serving(body=4 * MB, body_seconds=1.5, queue=2, batch=1, photos=3, people=2, faces=2) as client:
        yield client
    monkeypatch.undo()


@pytest.fixture(autouse=True)
def _alive(client):
    yield
    eventually(lambda: client.engine.picture_queue.waiting == client.engine.face_queue.waiting == 0)
    answer = client.post("/v1/faces", files=[photo()])
    assert (answer.status_code, len(answer.json()["photos"][0]["faces"])) == (200, 1)


def error(answer: httpx.Response) -> str:
    assert answer.json().keys() == {"error"}
    assert "Traceback" not in answer.text
    return answer.json()["error"]


def test_a_decompression_bomb_is_refused_before_it_is_decoded(client, monkeypatch):
    decoded = []
    monkeypatch.setattr(client.engine._decoders, "map", lambda *given: decoded.append(given))
    for photos in ([bomb(12000, 9000)], [bomb(8000, 8000)] * 2, [bomb(30000, 30000)]):
        answer = client.post("/v1/faces", files=[("photos", data) for data in photos])
        assert (answer.status_code, "pixels" in error(answer)) == (413, True), answer.text
    assert decoded == []
    monkeypatch.undo()


def test_a_hundred_megabytes_are_refused_with_and_without_a_length(client):
    block = bytes(MB)  # one, so that the memory of this process is the service's
    for length in ({"Content-Length": str(100 * MB)}, {}):
        headers = {"Content-Type": "application/json", **length}
        answer = client.post("/v1/faces", content=(block for _ in range(100)), headers=headers)
        assert answer.status_code == 413
        assert f"more than {4 * MB} bytes" in error(answer)


def test_many_large_requests_at_once_are_refused():
    """Eight times the bytes of one are held at most."""
    with serving(body=MB) as client:
        held = [raw(client, head(MB), bytes(MB - 1)) for _ in range(8)]
        one_more = raw(client, head(MB), bytes(MB - 1))
        [refused], *_ = select.select([*held, one_more], [], [], 60)
        answer = refused.recv(1000)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1" in answer
        for connection in {*held, one_more} - {refused}:
            connection.sendall(b"0")
            assert connection.recv(1000).startswith(b"HTTP/1.1 422 "), "no JSON, and all of it read"
        for connection in (*held, one_more):
            connection.close()
        assert client.post("/v1/faces", files=[photo()]).status_code == 200


def test_requests_that_wait_for_the_pipeline_hold_none_of_their_bytes():
    """Eight large ones had all others refused for as long as they were drawn."""
    portrait = io.BytesIO()
    Image.open(PORTRAITS[0]).convert("RGB").save(portrait, "JPEG")
    fields = {**LONG, "num_inference_steps": "900", "photos": base64.b64encode(portrait.getvalue()).decode()}
    document = json.dumps(fields).encode()
    form = httpx.Request(
        "POST", "http://localhost", data=LONG, files={"photos": portrait.getvalue().ljust(MB - 1000, b"\0")}
    )
    bodies = {"application/json": document.ljust(MB), form.headers["content-type"]: form.read()}
    with serving(body=MB, batch=1, steps=900) as client:
        held = [raw(client, head(len(body), kind), body) for _ in range(4) for kind, body in bodies.items()]
        eventually(lambda: client.engine.picture_queue.waiting == 7)
        assert client.post("/v1/faces", files=[photo()]).status_code == 200
        for connection in held:
            connection.close()


def test_urls_are_refused_and_nothing_is_fetched(client):
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.2)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/anna.png"
        for given in (url, "file:///etc/passwd", "HTTPS://example.org/a.png", " ftp://example.org/a.png"):
            answer = client.post("/v1/faces", json={"photos": [given]})
            assert answer.status_code == 422
            assert "fetches nothing" in error(answer)
            field = client.post("/v1/pictures", data={"prompt": "a", "photos": given}, files={"x": b""})
            assert field.status_code == 422
        assert client.post("/v1/faces", files=[("photos", url.encode())]).status_code == 422
        with pytest.raises(TimeoutError):
            trap.accept()


GOOD = base64.b64encode(PORTRAITS[0].read_bytes()).decode()
PART = base64.b64encode(PORTRAITS[0].read_bytes()[:2000]).decode()
WRONG = {
    "no photos": ({"photos": []}, "photos"),
    "no base64": ({"photos": ["%%%"]}, "base64"),
    "no picture": ({"photos": ["aaaa"]}, "photos.0: not a JPEG, PNG or WebP"),
    "too many": ({"photos": [GOOD] * 4}, "at most 3"),
    "a number": ({"photos": [1]}, "expected a file"),
    "an unknown field": ({"photos": [GOOD], "photo": "x"}, "photo: no such field"),
    "truncated": ({"photos": [GOOD, PART]}, "photos.1: damaged or"),
}
WRONG_PICTURES = {
    "nobody": ({}, "0 persons: give 1 to 2"),
    "NaN": ({"scale": "NaN"}, "scale"),
    "too strong": ({"scale": 6}, "scale"),
    "too many steps": ({"num_inference_steps": 61}, "60 steps"),
    "too large": ({"width": 4096, "height": 4096}, "pixels"),
    "an odd size": ({"width": 100}, "multiple of 8"),
    "a long prompt": ({"prompt": "x" * 2001}, "2000"),
    "a negative seed": ({"seed": -1}, "seed"),
    "a huge seed": ({"seed": 2**63}, "seed"),
    "a path for a name": ({"persons": ["../../etc/passwd"]}, "persons"),
    "too many persons": ({"photos": [], "persons": "anna", "person_files": ["aaaa"] * 2}, "3 persons: give"),
    "too many with photos": ({"person_files": ["aaaa", "aaaa"]}, "3 persons: give 1 to 2"),
    "no person file": ({"person_files": ["aaaa"]}, "person_files.0: not a .safetensors file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_photographs_are_named(client, name):
    document, said = WRONG[name]
    answer = client.post("/v1/faces", json=document)
    assert (answer.status_code, said in error(answer)) == (422, True), answer.text


@pytest.mark.parametrize("name", WRONG_PICTURES)
def test_wrong_pictures_are_named(client, name):
    document, said = WRONG_PICTURES[name]
    document = {"prompt": PROMPT, **({} if name == "nobody" else {"photos": [GOOD]}), **document}
    answer = client.post("/v1/pictures", content=json.dumps(document), headers={"Content-Type": "application/json"})
    assert (answer.status_code, said in error(answer)) == (422, True), answer.text


def test_other_bodies_are_refused(client):
    def post(content: bytes, kind: str) -> httpx.Response:
        return client.post("/v1/faces", content=content, headers={"Content-Type": kind})

    assert post(b"{", "application/json").status_code == 422
    assert post(b'{"photos": ["\\ud800"]}', "application/json").status_code == 422
    assert post(b"photos=1", "application/x-www-form-urlencoded").status_code == 415
    assert post(b"", "").status_code == 415
    assert post(b"x", "multipart/form-data").status_code == 422
    assert post(b"x", "multipart/form-data; boundary=y").status_code == 422
    part = b'--y\r\nContent-Disposition: form-data; name="photos"; filename="a"\r\n\r\n' + PORTRAITS[0].read_bytes()
    whole = part + b"\r\n" + part
    answer = post(whole, "multipart/form-data; boundary=y")
    assert (answer.status_code, "cut off" in error(answer)) == (422, True), "no answer for the first photograph alone"
    assert len(post(whole + b"\r\n--y--", "multipart/form-data; boundary=y").json()["photos"]) == 2
    packed = client.post("/v1/faces", files=[photo()], headers={"Content-Encoding": "gzip"})
    assert (packed.status_code, "content encoding 'gzip'" in error(packed)) == (415, True)
    many = client.post("/v1/faces", files=[photo()] * 40)
    assert (many.status_code, "Too many files" in error(many)) == (422, True)
    blank = io.BytesIO()
    Image.new("RGB", (128, 128)).save(blank, "PNG")
    for route, more in (("persons", {}), ("pictures", {"prompt": "a"})):
        answer = client.post(f"/v1/{route}", files=[("photos", blank.getvalue())], data=more)
        assert (answer.status_code, "no face found in photos.0" in error(answer)) == (422, True)
    assert (client.get("/nothing").status_code, client.get("/v1/faces").status_code) == (404, 405)
    assert client.get("/v1/persons/").status_code == 404, "no redirection, which a proxy's own paths would break"


def array(*shape: int, of: float) -> np.ndarray:
    return np.full(shape, of, np.float32)


HUGE, USUAL = 3e38, np.float32([[44, 50], [84, 50], [64, 72], [48, 94], [80, 94]])
WRONG_PERSONS = {
    "embeddings": {"embeddings": array(1, 512, of=HUGE)},
    "one embedding of weight 0": {
        "embeddings": np.concatenate([array(1, 512, of=1), array(1, 512, of=HUGE)]),
        "weights": np.float32([1, 0]),
    },
    "weights": {"embeddings": array(2, 512, of=1), "weights": np.float32([HUGE, 1e38])},
    "keypoints": {"kps": array(5, 2, of=HUGE)},
    "keypoints of NaN": {"kps": array(5, 2, of=math.nan)},
    "keypoints without end": {"kps": array(5, 2, of=math.inf)},
    "a box": {"bbox": array(4, of=HUGE)},
    "a box of NaN": {"bbox": array(4, of=math.nan)},
    **{f"a photograph of {size}": {"size": size} for size in ((0, 0), (1, 10**9), (-5, 3), (10**30, 10**30))},
}


def person_file(path: Path, size=(128, 128), kps=USUAL, bbox=(24, 8, 104, 120), **more: np.ndarray) -> bytes:
    embeddings = more.pop("embeddings", np.random.default_rng(0).normal(size=(1, 512)))
    Person(embeddings, Face(np.float32(bbox), kps, 1.0), size, **more).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("name", WRONG_PERSONS)
@pytest.mark.parametrize("beside", [[], [photo()]])
def test_a_person_of_absurd_numbers_is_refused(client, tmp_path, name, beside):
    data = person_file(tmp_path / "p.safetensors", **WRONG_PERSONS[name])
    files = [*beside, ("person_files", ("p", data))]
    answer = client.post("/v1/pictures", data={"prompt": "a", "num_inference_steps": "2"}, files=files)
    assert answer.status_code == 422, answer.text
    assert "/" not in error(answer)


@pytest.mark.parametrize("given", [{}, {"bbox": (0,) * 4}, {"kps": array(5, 2, of=0)}, {"kps": array(5, 2, of=-9e4)}])
def test_a_person_whose_face_is_a_point_or_beside_the_picture_is_drawn(client, tmp_path, given):
    data = person_file(tmp_path / "p.safetensors", **given)
    for beside in ([], [photo()]):
        files = [*beside, ("person_files", ("p", data))]
        answer = client.post("/v1/pictures", data={"prompt": "a", "num_inference_steps": "2"}, files=files)
        assert answer.status_code == 200, answer.text


def test_a_person_far_beside_a_picture_has_no_place_in_a_larger_one(client, tmp_path):
    files = [("person_files", ("p", person_file(tmp_path / "p.safetensors", kps=array(5, 2, of=9e4))))]
    answer = client.post("/v1/pictures", data={"prompt": "a", "width": "64", "height": "4096"}, files=files)
    assert (answer.status_code, "no place in 64 x 4096 pixels" in error(answer)) == (422, True), answer.text


@pytest.mark.parametrize("more", [*(f"charset={x}" for x in ("utf-7", "punycode", "zip", "hex", '"idna"')), "x=y"])
def test_forms_of_other_codecs_are_refused(client, more):
    body = b'--y\r\nContent-Disposition: form-data; name="photos"\r\n\r\n+AGE-\r\n--y--\r\n'
    for kind in ("multipart/form-data; boundary=y", "application/json"):
        answer = client.post("/v1/faces", content=body, headers={"Content-Type": f"{kind}; {more}"})
        assert (answer.status_code, "in UTF-8" in error(answer)) == (415, True)
    long = client.post("/v1/faces", content=body, headers={"Content-Type": f"multipart/form-data; boundary={'y' * 71}"})
    assert long.status_code == 415
    for kind in ("Multipart/Form-Data;boundary=y;charset=UTF-8", 'multipart/form-data; charset="utf8"; boundary="y"'):
        answer = client.post("/v1/faces", content=body, headers={"Content-Type": kind})
        assert (answer.status_code, "not base64" in error(answer)) == (422, True)
    document = client.post("/v1/faces", content=b"{}", headers={"Content-Type": "application/json; charset=utf-8"})
    assert document.status_code == 422


@pytest.mark.parametrize("part", [b"; boundary=a   ", b'; boundary="', b";", b' ;"\\', b"; a=b"])
def test_a_long_content_type_takes_no_time(client, part):
    """A regular expression that tries every way to read a header would take hours, and the service with it."""
    kind = b"multipart/form-data" + part * (20_000 // len(part)) + b"; x"
    start = time.monotonic()
    answer = client.post("/v1/faces", content=b"{}", headers={b"Content-Type": kind})
    assert answer.status_code == 415
    assert time.monotonic() - start < 10


def test_the_queue_is_bounded_and_says_when_to_come_again(client):
    def post(_: int) -> httpx.Response:
        some = {**LONG, "num_inference_steps": "10"}
        return httpx.post(f"{client.base_url}/v1/pictures", files=[photo()], data=some, timeout=300)

    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(post, range(8))]
    codes = [answer.status_code for answer in answers]
    assert codes.count(200) >= 3, "one is drawn, and two wait"
    assert codes.count(429) >= 1
    assert set(codes) == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert "ask again in about" in error(answer)


def raw(client, *parts: bytes, wait: float = 0.0) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", client.port), timeout=10)
    for part in parts:
        connection.sendall(part)
        time.sleep(wait)
    return connection


def head(length: int, kind: str = "application/json", accept: str = "*/*") -> bytes:
    return (
        f"POST /v1/pictures HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nAccept: {accept}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def test_a_client_that_dribbles_is_cut_off(client):
    begun = time.monotonic()
    with raw(client, b"GET /healthz HTTP/1.1\r\n") as slow_head, raw(client, head(1000), b"{") as slow_body:
        while True:  # a byte now and then does not prolong it
            time.sleep(0.2)
            try:
                slow_head.sendall(b"x")
            except OSError:
                break
            assert time.monotonic() - begun < 8
        assert slow_body.recv(1000).startswith(b"HTTP/1.1 408 ")
    with raw(client) as silent:
        assert silent.recv(10) == b""


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
def test_a_client_that_leaves_ends_its_picture(client, accept):
    body = json.dumps({**LONG, "photos": [GOOD]}).encode()
    with raw(client, head(len(body), accept=accept), body) as connection:
        eventually(lambda: client.engine.picture_queue._running)
        [job] = client.engine.picture_queue._running
        connection.shutdown(socket.SHUT_RDWR)
    eventually(lambda: job.future.cancelled())
    eventually(lambda: not client.engine.picture_queue._running, 3)  # 60 steps take longer


def test_a_client_that_leaves_the_queue_makes_room(client):
    body = json.dumps({**LONG, "photos": [GOOD]}).encode()
    connections = [raw(client, head(len(body)), body, wait=0.1) for _ in range(3)]
    eventually(lambda: client.engine.picture_queue.waiting == 2)
    for connection in connections:
        connection.close()
    eventually(lambda: client.engine.picture_queue.waiting == 0, 5)


def test_a_picture_that_takes_too_long_is_given_up(tmp_path):
    files = [("person_files", ("p", person_file(tmp_path / "p.safetensors")))]  # no search, which may take as long
    with serving(seconds=0.4, batch=1) as client:
        answer = client.post("/v1/pictures", files=files, data=LONG)
        assert (answer.status_code, error(answer)) == (504, "not done in 0.4 s: ask for fewer steps, or later")
        told = client.post("/v1/pictures", files=files, data=LONG, headers={"Accept": "text/event-stream"}).text
        fact = {"error": "not done in 0.4 s: ask for fewer steps, or later", "status": 504}
        assert told.endswith(f"event: error\ndata: {json.dumps(fact)}\n\n")
        eventually(lambda: not client.engine.picture_queue._running, 5)


def test_a_reader_that_takes_nothing_is_cut_off():
    """An answer of 100 MB does not fit into the buffers of a socket."""
    seen = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": bytes(MB), "more_body": True})

    guard = Guard(app, Limits(body_seconds=0.5), "", lambda *answer: seen.append(answer))
    run = serve_server.server(guard, "127.0.0.1", 0)
    thread = threading.Thread(target=run.run)
    thread.start()
    eventually(lambda: run.started)
    with socket.create_connection(run.servers[0].sockets[0].getsockname()) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: seen, 10)
    run.should_exit = True
    thread.join(10)
    assert 0.4 < seen[0][2] < 5


def test_a_key_is_asked_for():
    with serving(key=KEY) as client:
        assert client.post("/v1/faces", files=[photo()]).status_code == 200
        for given in ("", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xff"):
            headers = {"Authorization": given.encode("latin-1")}
            for path in ("/v1/persons", "/metrics", "/v1/../v1/persons", "//v1/persons", "/nothing"):
                answer = httpx.get(f"http://127.0.0.1:{client.port}{path}", headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
        assert client.get("/v1/persons", headers={"Authorization": f"bearer {KEY}"}).status_code == 200
        for path in ("/", "/page.js", "/page.css", "/healthz", "/readyz", "/openapi.json"):
            assert httpx.get(f"http://127.0.0.1:{client.port}{path}").status_code == 200
        assert client.get("/v1/persons", headers={"Host": "service.example"}).status_code == 200


def test_pages_of_other_hosts_are_refused(client):
    for headers, status in (
        ({"Host": "evil.example"}, 421),  # a name that its owner has pointed at this machine
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Host": "[::1]:9"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": f"http://127.0.0.1:{client.port}"}, 200),
    ):
        answer = client.get("/v1/persons", headers=headers)
        assert answer.status_code == status, headers
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert client.options("/v1/faces", headers={"Origin": "http://evil.example"}).status_code == 403


def test_it_does_not_listen_beyond_this_machine_without_a_key(monkeypatch, capsys):
    monkeypatch.delenv("FAST_INSTANTID_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org", ""):
        assert main(["serve", "--base", "miniature", "--host", host]) == 1
        assert "there is no key: set $FAST_INSTANTID_KEY" in capsys.readouterr()[1]
    assert main(["serve", "--base", "miniature", "--port", "70000"]) == 1


def test_jobs_of_one_kind_run_together_and_a_failure_is_of_its_job_alone():
    seen, free = [], threading.Event()

    def run(jobs):
        free.wait(10)
        seen.append([job.work for job in jobs])
        if any(job.work == "bad" for job in jobs):
            raise ValueError("bad")
        return [job.work.upper() for job in jobs]

    queue = BatchQueue(run, 6, 3.0)
    jobs = [queue.put(Job(*given)) for given in (("a", 1), ("b", 2), ("c", 1), ("bad", 2), ("d", 1, 9.0))]
    gone = queue.put(Job("gone", 2))
    with pytest.raises(Busy, match="6 requests are waiting"):
        queue.put(Job("z"))
    gone.future.cancel()
    assert queue.waiting == 5
    queue.start()
    free.set()
    for job in jobs:
        assert job.future.exception(10) is None if job.work != "bad" else job.future.exception(10).args == ("bad",)
    assert seen == [["a", "c"], ["b", "bad"], ["b"], ["bad"], ["d"]]
    queue.stop()
