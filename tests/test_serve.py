"""The service: faces, persons and pictures over HTTP, with the miniature on loopback."""

from __future__ import annotations

import base64
import errno
import gc
import io
import json
import logging
import math
import os
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from fast_instantid import Person
from fast_instantid.cache import shared_cache
from fast_instantid.errors import BackendError
from fast_instantid.images import Photo
from fast_instantid.miniature import GUIDANCE
from fast_instantid.people import find_person, likeness_in, likeness_word
from fast_instantid.scale.serve.batch_queue import Job
from fast_instantid.scale.serve.documents import PictureRequest, kind_of_answer
from fast_instantid.scale.serve.engine import Drawn, Picture
from fast_instantid.scale.serve.person_store import PersonStore

from .serving import PORTRAITS, PROMPT, eventually, instantid, photo, serving

FEW = {"prompt": PROMPT, "num_inference_steps": "2"}
JSON = {"Accept": "application/json"}
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture(scope="module")
def persons(tmp_path_factory):
    return tmp_path_factory.mktemp("service") / "persons"


@pytest.fixture(scope="module")
def client(persons):
    with serving(persons=persons) as client:
        yield client


def in_json(number: int) -> list[str]:
    return [base64.b64encode(PORTRAITS[number].read_bytes()).decode()]


def events_of(text: str) -> list[tuple[str, dict]]:
    blocks = [block.split("\n") for block in text.split("\n\n") if block.startswith("event")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_faces_are_those_of_the_library_in_both_forms(client):
    form = client.post("/v1/faces", files=[photo(0), photo(1)], data={"embeddings": "true"})
    document = client.post("/v1/faces", json={"photos": in_json(0) + in_json(1), "embeddings": True})
    assert form.json() == document.json()
    for number, told in enumerate(form.json()["photos"]):
        person = find_person(instantid().faces, PORTRAITS[number])
        [face] = told["faces"]
        assert (told["width"], told["height"]) == (128, 128)
        np.testing.assert_array_equal(np.float32(face["embedding"]), person.embedding)
        np.testing.assert_array_equal(np.float32(face["keypoints"]), person.keypoints)
    [face] = client.post("/v1/faces", files=[photo()]).json()["photos"][0]["faces"]
    assert face["embedding"] is None
    assert 0.5 < face["score"] <= 1


def test_a_picture_is_that_of_the_library(client):
    answer = client.post("/v1/pictures", files=[photo()], data={**FEW, "seed": "5", "scale": "0.7"})
    assert answer.headers["content-type"] == "image/png"
    person = find_person(instantid().faces, PORTRAITS[0])
    drawn = instantid()(PROMPT, person, seed=5, scale=0.7, num_inference_steps=2, width=128, height=128).images[0]
    assert np.array_equal(Image.open(io.BytesIO(answer.content)), drawn)
    cosine = float(likeness_in(instantid().faces, drawn, [person])[0, 0])
    assert answer.headers["x-likeness"] == f"{cosine:.4f}"
    document = {"prompt": PROMPT, "num_inference_steps": 2, "photos": in_json(0), "seed": 5, "scale": 0.7}
    told = client.post("/v1/pictures", json=document, headers=JSON).json()
    assert base64.b64decode(told["png"]) == answer.content
    assert (told["width"], told["height"], told["seed"]) == (128, 128, 5)
    assert told["likeness"][0]["cosine"] == (None if math.isnan(cosine) else round(cosine, 4))


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "image/png"),
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("application/json", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("image/png, application/json;q=0.1", "image/png"),
        ("application/json;q=0.1, Image/PNG", "image/png"),
        ("image/png;q=0, */*;q=0.5", "application/json"),
        ("image/png, text/event-stream;q=0", "image/png"),
        ("text/event-stream;q=0.9, application/json;q=0.8", "text/event-stream"),
        ("text/html, application/xhtml+xml, application/xml;q=0.9, */*;q=0.8", "image/png"),
        ("image/jpeg", ""),
        ("application/xml, text/html", ""),
        ("image/png;q=0", ""),
        ("nonsense", ""),
    ],
)
def test_the_answer_has_the_kind_that_a_client_prefers(accept, kind):
    assert kind_of_answer(accept) == kind


