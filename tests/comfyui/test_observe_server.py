"""InstantID Doctor and InstantID Profile in a ComfyUI server: in prompts that the host runs, and on its page."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.comfyui.server.host import ROOT, ComfyServer
from tests.comfyui.test_observe import stages
from tests.comfyui.test_server import _small, front_end, server  # noqa: F401  # fixtures

if TYPE_CHECKING:
    from tests.comfyui.server.frontend import FrontEnd

EXAMPLE = ROOT / "example_workflows" / "instantid_profile.json"
SECONDS = 120

_MAKE_SMALL = """() => {
    const node = (type) => app.graph.nodes.find((node) => node.type === type);
    const set = (type, name, value) => { node(type).widgets.find((widget) => widget.name === name).value = value; };
    set("EmptyLatentImage", "width", 256);
    set("EmptyLatentImage", "height", 256);
    set("KSampler", "steps", 2);
}"""
_REPORTS = """() => Object.fromEntries(app.graph.nodes.filter((node) => node.showReport).map(
    (node) => [node.type, node.widgets.at(-1).element.querySelector("textarea").value]))"""
_KEPT = """async () => JSON.stringify([app.graph.serialize(), await app.graphToPrompt()])"""


@pytest.fixture(scope="module")
def example(front_end: FrontEnd) -> dict[str, Any]:  # noqa: F811
    """The prompt that the page makes of the example."""
    return _small(front_end.open(EXAMPLE)["prompt"])


@pytest.fixture
def prompt(example: dict[str, Any], server: ComfyServer) -> Callable[..., dict[str, Any]]:  # noqa: F811
    """``prompt(KSampler={"seed": 1}, ...)``: the example with these values; the server remembers nothing of others."""
    server.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1.5)  # it does so between prompts

    def prompt(prefix: str, **values: dict[str, Any]) -> dict[str, Any]:
        changed = json.loads(json.dumps(example))
        for node in changed.values():
            node["inputs"] |= values.get(node["class_type"], {})
            if node["class_type"] == "InstantIDProfile":
                node["inputs"]["filename_prefix"] = prefix
        return changed

    return prompt


def text_with(entry: dict[str, Any], word: str) -> str:
    """The text of a node, of those that hold ``word``."""
    texts = [text for output in entry["outputs"].values() for text in output.get("text", [])]
    return next(text for text in texts if word in text)


def test_a_prompt_is_recorded_from_its_first_node_on(server, prompt):  # noqa: F811
    entry = server.wait(server.queue(prompt("whole/run")))
    assert entry["status"]["status_str"] == "success", server.log()[-4000:]
    seen = stages(server.base / "output" / "whole" / "run_00001_.json")
    for stage in ("CheckpointLoaderSimple", "LoadImage", "InstantIDFaceAnalysis", "InstantIDModelLoader", "VAEDecode"):
        assert seen[stage] == 1, stage
    assert seen["KSampler/UNet/identity branch"] == 60 * seen["KSampler/UNet"] == 60 * seen["KSampler/IdentityNet"]
    assert {"ApplyInstantID/detect", "ApplyInstantID/recognise", "ApplyInstantID/identity/project"} <= set(seen)
    assert not {"SaveImage", "InstantIDProfile"} & set(seen)
    assert "Machine" in text_with(entry, "examined by its doctor")


def test_what_the_host_still_had_is_missing_and_hits_are_shown(server, prompt):  # noqa: F811
    server.run(prompt("again/run", KSampler={"seed": 1}))
    text = text_with(server.wait(server.queue(prompt("again/run", KSampler={"seed": 2}))), "whole run")
    seen = stages(server.base / "output" / "again" / "run_00002_.json")
    assert {path.split("/")[0] for path in seen} - {"InstantIDDoctor"} == {"KSampler", "VAEDecode"}
    assert "still had their results" in text
    # Another weight runs the node again, which then finds the face in its own cache.
    text = text_with(server.wait(server.queue(prompt("again/run", ApplyInstantID={"weight": 0.5}))), "whole run")
    assert "ApplyInstantID/identity/project" not in stages(server.base / "output" / "again" / "run_00003_.json")
    assert re.search(r"The cache had (\d+) of \1 results\.", text), "all of them"


def test_loaders_that_the_host_forgot_read_nothing_again(server, prompt):  # noqa: F811
    """It keeps the results of the last workflow. Newer hosts also drop results when memory is short (--cache-ram)."""
    server.run(prompt("forgotten/run"))
    other = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 255}}}
    other["2"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "other"}}
    server.run(other)
    edited = prompt("forgotten/run", ApplyInstantID={"weight": 0.5}, KSampler={"steps": 1})
    text = text_with(server.wait(server.queue(edited)), "whole run")
    seen = set(stages(server.base / "output" / "forgotten" / "run_00002_.json"))
    assert {"InstantIDModelLoader", "InstantIDFaceAnalysis", "ApplyInstantID", "KSampler/UNet"} <= seen
    assert re.search(r"The cache had (\d+) of \1 results\.", text), "all of them"
    assert not [stage for stage in seen if stage.endswith(("resample", "project", "fingerprint"))]


def test_the_picture_is_the_same_with_and_without(server, prompt):  # noqa: F811
    (recorded,) = server.run(prompt("same/run"))
    server.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1.5)
    (plain,) = server.run(prompt("same/run", InstantIDProfile={"enabled": False}))
    assert recorded != plain
    assert np.array_equal(np.asarray(Image.open(recorded)), np.asarray(Image.open(plain)))
    assert len(list((server.base / "output" / "same").glob("*.json"))) == 1


def test_a_prompt_that_fails_is_kept_and_the_next_starts_anew(server, prompt):  # noqa: F811
    (server.base / "input" / "torn.png").write_bytes(b"\x89PNG and then nothing")
    failed = server.wait(server.queue(prompt("failed/run", LoadImage={"image": "torn.png"})))
    assert failed["status"]["status_str"] == "error"
    trace = server.base / "output" / "failed" / "run_00001_.json"
    assert "LoadImage" in stages(trace)
    assert json.loads(trace.read_text())["otherData"]["ended_early"]
    assert trace.name in server.log()

    server.run(prompt("failed/run"))
    assert {"LoadImage", "KSampler/UNet"} <= set(stages(trace.with_name("run_00002_.json")))


def test_a_prompt_that_is_cancelled_is_kept(server, prompt):  # noqa: F811
    queued = server.queue(prompt("cancelled/run", KSampler={"steps": 1000, "seed": 3}))
    deadline = time.monotonic() + SECONDS
    while not re.search(r" [1-9]\d*/1000 \[", server.log()):
        assert time.monotonic() < deadline, server.log()[-4000:]
        time.sleep(0.2)
    server.post("/interrupt", {})
    server.wait(queued)
    seen = stages(server.base / "output" / "cancelled" / "run_00001_.json")
    assert 1 <= seen["KSampler/UNet"] < 1000


def test_the_page_shows_the_texts_and_saves_the_trace(server, front_end):  # noqa: F811
    server.post("/free", {"unload_models": True, "free_memory": True})
    page = front_end.page
    opened = front_end.open(EXAMPLE)
    assert opened["problems"] == []
    assert page.evaluate(_REPORTS) == {"InstantIDProfile": "", "InstantIDDoctor": ""}
    page.evaluate(_MAKE_SMALL)
    page.evaluate("() => app.queuePrompt(0)")
    page.wait_for_function(f"() => Object.values(({_REPORTS})()).every((text) => text)", timeout=SECONDS * 1000)
    texts = page.evaluate(_REPORTS)
    assert "identity branch" in texts["InstantIDProfile"]
    assert "examined by its doctor" in texts["InstantIDDoctor"]

    with page.context.expect_event("response", lambda response: "/view?" in response.url) as answer:
        page.get_by_role("button", name="Save the trace").click()
    assert answer.value.ok

    kept = page.evaluate(_KEPT)
    assert "whole run" not in kept
    assert "examined by its doctor" not in kept
    page.wait_for_timeout(1500)  # the page stores its open workflows a moment after each change
    page.reload()
    page.wait_for_function(f"() => window.app?.graph && Object.keys(({_REPORTS})()).length === 2", timeout=60_000)
    page.wait_for_function(f"() => Object.values(({_REPORTS})()).every((text) => text)", timeout=10_000)
    assert page.evaluate(_REPORTS) == texts
    assert front_end.open(EXAMPLE)["problems"] == []
