"""Requests that are made to cost much, and files that are made to break what reads them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import socket
import struct
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from fast_instantid import Person
from fast_instantid.people.person import _checksum
from fast_instantid.scale.serve import server as serve_server
from fast_instantid.scale.serve.limits import Guard, Limits
from fast_instantid.scale.serve.person_store import PersonStore

from .adversity import full_disk, needs_posix
from .serving import PORTRAITS, PROMPT, eventually, photo, serving

FEW = {"prompt": PROMPT, "num_inference_steps": "2"}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with serving(persons=tmp_path_factory.mktemp("service") / "persons", photos=3) as client:
        yield client


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"photos": [1] * 200_000}, "photos: 200000 of them"),
        ({"persons": ["?"] * 200_000}, "persons: 200000 of them"),
        ({str(number): 1 for number in range(100_000)}, "100001 fields"),
    ],
    ids=["photos", "persons", "fields"],
)
def test_no_message_is_made_for_each_of_many_wrong_items(client, document, said):
    """A megabyte of them took nine seconds and a gigabyte."""
    answer = client.post("/v1/pictures", json={"prompt": "a", **document})
    assert (answer.status_code, answer.json()["error"].count(";")) == (422, 0)
    assert said in answer.json()["error"]


def test_no_error_repeats_a_long_name(client):
    """A field of 5 MB came back in 30 MB."""
    answer = client.post("/v1/pictures", json={"prompt": "a", "\x01" * 1_000_000: 1})
    assert (answer.status_code, "no such field" in answer.text) == (422, True)
    assert len(answer.content) < 2000


def test_a_client_that_takes_no_answer_is_cut_off(monkeypatch):
    monkeypatch.setattr(serve_server._Protocol, "taking_seconds", 1.0)
    with serving() as client, socket.socket() as connection:
        before = set(client.server.server_state.connections)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", client.port))
        connection.setblocking(False)
        connection.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
        eventually(lambda: client.server.server_state.connections - before, 10)
        [ours] = client.server.server_state.connections - before
        eventually(lambda: ours not in client.server.server_state.connections, 30)


def test_a_request_of_small_chunks_leaves_room_for_others(client, monkeypatch):
    """The loop is free after each of these pieces; 256 KB of chunks of one byte took two seconds."""
    sizes = []
    received = serve_server._Protocol.data_received
    monkeypatch.setattr(
        serve_server._Protocol, "data_received", lambda self, data: (sizes.append(len(data)), received(self, data))
    )
    answer = client.post(
        "/v1/faces", content=(b" " for _ in range(50_000)), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert sum(sizes) > 50_000 * 6
    assert max(sizes) <= 1 << 14


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def segment(marker: int, data: bytes = b"") -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.open(PORTRAITS[0]).convert("RGB").save(buffer, kind, **options)
    return buffer.getvalue()


def png_with(chunks: bytes) -> bytes:
    file, end = encoded("PNG"), 8 + 12 + 13  # behind IHDR
    return file[:end] + chunks + file[end:]


def jpeg_with(segments: bytes) -> bytes:
    return encoded("JPEG")[:2] + segments + encoded("JPEG")[2:]


def scan_again(times: int) -> bytes:
    file = encoded("JPEG", progressive=True)
    last = file.rindex(b"\xff\xda")
    return file[:last] + file[last:-2] * times + b"\xff\xd9"


PROFILE = zlib.compress(bytes(1 << 19))
SLOW = {
    "a JPEG whose Exif is joined anew each time": lambda: jpeg_with(segment(0xE1, b"Exif\0\0y") * 2000),
    "with an end among them": lambda: jpeg_with((segment(0xE1, b"Exif\0\0y") * 20 + b"\xff\xd9") * 100),
    "with junk among them": lambda: jpeg_with((segment(0xE1, b"Exif\0\0y") + b"junk") * 2000),
    "a JPEG of fill bytes": lambda: jpeg_with(b"\xff" * 200_000),
    "a JPEG of junk": lambda: jpeg_with(b"\xff\0" * 100_000),
    "nothing but junk": lambda: b"\xff\xd8" + b"\xff" * 200_000,
    "a JPEG of many scans": lambda: scan_again(200),
    "a PNG of many profiles": lambda: png_with(chunk(b"iCCP", b"a\0\0" + PROFILE) * 20),
    "a PNG of empty chunks": lambda: png_with(chunk(b"teSt") * 20_000),
    "behind the pixels": lambda: encoded("PNG")[:-12] + chunk(b"teSt") * 20_000 + chunk(b"IEND"),
    "a PNG of empty pixels": lambda: png_with(chunk(b"IDAT") * 20_000),
}


@pytest.mark.parametrize("name", SLOW)
def test_photographs_that_pillow_would_need_long_for_are_refused(client, name):
    answer = client.post("/v1/faces", files=[("photos", SLOW[name]())])
    assert (answer.status_code, answer.json()["error"]) == (
        422,
        "photos.0: a file of too many parts for a photograph: save it anew",
    )


ANY = np.random.default_rng(0).bytes(3 << 20)  # with each pair of bytes in it
USUAL = {
    "progressive": lambda: encoded("JPEG", progressive=True),
    "with a profile of 60 parts": lambda: encoded("JPEG", icc_profile=ANY),
    "with depth in XMP": lambda: jpeg_with(segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + ANY[:60_000]) * 300),
    "with a video": lambda: encoded("JPEG", progressive=True) + ANY,
    "with fill bytes": lambda: jpeg_with(b"\xff" * 50 + segment(0xE1, b"Exif\0\0" + ANY[:9])),
    "a PNG with a profile": lambda: encoded("PNG", icc_profile=ANY[:1000]),
    "a PNG with bytes behind its end": lambda: encoded("PNG") + bytes(1 << 20),
    "a PNG of small chunks": lambda: png_with(chunk(b"tEXt", b"Comment\0text") * 200),
    "a WebP": lambda: encoded("WEBP", icc_profile=ANY[:1000]),
}


@pytest.mark.parametrize("name", USUAL)
def test_photographs_of_cameras_and_editors_are_read(client, name):
    answer = client.post("/v1/faces", files=[("photos", USUAL[name]())])
    assert (answer.status_code, len(answer.json()["photos"][0]["faces"])) == (200, 1), answer.text


def person_file(text: str | None = None, **about) -> bytes:
    """The file of a person with a right checksum, whatever it says."""
    points = torch.tensor([[44.0, 50], [84, 50], [64, 72], [48, 94], [80, 94]])
    tensors = {"embeddings": torch.randn(1, 512), "weights": torch.ones(1), "keypoints": points}
    tensors["box"] = torch.tensor([24.0, 8, 104, 120])
    usual = {"name": "p", "notes": "", "recognizer": "", "photo_size": [128, 128], "score": 0.9}
    text = json.dumps(usual | about) if text is None else text
    metadata = {"format": "fast-instantid person", "version": "1", "person": text}
    return save(tensors, metadata | {"checksum": _checksum(tensors, text)})


CRAFTED = {
    "an infinite size": lambda: person_file(photo_size=[math.inf, 1]),
    "a huge score": lambda: person_file(score=10**400),
    "nested lists": lambda: person_file("[" * 100_000),
    "a nested field": lambda: person_file('{"photo_size": ' + "[" * 5000 + "]" * 5000 + "}"),
    "a long side": lambda: person_file(photo_size=[1, 100_000]),
    "a name that is no text": lambda: person_file(name="\ud800", recognizer="another"),
    "a long name": lambda: person_file(name="x" * 3_000_000, recognizer="another"),
    "a long size": lambda: person_file(photo_size=["x" * 3_000_000, 1]),
    "many tensors": lambda: save({str(number): torch.zeros(1) for number in range(50_000)}),
    "a side that is too long by one": lambda: person_file(photo_size=[1, 32767]),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_files_that_are_made_to_look_like_persons_are_refused(client, name):
    answer = client.post("/v1/pictures", data=FEW, files={"person_files": ("p", CRAFTED[name]())})
    assert answer.status_code == 422, answer.text
    assert "person_files.0" in answer.text
    assert len(answer.content) < 2000


def test_crafted_files_of_persons_are_damaged_to_the_library_too(tmp_path):
    from fast_instantid.errors import ModelFileError

    for name in ("an infinite size", "a huge score", "nested lists", "a nested field"):
        (tmp_path / "p.safetensors").write_bytes(CRAFTED[name]())
        with pytest.raises(ModelFileError, match="a damaged person"):
            Person.load(tmp_path / "p.safetensors")
    assert Person.load(written(tmp_path, person_file())).name == "p"


def written(folder: Path, data: bytes) -> Path:
    (folder / "person.safetensors").write_bytes(data)
    return folder / "person.safetensors"


def test_no_path_forges_a_line_of_the_log(caplog):
    async def broken(scope, receive, send):
        raise RuntimeError

    async def ask() -> None:
        guard = Guard(broken, Limits(), "", lambda *_: None)
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/x\nCRITICAL:root:forged",
            "headers": [(b"host", b"localhost")],
        }

        async def receive():
            return {"type": "http.request"}

        async def send(message):
            pass

        await guard(scope, receive, send)

    asyncio.run(ask())
    [record] = caplog.records
    assert record.getMessage() == r"GET '/x\nCRITICAL:root:forged' failed"


def test_a_client_that_leaves_while_it_sends_is_no_fault_of_the_service(client, caplog):
    def counted(status: int) -> float:
        lines = client.get("/metrics").text.splitlines()
        name = f'fast_instantid_requests_total{{route="/v1/faces",status="{status}"}}'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    before = counted(499), counted(500)
    head = (
        b"POST /v1/faces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{}"
    )
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        connection.sendall(head)
    eventually(lambda: counted(499) == before[0] + 1, 10)
    assert counted(500) == before[1]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@needs_posix
def test_a_full_disk_is_no_missing_person(tmp_path):
    store, person = PersonStore(tmp_path / "persons"), Person.load(written(tmp_path, person_file()))
    with full_disk(100), pytest.raises(OSError, match="too large"):
        store.keep(person)
    assert [*(tmp_path / "persons").iterdir()] == []
    store.keep(person)
    assert store.names() == ["p"]


@pytest.mark.parametrize("host", ["LOCALHOST", "localhost.", "LocalHost:8189", "127.0.0.1:80", "[::1]", "[::1]:80"])
def test_this_machine_has_many_names(client, host):
    assert client.get("/readyz", headers={"Host": host}).status_code == 200


def test_a_person_of_many_photographs_is_drawn_as_usual(client):
    answer = client.post("/v1/pictures", data=FEW, files=[photo(0), photo(0), photo(0)])
    assert (answer.status_code, httpx.Headers(answer.headers)["x-photos-alike"]) == (200, "1.0000")