def test_a_kind_that_no_answer_has_is_refused(client):
    answer = client.post("/v1/pictures", files=[photo()], data=FEW, headers={"Accept": "image/jpeg"})
    assert (answer.status_code, "image/png, application/json" in answer.json()["error"]) == (406, True)
    twice = [("Accept", "image/jpeg"), ("Accept", "application/json")]
    answer = client.post("/v1/pictures", files=[photo()], data=FEW, headers=twice)
    assert answer.headers["content-type"] == "application/json"


def test_a_wide_picture_without_likeness(client):
    more = {"width": "192", "height": "128", "likeness": "false", "num_inference_steps": "2"}
    answer = client.post("/v1/pictures", files=[photo()], data={**FEW, **more}, headers=JSON).json()
    assert (answer["width"], answer["likeness"]) == (192, None)


ANNA = {"name": "anna", "photographs": 2, "alike": {"cosine": 1.0, "word": "strong"}, "outliers": []}


def test_photographs_of_different_people_are_told_with_the_picture(client):
    def post(numbers: tuple[int, ...], headers: dict[str, str]) -> httpx.Response:
        return client.post("/v1/pictures", files=[photo(n) for n in numbers], data=FEW, headers=headers)

    assert post((0,), JSON).json()["photos"] == {"photographs": 1, "alike": None, "outliers": []}
    people = [find_person(instantid().faces, PORTRAITS[number]) for number in (0, 1)]
    two = post((0, 1), JSON).json()["photos"]
    assert two["alike"]["cosine"] == pytest.approx(people[0].likeness(people[1]), abs=1e-4)
    assert (two["alike"]["word"], two["outliers"]) == (likeness_word(two["alike"]["cosine"]), [])
    assert two["alike"]["word"] != "strong"
    assert post((0, 0, 1), JSON).json()["photos"]["outliers"] == [2]
    assert events_of(post((0, 1), EVENTS).text)[-1][1]["photos"] == two
    assert post((0, 1), {}).headers["x-photos-alike"] == f"{two['alike']['cosine']:.4f}"
    assert "x-photos-alike" not in post((0,), {}).headers


def test_a_person_is_sent_or_kept_and_drawn(client, persons):
    sent = client.post("/v1/persons", files=[photo(0), photo(0)])
    assert sent.status_code == 200
    assert client.get("/v1/persons").json() == {"persons": []}
    kept = client.post("/v1/persons", files=[photo(0), photo(0)], data={"name": "anna"})
    assert (kept.status_code, kept.json()) == (201, ANNA)
    assert client.post("/v1/persons", files=[photo(1)], data={"name": "anna"}).status_code == 409
    assert client.get("/v1/persons").json() == {"persons": ["anna"]}
    assert stat.S_IMODE((persons / "anna.safetensors").stat().st_mode) == 0o600
    file = client.get("/v1/persons/anna").content
    person = Person.load(persons / "anna.safetensors")
    assert person.picture is None, "what is kept shows no face"
    assert b"JFIF" not in file
    np.testing.assert_array_equal(person.embeddings[1], find_person(instantid().faces, PORTRAITS[0]).embedding)
    by_name = client.post("/v1/pictures", json={**FEW, "persons": "anna"})
    for data in (sent.content, file):
        by_file = client.post("/v1/pictures", data=FEW, files={"person_files": ("anna.safetensors", data)})
        assert by_file.content == by_name.content
    both = client.post("/v1/pictures", data={**FEW, "persons": "anna"}, files=[photo(4)], headers=JSON).json()
    assert len(both["likeness"]) == 2
    assert client.delete("/v1/persons/anna").status_code == 204
    for answer in (client.delete("/v1/persons/anna"), client.get("/v1/persons/anna")):
        assert (answer.status_code, answer.json()) == (404, {"error": "no person 'anna' here"})
    assert client.post("/v1/pictures", json={**FEW, "persons": ["anna"]}).status_code == 404


