"""Workflows of the kinds that people have published since 2024 load and run: in the API's format, and as saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from PIL import Image

from tests.comfyui import tiny
from tests.comfyui.installation import Refused, queue
from tests.comfyui.test_server import OURS, front_end, schema, server  # noqa: F401
from tests.comfyui.workflows import PROMPTS, REFUSED, STYLES, TWO_PEOPLE, Prompt, prompt, saved


@pytest.fixture
def run(ours, face_pack, controlnet, portraits, positive, negative, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``run(prompt)``: what KSampler draws. Our nodes run as in the host, and its own are tiny models."""
    _, extensions = folder_paths.folder_names_and_paths["instantid"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "instantid", ([str(tmp_path)], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    tiny.adapter_file(tmp_path, "ip-adapter.bin")

    def latent(inputs: dict[str, Any]) -> torch.Tensor:
        return tiny.sample(inputs["model"], inputs["positive"], inputs["negative"], steps=1)

    host: dict[str, Any] = {
        "CheckpointLoaderSimple": lambda inputs: (tiny.tiny_model(), "CLIP", "VAE"),
        "CLIPTextEncode": lambda inputs: (positive if inputs["text"] == "film still" else negative,),
        "ControlNetLoader": lambda inputs: (controlnet,),
        "LoadImage": lambda inputs: (portraits[1:2] if "pose" in inputs["image"] else portraits[:1],),
        "SolidMask": lambda inputs: (torch.ones(1, 256, 256),),
        "EmptyLatentImage": lambda inputs: (None,),
        "KSampler": lambda inputs: (latent(inputs),),
    }

    def run(prompt: Prompt) -> torch.Tensor:
        done: dict[str, tuple[Any, ...]] = {}

        def outputs(node_id: str) -> tuple[Any, ...]:
            if node_id not in done:
                node = prompt[node_id]
                inputs = {
                    name: outputs(value[0])[value[1]] if isinstance(value, list) else value
                    for name, value in node["inputs"].items()
                }
                kind = node["class_type"]
                done[node_id] = queue(ours[kind], **inputs) if kind in ours else host[kind](inputs)
            return done[node_id]

        (sampler,) = (node_id for node_id, node in prompt.items() if node["class_type"] == "KSampler")
        return outputs(sampler)[0]

    return run


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_runs(run, name: str):
    drawn = run(PROMPTS[name])
    assert drawn.isfinite().all()
    same = {
        "ids of a subgraph",
        "ids that are names",
        "ids that are numbers",
        "CUDA on a CPU",
        "inputs of another time",
    }
    if name in same or ".bin" in name or name == "a path of Windows":
        assert torch.equal(drawn, run(prompt()))


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_reference_would_refuse_is_refused(run, name: str):
    prompt, reason = REFUSED[name]
    with pytest.raises(Refused, match=reason):
        run(prompt)


def test_analyses_go_to_nodes_of_other_packs_and_come_from_them(run, ours, faces, portraits):
    """As in two public workflows that cross PuLID's loader and InstantID's."""

    class PulidInsightFaceLoader:
        FUNCTION = "load"
        INPUT_TYPES = staticmethod(lambda: {"required": {}})

        def load(self) -> tuple[Any]:
            return (faces,)

    class ApplyPulid:
        FUNCTION = "apply"
        INPUT_TYPES = staticmethod(lambda: {"required": {"face_analysis": ("FACEANALYSIS",), "image": ("IMAGE",)}})

        def apply(self, face_analysis: Any, image: torch.Tensor) -> tuple[torch.Tensor]:
            picture = image[0, ..., [2, 1, 0]].mul(255).byte().numpy()
            for size in [(size, size) for size in range(640, 256, -64)]:
                face_analysis.det_model.input_size = size
                if found := face_analysis.get(picture):
                    face = sorted(found, key=lambda x: (x.bbox[2] - x.bbox[0]) * (x.bbox[3] - x.bbox[1]))[-1]
                    return (torch.from_numpy(face.embedding).unsqueeze(0),)
            raise AssertionError("no face")

    expected = run(prompt())
    with pytest.MonkeyPatch.context() as patch:
        for node in (PulidInsightFaceLoader, ApplyPulid):
            patch.setitem(ours, node.__name__, node)
        crossed = run(prompt(analysis={"class_type": "PulidInsightFaceLoader", "provider": None}))
        torch.testing.assert_close(crossed, expected, rtol=1e-3, atol=float(expected.abs().max()) * 1e-3)
        (analysis,) = queue(ours["InstantIDFaceAnalysis"], provider="CPU")
        embeddings = [queue(ApplyPulid, face_analysis=given, image=portraits[:1])[0] for given in (analysis, faces)]
        assert torch.cosine_similarity(*embeddings) > 0.9999


@pytest.mark.parametrize("name", PROMPTS)
def test_the_api_takes_a_prompt(server, name: str):  # noqa: F811
    _assert_drawn(server, PROMPTS[name], name)


@pytest.mark.parametrize("name", REFUSED)
def test_the_api_refuses_a_prompt_for_the_same_reason(server, name: str):  # noqa: F811
    prompt, reason = REFUSED[name]
    with pytest.raises(RuntimeError, match=reason):
        server.queue(prompt)


@pytest.mark.parametrize("style", STYLES)
def test_a_saved_workflow_opens_whole_and_runs(front_end, server, schema, tmp_path: Path, style: str):  # noqa: F811
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps(saved(TWO_PEOPLE, schema, style)))
    page = front_end.open(file)
    assert (page["dialogs"], page["problems"]) == ([], [])
    assert _values(page["prompt"]) == _values(TWO_PEOPLE)
    _assert_drawn(server, page["prompt"], style)


def _values(prompt: Prompt) -> list[Any]:
    """Each node's class and widgets, wherever it stands and by whatever id. A link to a number counts as the number."""
    values: list[Any] = []
    for node in prompt.values():
        inputs: dict[str, Any] = {}
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                source = prompt[value[0]]
                is_number = source["class_type"] == "PrimitiveFloat"
                value = source["inputs"]["value"] if is_number else f"{source['class_type']} {value[1]}"
            inputs[name] = round(float(value), 6) if isinstance(value, (int, float)) else value
        for name, default in OURS.items():  # which the page adds
            if inputs.get(name) == default:
                del inputs[name]
        values.append([node["class_type"], inputs])
    return sorted(
        (value for value in values if value[0] != "PrimitiveFloat"), key=lambda value: json.dumps(value, sort_keys=True)
    )


def _assert_drawn(
    server: Any,  # noqa: F811
    prompt: Prompt,
    name: str,
) -> None:
    """With a file name of its own, since the host runs no node again that has the inputs of the last prompt."""
    prompt = {
        id: {**node, "inputs": {**node["inputs"], "filename_prefix": name}}
        if node["class_type"] == "SaveImage"
        else node
        for id, node in prompt.items()
    }
    low, high = Image.open(server.run(prompt)[0]).convert("L").getextrema()
    assert high > low
