"""The service's page in headless Chromium: photo in, prompt, picture out, likeness."""

from __future__ import annotations

import base64
import io
import re
import threading
from contextlib import contextmanager

import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from fast_instantid.scale.serve.batch_queue import Job

from .comfyui.server.frontend import find_chromium
from .serving import PORTRAITS, PROMPT, eventually, serving

CHROMIUM = find_chromium()
KEY = "a-secret-of-the-page"
DONE = re.compile(r"^Done\. Likeness to the person: 0\.\d\d \((strong|moderate)\)\. Seed: (\d+)\.$")
MINUTE = 60_000
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page was not opened")


def _blank() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (128, 128)).save(buffer, "PNG")
    return buffer.getvalue()


BLANK = _blank()


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with serving(key=KEY, persons=tmp_path_factory.mktemp("page") / "persons") as client:
        answer = client.post("/v1/persons", files=[("photos", PORTRAITS[1].read_bytes())], data={"name": "bob"})
        assert answer.status_code == 201
        yield client


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, client):
    """The page, with a photograph chosen. It throws nothing, and asks no other host."""
    page = browser.new_page()
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{client.base_url}/")
    page.set_input_files("input[name=photos]", PORTRAITS[0])
    page.fill("textarea[name=prompt]", PROMPT)
    page.fill("#key", KEY)
    page.dispatch_event("#key", "change")
    expect(page.locator("#draw")).to_be_enabled()
    page.wait_for_selector("option[value=bob]", state="attached")
    yield page
    page.close()
    assert problems == []
    assert [url for url in asked if not url.startswith((str(client.base_url), "data:"))] == []


@contextmanager
def held(engine):
    """A pipeline that draws nothing inside of the block. Jobs without work get no result."""
    go, run = threading.Event(), engine.picture_queue._run

    def wait(jobs):
        assert go.wait(60)
        return run(jobs) if jobs[0].work else [None for _ in jobs]

    engine.picture_queue._run = wait
    first = engine.picture_queue.put(Job(None))
    try:
        eventually(lambda: engine.picture_queue.waiting == 0)
        yield
    finally:
        go.set()
        first.future.result(60)
        engine.picture_queue._run = run


def status(page):
    return expect(page.locator("#status"))


def draw(page) -> bytes | None:
    """Click, and return the body that was sent; Chromium tells none with files."""
    with page.expect_request("**/v1/pictures") as asked:
        page.click("#draw")
    return asked.value.post_data_buffer


@needs_chromium
def test_a_photograph_becomes_a_picture_in_the_page(page):
    page.fill("#key", "")
    draw(page)
    status(page).to_have_text("The key is missing or wrong.")
    page.fill("#key", KEY)
    page.fill("input[name=seed]", "7")
    draw(page)
    page.wait_for_selector("#picture.preview", timeout=MINUTE)
    status(page).to_have_text(DONE, timeout=MINUTE)
    assert page.inner_text("#status").endswith("Seed: 7.")
    assert page.inner_text("#steps") == "20 / 20"
    assert page.locator("#progress").evaluate("bar => bar.value === bar.max && bar.max === 20")
    source = page.get_attribute("#picture", "src")
    drawn = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert (drawn.format, drawn.size) == ("PNG", (128, 128))
    expect(page.locator("#stop")).to_be_disabled()
    blank = {"name": "blank.png", "mimeType": "image/png", "buffer": BLANK}
    page.set_input_files("input[name=photos]", [blank])
    draw(page)
    status(page).to_have_text(re.compile(r"no face found in blank\.png"))
    page.set_input_files("input[name=photos]", PORTRAITS[:2])
    draw(page)
    status(page).to_have_text(re.compile("seem to show different people"), timeout=MINUTE)


@needs_chromium
def test_only_the_chosen_one_of_photograph_and_kept_person_is_shown_and_sent(page):
    photo, kept = page.locator("input[name=photos]"), page.locator("select[name=persons]")
    expect(photo).to_be_visible()
    expect(kept).to_be_hidden()
    page.get_by_label("A person kept here").check()
    expect(photo).to_be_hidden()
    page.get_by_label("Kept person").select_option("bob")
    body = draw(page)
    assert b'name="persons"' in body
    assert b'name="photos"' not in body, "a photograph was chosen before, and is not sent"
    status(page).to_have_text(DONE, timeout=MINUTE)  # with the likeness of one person
    page.get_by_label("Photographs of one person").check()
    draw(page)
    status(page).to_have_text("Drawing.")
    status(page).to_have_text(DONE, timeout=MINUTE)


@needs_chromium
def test_an_empty_seed_is_another_one_each_time(page, client):
    page.fill("input[name=seed]", "")
    page.get_by_label("A person kept here").check()
    with held(client.engine):
        seeds = [re.findall(rb'name="seed"\r\n\r\n(\d+)\r\n', draw(page)) for _ in range(2)]
    assert all(len(seed) == 1 for seed in seeds)
    assert seeds[0] != seeds[1]
    status(page).to_have_text(DONE, timeout=MINUTE)
    assert DONE.match(page.inner_text("#status"))[2] == seeds[1][0].decode()