def test_a_folder_of_persons_that_is_gone_is_a_failure_and_no_person_that_is_missing(tmp_path):
    with serving(persons=tmp_path / "persons") as client:
        (tmp_path / "persons").rmdir()
        for answer in (
            client.post("/v1/persons", files=[photo()], data={"name": "anna"}),
            client.get("/v1/persons/anna"),
        ):
            assert answer.status_code == 500
            assert "its log says why" in answer.json()["error"]
        (tmp_path / "persons").mkdir()
        assert client.post("/v1/persons", files=[photo()], data={"name": "anna"}).status_code == 201


def test_a_service_without_a_folder_keeps_no_persons():
    with serving() as client:
        answer = client.post("/v1/persons", files=[photo()], data={"name": "anna"})
        assert answer.status_code == 404
        assert "keeps no persons" in answer.json()["error"]
        assert client.get("/v1/persons").json() == {"persons": []}


def test_events_tell_steps_previews_and_the_picture(client):
    steps = {"prompt": PROMPT, "num_inference_steps": "16"}
    events = events_of(client.post("/v1/pictures", files=[photo()], data=steps, headers=EVENTS).text)
    assert events[0][0] == "queued"
    assert [fact["step"] for name, fact in events if name == "step"] == [*range(1, 17)]
    name, picture = events[-1]
    assert name == "picture"
    drawn = Image.open(io.BytesIO(base64.b64decode(picture["png"])))
    previews = [fact["jpeg"] for name, fact in events if name == "preview"]
    assert 4 <= len(previews) <= 8
    like = []
    for preview in previews:
        small = Image.open(io.BytesIO(base64.b64decode(preview))).convert("RGB")
        whole = drawn.resize(small.size, Image.Resampling.BOX)
        like.append(np.corrcoef(np.float64(small).ravel(), np.float64(whole).ravel())[0, 1])
    assert like[-1] > 0.75, f"the last preview shows the picture: {like}"
    assert like[0] > 0.5, f"and the first one its large shapes, in place of noise: {like}"


def test_people_who_ask_at_once_get_their_own_faces_from_one_pipeline(client):
    def drawn(number: int) -> dict:
        more = {"num_inference_steps": "10", "seed": str(number)}
        return client.post("/v1/pictures", files=[photo(number)], data={**FEW, **more}, headers=JSON).json()

    with ThreadPoolExecutor(3) as pool:
        answers = [*pool.map(drawn, range(3))]
    people = [find_person(instantid().faces, PORTRAITS[number]) for number in range(3)]
    for number, answer in enumerate(answers):
        picture = Image.open(io.BytesIO(base64.b64decode(answer["png"])))
        alone = Image.open(io.BytesIO(base64.b64decode(drawn(number)["png"])))
        assert np.abs(np.int16(picture) - np.int16(alone)).max() <= 1, "neighbours change the last bits only"
        alike = [float(likeness_in(instantid().faces, picture, [person])[0, 0]) for person in people]
        assert alike.index(max(alike)) == number, alike
        assert alike[number] > 0.5
        assert answer["likeness"][0]["cosine"] == pytest.approx(alike[number], abs=1e-4)
    sizes = {sample.labels["le"]: sample.value for sample in samples(client, "fast_instantid_batch_size_bucket")}
    assert sizes["+Inf"] > sizes["1.0"], "some pictures were drawn together"


def samples(client, name: str) -> list:
    from prometheus_client.parser import text_string_to_metric_families

    text = client.get("/metrics").text
    found = [one for family in text_string_to_metric_families(text) for one in family.samples if one.name == name]
    return [one for one in found if one.labels.get("queue") != "faces"]


def test_metrics_count_requests_pictures_and_errors(client):
    def counted(status: str) -> float:
        rows = samples(client, "fast_instantid_requests_total")
        return sum(one.value for one in rows if one.labels == {"route": "/v1/pictures", "status": status})

    before, pictures = [counted(status) for status in ("200", "422")], samples(client, "fast_instantid_pictures_total")
    client.post("/v1/pictures", files=[photo()], data=FEW)
    client.post("/v1/pictures", json=FEW)
    eventually(lambda: [counted(status) for status in ("200", "422")] == [before[0] + 1, before[1] + 1], 10)
    assert samples(client, "fast_instantid_pictures_total")[0].value == pictures[0].value + 1
    assert samples(client, "fast_instantid_waiting")[0].value == 0
    client.get("/no/such/path")
    routes = {"none", "/v1/pictures"}  # an answer is counted when it has been sent
    eventually(lambda: {one.labels["route"] for one in samples(client, "fast_instantid_requests_total")} >= routes)


