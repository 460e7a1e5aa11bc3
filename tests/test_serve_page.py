"""The service's page in headless Chromium: photo in, prompt, picture out, likeness."""

from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from .comfyui.server.frontend import find_chromium
from .serving import PORTRAITS, PROMPT, serving

CHROMIUM = find_chromium()
KEY = "a secret of the page"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page was not opened")


@needs_chromium
def test_a_photograph_becomes_a_picture_in_the_page(tmp_path):
    with serving(key=KEY, persons=tmp_path / "persons") as client, sync_playwright() as playwright:
        files = [("photos", PORTRAITS[1].read_bytes())]
        assert client.post("/v1/persons", files=files, data={"name": "bob"}).status_code == 201
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        asked, problems = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{client.base_url}/")
        page.wait_for_selector("#routes li")
        assert "POST /v1/pictures" in page.inner_text("#routes")
        page.set_input_files("input[name=photos]", PORTRAITS[0])
        page.fill("textarea[name=prompt]", PROMPT)
        page.click("text=Draw")
        page.wait_for_selector("#status.error")
        assert "no key" in page.inner_text("#status")
        page.fill("#key", KEY)
        page.dispatch_event("#key", "change")
        page.wait_for_selector("option[value=bob]", state="attached")
        page.click("text=Draw")
        page.wait_for_selector("#picture.preview", timeout=60_000)
        expect(page.locator("#status")).to_have_text(
            re.compile(r"likeness 0\.\d\d \((strong|moderate)\); seed 0"), timeout=60_000
        )
        assert page.locator("#progress").evaluate("bar => bar.value === bar.max && bar.max === 20")
        source = page.get_attribute("#picture", "src")
        drawn = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert (drawn.format, drawn.size) == ("PNG", (128, 128))
        page.set_input_files("input[name=photos]", [])
        page.select_option("select[name=persons]", "bob")
        page.click("text=Draw")
        page.wait_for_selector("#picture.preview", timeout=60_000)
        page.click("text=Stop")
        expect(page.locator("#status")).to_have_text("stopped")
        browser.close()
        assert problems == []
        assert [url for url in asked if not url.startswith((str(client.base_url), "data:"))] == []


def test_the_page_loads_nothing_from_other_hosts():
    with serving() as client:
        for path in ("/", "/page.js", "/page.css"):
            answer = client.get(path)
            assert "://" not in answer.text
            assert "default-src 'self'" in answer.headers["content-security-policy"]