@needs_chromium
def test_a_replaced_request_touches_neither_the_status_nor_the_button_of_the_next(page, client):
    page.evaluate("""() => {
        const place = document.getElementById("status");
        window.said = [];
        new MutationObserver(() => window.said.push(place.textContent)).observe(place, { childList: true });
    }""")
    with held(client.engine):
        for _ in range(2):
            draw(page)
            status(page).to_have_text("Waiting: this one is next.")
        assert page.evaluate("window.said") == ["Sending.", "Waiting: this one is next."] * 2
        expect(page.locator("#stop")).to_be_enabled()
        page.click("#stop")
        status(page).to_have_text("Stopped.")
        expect(page.locator("#stop")).to_be_disabled()


@needs_chromium
def test_the_queue_in_the_page_does_not_count_its_own_request(page, client):
    with held(client.engine):
        others = [client.engine.picture_queue.put(Job(None)) for _ in range(2)]
        draw(page)
        status(page).to_have_text("Waiting: 2 before this one.")
        page.click("#stop")
        for other in others:
            other.future.cancel()


@needs_chromium
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status": 200, "body": 'event: step\ndata: {"step": 1, "steps": 20}\n\n'}, "ended without a picture"),
        ({"status": 502, "body": "<h1>Bad gateway</h1>"}, "answers 502"),
    ],
    ids=["a stream that ends early", "an error that is no JSON"],
)
def test_the_page_says_what_a_proxy_did(page, answer, said):
    page.route("**/v1/pictures", lambda route: route.fulfill(**answer))
    draw(page)
    status(page).to_have_text(re.compile(said))
    assert page.get_attribute("#status", "class") == "error"
    expect(page.locator("#stop")).to_be_disabled()


@needs_chromium
def test_the_page_waits_for_the_warm_up(page, client):
    client.engine.is_ready = False
    try:
        page.reload()
        status(page).to_have_text("The service warms up: a moment.")
        expect(page.locator("#draw")).to_be_disabled()
        client.engine.failure = "no memory"
        status(page).to_have_text("the warm-up failed: the log says why")
        assert page.get_attribute("#status", "class") == "error"
    finally:
        client.engine.is_ready, client.engine.failure = True, ""
    status(page).to_have_text("Ready.")
    expect(page.locator("#draw")).to_be_enabled()
    client.engine.is_ready = False  # as after a new start of the service
    try:
        page.set_input_files("input[name=photos]", PORTRAITS[0])
        page.fill("#key", KEY)
        draw(page)
        expect(page.locator("#draw")).to_be_disabled()
    finally:
        client.engine.is_ready = True
    expect(page.locator("#draw")).to_be_enabled()


@needs_chromium
def test_every_field_has_a_label_and_a_phone_shows_all_of_it(page):
    fields = page.locator("form :is(input, select, textarea)").evaluate_all(
        "all => all.map((each) => each.ariaLabel || each.labels[0]?.innerText)"
    )
    assert len(fields) == 8
    assert all(fields), fields
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 360, "nothing lies beyond the edge"


@needs_chromium
def test_the_page_of_requests_shows_and_sends_each(client, page):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_role("link", name="requests").click()
    document = client.get("/openapi.json").json()
    shown = page.locator(".opblock-summary-path")
    expect(shown).to_have_count(sum(map(len, document["paths"].values())))
    assert {text.replace("\u200b", "") for text in shown.all_inner_texts()} == document["paths"].keys()
    page.get_by_role("button", name="Authorize").click()
    page.get_by_label("Value").fill(KEY)
    page.get_by_role("button", name="Apply credentials").click()
    page.get_by_role("button", name="Close").click()
    draw = page.locator("#operations-default-draw")
    draw.locator(".opblock-summary-control").click()
    draw.get_by_role("button", name="Try it out").click()
    draw.locator("tr", has_text="names of persons").get_by_role("button", name="Add").click()
    draw.locator("tr", has_text="names of persons").locator("input[type=text]").fill("bob")
    draw.get_by_role("button", name="Execute").click()  # the other fields as the page offers them, some empty
    expect(draw.locator(".live-responses-table .response .response-col_status").first).to_have_text(
        "200", timeout=MINUTE
    )
    expect(draw.locator(".live-responses-table")).to_contain_text('"likeness"')
    assert all(url.startswith((str(client.base_url), "data:", "blob:")) for url in asked), asked


def test_the_pages_load_nothing_from_other_hosts(client):
    for path in ("/", "/page.js", "/page.css", "/docs", "/docs.js", "/swagger-ui-bundle.js", "/swagger-ui.css"):
        answer = client.get(path, headers={"Authorization": ""})
        assert answer.status_code == 200
        assert "swagger" in path or "://" not in answer.text
        assert "default-src 'self'" in answer.headers["content-security-policy"]