def test_health_and_the_document(client):
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    document = client.get("/openapi.json").json()
    assert {"/v1/faces", "/v1/persons", "/v1/pictures", "/healthz", "/readyz", "/metrics"} <= document["paths"].keys()
    body = document["paths"]["/v1/pictures"]["post"]["requestBody"]["content"]
    assert body["multipart/form-data"]["schema"]["properties"]["photos"]["items"]["format"] == "binary"
    assert body["application/json"]["schema"]["properties"]["photos"]["items"]["contentEncoding"] == "base64"
    assert "components" in document
    assert "securitySchemes" not in document["components"]
    assert "404" not in document["paths"]["/healthz"]["get"]["responses"]
    assert "409" not in document["paths"]["/v1/faces"]["post"]["responses"]
    form = body["multipart/form-data"]["schema"]["properties"]
    assert "null" not in json.dumps(form), "forms hold none"
    assert (form["width"]["type"], form["width"]["maximum"]) == ("integer", 4096)
    assert {"type": "null"} in body["application/json"]["schema"]["properties"]["width"]["anyOf"]
    drawn = document["paths"]["/v1/pictures"]["post"]["responses"]["200"]
    assert drawn["headers"].keys() == {"X-Likeness", "X-Photos-Alike"}
    assert "step {step, steps}" in drawn["content"]["text/event-stream"]["schema"]["description"]
    assert document["paths"]["/v1/pictures"]["post"]["operationId"] == "draw"
    for path, methods in {"/v1/persons": {"GET", "POST"}, "/v1/persons/anna": {"DELETE", "GET"}}.items():
        answer = client.put(path)
        assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, methods)
        assert "/openapi.json has all" in answer.json()["error"]
    assert "429" not in document["paths"]["/v1/persons/{name}"]["get"]["responses"]
    assert client.get("/redoc").status_code == 404


def test_the_document_says_the_limits_of_this_service():
    with serving(photos=120, people=3, steps=7, area=128 * 64) as client:
        document = client.get("/openapi.json").json()
        assert client.post("/v1/faces", json={"photos": in_json(0) * 110}).status_code == 200
    for kind in ("application/json", "multipart/form-data"):
        given = document["paths"]["/v1/pictures"]["post"]["requestBody"]["content"][kind]["schema"]["properties"]
        assert [given[name]["maxItems"] for name in ("photos", "persons", "person_files")] == [120, 3, 3]
        numbers = [given[name] for name in ("num_inference_steps", "width", "height")]
        assert [each.get("anyOf", [each])[0]["maximum"] for each in numbers] == [7, 128, 128]
        assert [each["default"] for each in numbers] == [7, 88, 88]
        assert (given["guidance_scale"]["default"], given["controlnet_conditioning_scale"]["default"]) == (
            GUIDANCE,
            0.8,
        )


def test_what_a_form_leaves_empty_counts_as_not_given(client):
    empty = dict.fromkeys(("negative_prompt", "persons", "seed", "width", "guidance_scale", "likeness"), "")
    files = [("photos", PORTRAITS[0].read_bytes()), ("person_files", ("", b""))]
    asked = {"prompt": PROMPT, "num_inference_steps": "2"}
    drawn = [client.post("/v1/pictures", data=asked | more, files=files) for more in ({}, empty)]
    assert [each.status_code for each in drawn] == [200, 200]
    assert drawn[0].content == drawn[1].content
    answer = client.post("/v1/faces", files=[("photos", ("", b"", "image/png"))])
    assert (answer.status_code, answer.json()["error"][:8]) == (422, "photos.0")
    answer = client.post("/v1/pictures", data=asked | {"colour": ""}, files=files)
    assert (answer.status_code, answer.json()["error"][:7]) == (422, "colour:")


def test_the_document_says_what_needs_the_key():
    with serving(key="0123456789abcdef") as client:
        document = client.get("/openapi.json", headers={"Authorization": ""}).json()
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    needs = {path for path, routes in document["paths"].items() for one in routes.values() if "security" in one}
    assert document["paths"].keys() - needs == {"/healthz", "/readyz"}


