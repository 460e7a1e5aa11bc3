"""InstantID Doctor and InstantID Profile as nodes: what they see, and what they leave as it was.

A prompt is played here as the host runs it, up to the calls it makes; ``test_observe_server.py`` has the host do it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy_execution import progress

from tests.comfyui import tiny
from tests.comfyui.installation import Installation, installed
from tests.comfyui.test_counts import Counts
from tests.comfyui.test_memory import part  # noqa: F401  # a fixture

LAYERS, STEPS = 60, 2


class Prompt:
    """The host's ``DynamicPrompt`` of a graph, and the host's steps around the execution of a node."""

    def __init__(self, classes: dict[str, str], links: dict[str, list[str]]) -> None:
        self.nodes = {
            node: {
                "class_type": name,
                "inputs": {f"input {i}": [other, 0] for i, other in enumerate(links.get(node, []))},
            }
            for node, name in classes.items()
        }
        progress.reset_progress_state("a prompt", self)

    def get_node(self, node_id: str) -> dict[str, Any]:
        return self.nodes[node_id]

    def run(self, node_id: str, work: Callable[[], Any]) -> Any:
        progress.get_progress_state().start_progress(node_id)
        result = work()
        progress.get_progress_state().finish_progress(node_id)
        return result


@pytest.fixture
def comfyui(tmp_path: Path) -> Iterator[Installation]:
    with installed(tmp_path / "ComfyUI") as installation:
        yield installation


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's output folder."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


@pytest.fixture
def is_recording(part) -> Iterator[Callable[[], bool]]:  # noqa: F811
    recorder = part("recorder")
    yield recorder.is_recording
    assert not recorder.is_recording(), "a recording was left running"


@pytest.fixture
def node(ours: dict[str, type], output: Path, is_recording) -> Callable[..., Any]:
    """``node(prompt)``: an InstantID Profile in it, asked by the host before anything ran."""

    def node(prompt: Prompt, prefix: str = "profile/run", enabled: bool = True) -> Any:
        profile = ours["InstantIDProfile"]()
        values = {"enabled": enabled, "filename_prefix": prefix, "dynprompt": prompt, "unique_id": "9"}
        assert profile.check_lazy_status(images=None, **values) == ["images"]
        profile.end = lambda images=None: profile.profile(images=images, **values)
        return profile

    return node


@pytest.fixture
def draw(ours, adapter, faces, controlnet, portrait, positive, negative):
    """``draw(prompt)``: a picture with a face, by the nodes 1 (Apply) and 2 (KSampler) of the prompt."""

    def draw(prompt: Prompt, image: torch.Tensor = portrait) -> torch.Tensor:
        inputs = {"instantid": adapter, "insightface": faces, "control_net": controlnet, "image": image}
        inputs |= {"positive": positive, "negative": negative, "start_at": 0.0, "end_at": 1.0}
        model = tiny.tiny_model()
        applied = prompt.run("1", lambda: tiny.call(ours["ApplyInstantID"], model=model, **inputs))
        return prompt.run("2", lambda: tiny.sample(*applied, steps=STEPS))

    return draw


@pytest.fixture
def forget(part) -> None:  # noqa: F811
    """Faces that other tests looked at."""
    part("cache").shared_cache().clear()


def test_the_doctor_says_what_is_missing_where_and_what_is_there(comfyui: Installation, caplog):
    doctor = comfyui.start().NODE_CLASS_MAPPINGS["InstantIDDoctor"]
    with caplog.at_level("INFO"):
        result = tiny.call(doctor, provider="auto")
    text = result["result"][0]
    assert result["ui"]["text"] == [text]
    assert text in caplog.text
    assert "BROKEN" in text
    assert str(comfyui.models) in text

    adapter = tiny.adapter_file(comfyui.models / "instantid", "ip-adapter.bin")
    text = tiny.call(doctor)["result"][0]
    assert str(adapter) in text
    for kind in ("insightface", "controlnet", "checkpoints"):  # what is still missing, and where
        assert folder_paths.get_folder_paths(kind)[0] in text, kind


def test_the_doctor_sees_the_old_pack(comfyui: Installation):
    old = comfyui.custom_nodes / "ComfyUI_InstantID_old"
    old.mkdir()
    (old / "InstantID.py").write_text("class ApplyInstantID:\n    pass\n")
    text = tiny.call(comfyui.start().NODE_CLASS_MAPPINGS["InstantIDDoctor"])["result"][0]
    assert f"rename {old.name} to {old.name}.disabled" in " ".join(text.split())


def test_the_doctor_looks_again_at_every_run(ours):
    always = ours["InstantIDDoctor"].IS_CHANGED(provider="auto")
    assert always != always, "only NaN makes the host run a node each time"


def graph() -> Prompt:
    return Prompt({"1": "ApplyInstantID", "2": "KSampler", "9": "InstantIDProfile"}, {"9": ["2"], "2": ["1"]})


def stages(trace: Path) -> dict[str, int]:
    """How often each stage was passed, by its path."""
    spans = [
        event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X" and event["pid"] == 1
    ]
    paths: list[str] = []
    for span in spans:
        parent = span["args"]["parent"]
        paths.append(span["name"] if parent < 0 else f"{paths[parent]}/{span['name']}")
    return {path: paths.count(path) for path in paths}


def test_a_profile_shows_nodes_and_what_goes_on_in_them(node, draw, output, forget):
    prompt = graph()
    profile = node(prompt)
    draw(prompt)
    result = profile.end()
    text, (trace,) = result["ui"]["text"][0], result["ui"]["trace"]
    assert trace == {"filename": "run_00001_.json", "subfolder": "profile", "type": "output"}
    seen = stages(output / "profile" / "run_00001_.json")
    for path, calls in {
        "ApplyInstantID": 1,
        "ApplyInstantID/detect": 1,
        "ApplyInstantID/recognise": 1,
        "ApplyInstantID/identity/resample": 1,
        "ApplyInstantID/identity/project": 1,
        "KSampler/IdentityNet": STEPS,
        "KSampler/UNet": STEPS,
        "KSampler/UNet/identity branch": STEPS * LAYERS,
    }.items():
        assert seen[path] == calls, path
        assert path.split("/")[-1] in text
    assert "InstantIDProfile" not in seen
    assert str(output / "profile" / "run_00001_.json") in text
    assert result["result"][1] == text


def test_the_picture_is_the_same_and_takes_the_same_operations(node, draw, portraits):
    plain = draw(graph(), portraits[:1])
    with Counts() as without:
        draw(graph(), portraits[:1])
    prompt = graph()
    profile = node(prompt)
    with Counts() as recorded:
        picture = draw(prompt, portraits[:1])
    assert torch.equal(picture, plain)
    assert recorded.calls == without.calls
    images = torch.rand(2, 8, 8, 3)
    assert profile.end(images)["result"][0] is images


def test_a_face_seen_before_shows_as_hits(node, draw, output, forget):
    for number in (1, 2):
        prompt = graph()
        profile = node(prompt)
        draw(prompt)
        profile.end()
        first = number == 1
        seen = stages(output / "profile" / f"run_{number:05}_.json")
        assert ("ApplyInstantID/identity/project" in seen) is first
    events = json.loads((output / "profile" / "run_00002_.json").read_text())["traceEvents"]
    facts = [event["args"].get("facts", {}) for event in events if event["ph"] == "X"]
    assert sum(fact.get("hits", 0) for fact in facts) >= 3
    assert not sum(fact.get("misses", 0) for fact in facts)


def test_ordinary_control_nets_are_called_so(node, ours, adapter, faces, portrait, positive, negative, output):
    hint = torch.rand(1, 3, 64, 64)
    depth, face = tiny.tiny_controlnet(seed=4), tiny.tiny_controlnet(seed=1)
    positive, negative = (
        [[text, {**options, "control": depth.copy().set_cond_hint(hint, 0.5, (0.0, 1.0))}] for text, options in cond]
        for cond in (positive, negative)
    )
    inputs = {"instantid": adapter, "insightface": faces, "control_net": face, "image": portrait, "start_at": 0.0}
    applied = tiny.call(
        ours["ApplyInstantID"], model=tiny.tiny_model(), positive=positive, negative=negative, end_at=1.0, **inputs
    )
    prompt = graph()
    profile = node(prompt)
    prompt.run("2", lambda: tiny.sample(*applied, steps=STEPS))
    profile.end()
    seen = stages(output / "profile" / "run_00001_.json")
    assert seen["KSampler/IdentityNet"] == seen["KSampler/UNet"]
    assert seen["KSampler/ControlNet"] >= STEPS
    for network in (depth.control_model, face.control_model):
        assert not network._forward_hooks
        assert not network._forward_pre_hooks


def test_switched_off_it_is_a_wire(node, is_recording, output, ours):
    profile = node(graph(), enabled=False)
    assert not is_recording()
    images = torch.rand(1, 8, 8, 3)
    result = profile.end(images)
    assert result["result"][0] is images
    assert "Switched off" in result["ui"]["text"][0]
    assert not output.exists()
    assert ours["InstantIDProfile"].IS_CHANGED(enabled=False) == ours["InstantIDProfile"].IS_CHANGED(enabled=False)
    always = ours["InstantIDProfile"].IS_CHANGED(enabled=True)
    assert always != always, "only NaN makes the host run a node each time"


def test_of_two_in_a_workflow_the_first_ends_the_recording(node, output):
    prompt = graph()
    first, second = node(prompt), node(prompt)
    prompt.run("2", lambda: None)
    assert "KSampler" in first.end()["ui"]["text"][0]
    assert second.check_lazy_status(images=[1], enabled=True, filename_prefix="x", dynprompt=prompt) == ["images"]
    assert "Keep one of them" in second.end()["ui"]["text"][0]


def test_a_list_of_pictures_is_passed_on_with_one_text(node, output):
    profile = node(graph())
    first, second = torch.rand(1, 8, 8, 3), torch.rand(1, 4, 4, 3)
    text = profile.end(first)["result"][1]
    result = profile.end(second)
    assert result["result"][0] is second
    assert result["result"][1] == text
    assert result["ui"] == {"text": [], "trace": []}


def test_what_a_failed_prompt_recorded_is_kept_and_the_next_one_starts_anew(node, output, caplog, is_recording):
    async def failing() -> None:
        prompt = graph()
        node(prompt)
        prompt.run("1", lambda: None)
        progress.get_progress_state().start_progress("2")  # and it never finishes
        await asyncio.sleep(0)

    with caplog.at_level("INFO"):
        asyncio.run(failing())
    assert not is_recording()
    assert str(output / "profile" / "run_00001_.json") in caplog.text
    seen = stages(output / "profile" / "run_00001_.json")
    assert seen == {"ApplyInstantID": 1, "KSampler": 1}

    prompt = graph()
    profile = node(prompt)
    prompt.run("1", lambda: None)
    profile.end()
    assert stages(output / "profile" / "run_00002_.json") == {"ApplyInstantID": 1}


def test_outside_of_a_loop_the_next_recording_ends_the_one_before(node, output):
    prompt = graph()
    node(prompt)
    prompt.run("1", lambda: None)
    profile = node(graph())
    assert stages(output / "profile" / "run_00001_.json") == {"ApplyInstantID": 1}
    profile.end()
    assert (output / "profile" / "run_00002_.json").exists()


def test_a_trace_that_cannot_be_written_costs_no_picture(node, output, caplog):
    output.write_text("a file where the folder should be")
    images = torch.rand(1, 8, 8, 3)
    result = node(graph()).end(images)
    assert result["result"][0] is images
    assert "could not be written" in result["ui"]["text"][0]
    assert result["ui"]["trace"] == []
    assert "could not be written" in caplog.text


@pytest.mark.parametrize("prefix", ["../out", "/etc/profile", "", "folder/", "a/../../b", "a\0b", "a\ud800"])
def test_a_prefix_that_leads_elsewhere_is_refused_before_anything_runs(ours, output, prefix: str):
    assert "output folder" in ours["InstantIDProfile"].VALIDATE_INPUTS(filename_prefix=prefix)


@pytest.mark.parametrize("prefix", ["run", "profile/run", None])
def test_a_prefix_inside_the_output_folder_is_taken(ours, output, prefix: str | None):
    assert ours["InstantIDProfile"].VALIDATE_INPUTS(filename_prefix=prefix) is True