def test_pillow_bounds_no_picture_while_the_service_does(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with serving(pixels=128 * 128) as client:
        assert client.post("/v1/faces", files=[photo()]).status_code == 200
        assert client.post("/v1/faces", files=[photo(), photo()]).status_code == 413
    assert Image.MAX_IMAGE_PIXELS == 1000


OF_A_REQUEST = (Person, Photo, Image.Image, Job, Picture, Drawn, PictureRequest, Request, UploadFile)


def held() -> list[str]:
    """What is alive of requests, of any."""
    return sorted(type(one).__name__ for one in gc.get_objects() if isinstance(one, OF_A_REQUEST))


def test_nothing_of_a_request_is_kept(client, monkeypatch, tmp_path):
    """Neither in a cache, nor on a disk, nor as an object, also where the request fails."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written = []
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: written.append(path) or write(path, data))
    person = client.post("/v1/persons", files=[photo(2)]).content
    gc.collect()
    gc.disable()  # nothing waits for the collector
    try:
        before, alive = shared_cache().stats, held()
        client.post("/v1/pictures", files=[photo(2), ("person_files", ("x", person))], data=FEW)
        client.post("/v1/pictures", json={**FEW, "photos": in_json(2)}, headers=EVENTS)
        failed = client.post("/v1/pictures", files=[photo(2), ("person_files", ("x", b"no person"))], data=FEW)
        assert failed.status_code == 422
        assert str(tmp_path) not in failed.json()["error"]
        assert len(written) >= 2
        assert [*tmp_path.rglob("*")] == []
        client.post("/v1/pictures", files=[photo(3)], data={**FEW, "num_inference_steps": "9999"})
        client.post("/v1/faces", files=[photo(3), ("photos", PORTRAITS[3].read_bytes()[:2000])])
        with monkeypatch.context() as broken:
            broken.setattr(logging.getLogger("fast_instantid"), "disabled", True)  # pytest keeps what is logged
            broken.setattr(client.engine, "_likeness", lambda picture, image: 1 / 0)
            assert client.post("/v1/pictures", files=[photo(3)], data=FEW).status_code == 500
            assert "the service failed" in client.post("/v1/pictures", files=[photo()], data=FEW, headers=EVENTS).text
        eventually(lambda: held() == alive, 10)
    finally:
        gc.enable()
    after = shared_cache().stats
    assert (after.entries, after.misses) == (before.entries, before.misses)
    assert instantid().faces.networks.cache.stats.entries == 0


def test_no_upload_reaches_a_disk(client, monkeypatch):
    rolled = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda file: rolled.append(file))
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)).save(noise, "PNG")
    assert noise.tell() > 4 << 20
    answer = client.post("/v1/faces", files=[photo(), ("photos", noise.getvalue())])
    assert (answer.status_code, len(answer.json()["photos"])) == (200, 2)
    assert rolled == []


def test_one_of_many_who_take_a_name_gets_it(client, persons):
    def post(number: int) -> int:
        return client.post("/v1/persons", files=[photo(number)], data={"name": "carol"}).status_code

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(post, range(4))) == [201, 409, 409, 409]
    first, second = (find_person(instantid().faces, PORTRAITS[n], name="dave") for n in range(2))
    store = PersonStore(persons)
    store.check_free("dave")
    store.keep(first)  # of two requests that both saw that the name is free
    with pytest.raises(HTTPException, match="409"):
        store.keep(second)
    np.testing.assert_array_equal(store.person("dave").embedding, first.embedding)
    assert sorted(path.name for path in persons.iterdir()) == ["carol.safetensors", "dave.safetensors"]
    assert stat.S_IMODE((persons / "dave.safetensors").stat().st_mode) == 0o600
    unread = client.post("/v1/persons", files=[("photos", b"no picture")], data={"name": "carol"})
    assert unread.status_code == 409, "said before the photographs are searched"
    for name in ("carol", "dave"):
        assert client.delete(f"/v1/persons/{name}").status_code == 204


def test_a_folder_without_links_keeps_persons_too(client, persons, monkeypatch):
    def link(*_):
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    for status in (201, 409):
        assert client.post("/v1/persons", files=[photo()], data={"name": "fay"}).status_code == status
    assert [path.name for path in persons.iterdir()] == ["fay.safetensors"]
    assert Person.load(persons / "fay.safetensors").name == "fay"
    assert client.delete("/v1/persons/fay").status_code == 204


def test_a_pickle_is_no_person_of_a_client(client, tmp_path):
    torch.save({"embeddings": torch.zeros(1, 512)}, tmp_path / "person.pt")
    sent = {"person_files": (tmp_path / "person.pt").read_bytes()}
    answer = client.post("/v1/pictures", data=FEW, files=sent)
    assert (answer.status_code, answer.json()) == (
        422,
        {"error": "person_files.0: not a .safetensors file of a person"},
    )


def test_base64_may_have_line_breaks(client):
    lines = base64.encodebytes(PORTRAITS[0].read_bytes()).decode()
    assert lines.count("\n") > 10
    whole = client.post("/v1/faces", json={"photos": [in_json(0)[0]]})
    assert client.post("/v1/faces", json={"photos": [lines]}).json() == whole.json()


def test_head_is_answered_where_get_is(client):
    for path in ("/", "/healthz", "/readyz", "/metrics"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content, head.headers["content-type"]) == (200, b"", get.headers["content-type"])
    assert (client.head("/nothing").status_code, client.head("/v1/faces").status_code) == (404, 405)


def test_the_page_is_sent_whole_whatever_part_is_asked_for(client):
    """Starlette answers parts: in plain text where they are wrong, and before 0.49.1 after long sorting."""
    for path, kind in {"/": "html", "/page.js": "javascript", "/page.css": "css"}.items():
        for given in ("lines=0-1", "bytes=999999-", "bytes=0-,0-"):
            answer = client.get(path, headers={"Range": given})
            assert (answer.status_code, answer.headers["content-type"]) == (200, f"text/{kind}; charset=utf-8")


def test_a_person_who_is_deleted_meanwhile_is_not_there(client, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda path: True)  # when it was asked for
    monkeypatch.setattr(Path, "exists", lambda path: True)
    for answer in (
        client.get("/v1/persons/eve"),
        client.delete("/v1/persons/eve"),
        client.post("/v1/pictures", json={**FEW, "persons": "eve"}),
    ):
        assert (answer.status_code, answer.json()) == (404, {"error": "no person 'eve' here"})


def test_a_damaged_person_is_named_without_its_folder(client, persons):
    for name in ("bad.safetensors", "no name.safetensors", ".safetensors"):
        (persons / name).write_bytes(b"damaged")
    assert client.get("/v1/persons").json() == {"persons": ["bad"]}
    answer = client.post("/v1/pictures", json={**FEW, "persons": "bad"})
    assert (answer.status_code, answer.json()["error"].startswith("bad: ")) == (422, True)
    assert "/" not in answer.json()["error"]
    for path in persons.iterdir():
        path.unlink()


def test_errors_of_the_service_itself_name_no_files(client, monkeypatch):
    def fail(*_):
        raise ModelsGone(f"{Path.home()}/models/base: gone")

    class ModelsGone(BackendError):
        pass

    monkeypatch.setattr(client.engine, "_likeness", fail)
    for headers in (JSON, EVENTS):
        answer = client.post("/v1/pictures", files=[photo()], data=FEW, headers=headers)
        assert "the service failed at this request: its log says why" in answer.text
        assert "models" not in answer.text


def test_usual_steps_and_sizes_stay_within_the_limits():
    with serving(steps=4, area=100 * 100) as client:
        events = events_of(client.post("/v1/pictures", files=[photo()], data={"prompt": PROMPT}, headers=EVENTS).text)
        assert [fact["steps"] for name, fact in events if name == "step"] == [4] * 4
        assert (events[-1][1]["width"], events[-1][1]["height"]) == (96, 96)
        answer = client.post("/v1/pictures", files=[photo()], data={**FEW, "num_inference_steps": "5"})
        assert (answer.status_code, "4 steps are drawn here" in answer.text) == (422, True)
