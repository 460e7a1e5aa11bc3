"""The pack as its users meet it: in a ComfyUI server, through its HTTP API and its web front end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from fast_instantid import FaceAnalyzer, miniature
from fast_instantid.faces import largest
from tests.comfyui.server.host import PACK_FOLDER, ROOT, ComfyServer
from tests.comfyui.server.installation import install

if TYPE_CHECKING:
    from tests.comfyui.server.frontend import FrontEnd

NODES = (
    "InstantIDModelLoader",
    "InstantIDFaceAnalysis",
    "ApplyInstantID",
    "ApplyInstantIDAdvanced",
    "FaceKeypointsPreprocessor",
    "InstantIDAttentionPatch",
    "ApplyInstantIDControlNet",
    "InstantIDPerson",
    "InstantIDLoadPerson",
    "InstantIDSavePerson",
    "InstantIDJoinPeople",
    "ApplyInstantIDPerson",
    "InstantIDPose",
    "ApplyInstantIDScene",
    "InstantIDPoseFromImage",
    "InstantIDLoadPose",
    "InstantIDSavePose",
    "InstantIDPoseTrack",
    "InstantIDCropFace",
    "InstantIDPasteFace",
    "InstantIDLikeness",
    "InstantIDPrompts",
    "InstantIDDoctor",
    "InstantIDProfile",
    "InstantIDMiniature",
    "InstantIDPoseEditor",
    "InstantIDApproximations",
)
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
OLD_WORKFLOWS = sorted(Path(os.environ.get("REFERENCE_PATH", "/nowhere"), "examples").glob("*.json"))
IPADAPTER = os.environ.get("IPADAPTER_PATH")
OURS = {"layers": "reference", "no_face": "error", "det_threshold": 0.5, "det_size": "auto"}
"""Inputs that the old pack lacks, with their defaults."""
ON_THE_PAGE_ONLY = {"MarkdownNote", "Note", "Reroute"}


@pytest.fixture(scope="module")
def server(real_host: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("comfyui base")
    with install(real_host, base, IPADAPTER) as server:
        yield server


@pytest.fixture(scope="module")
def front_end(server: ComfyServer) -> Iterator[FrontEnd]:
    pytest.importorskip("playwright", reason="needs playwright: pip install playwright")
    from tests.comfyui.server.frontend import FrontEnd, find_chromium

    chromium = find_chromium()
    if chromium is None:
        pytest.skip("needs Chromium: put it on the path, or its file name into the variable CHROMIUM")
    with FrontEnd(server.url, chromium) as front_end:
        yield front_end


@pytest.fixture(scope="module")
def schema(server: ComfyServer) -> dict[str, Any]:
    """The server's description of every node, by id."""
    return server.get_json("/object_info")


def test_the_server_loads_the_nodes_from_a_folder_that_could_be_no_module(
    server: ComfyServer, schema: dict[str, Any]
) -> None:
    assert {schema[node]["python_module"] for node in NODES} == {f"custom_nodes.{PACK_FOLDER}"}
    assert "IMPORT FAILED" not in server.log()


@pytest.mark.parametrize("node", NODES)
def test_the_help_page_of_a_node_explains_each_input_and_output(
    server: ComfyServer, schema: dict[str, Any], node: str
) -> None:
    page = server.get(f"/extensions/{PACK_FOLDER}/docs/{node}.md").decode()
    assert page.startswith(f"# {schema[node]['display_name']}\n")
    sections = schema[node]["input_order"].items()
    inputs = [name for section, names in sections if section != "hidden" for name in names]
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert rows == [*inputs, *schema[node]["output_name"]]


def test_the_front_end_shows_the_help_page_of_a_node(front_end: FrontEnd) -> None:
    front_end.open(ROOT / "example_workflows" / "instantid_basic.json")
    page = (ROOT / "web" / "docs" / "ApplyInstantID.md").read_text()
    shown = front_end.help_page("ApplyInstantID")
    assert [line[2:] for line in page.splitlines() if line.startswith("# ")] == shown.splitlines()[:1]


def test_the_server_offers_the_examples_as_templates(server: ComfyServer) -> None:
    offered = server.get_json("/workflow_templates")[PACK_FOLDER]
    assert sorted(offered) == [example.stem for example in EXAMPLES]
    for example in EXAMPLES:
        url = f"/api/workflow_templates/{PACK_FOLDER}/{example.stem}"
        assert server.get(f"{url}.json") == example.read_bytes()
        assert server.get(f"{url}.jpg") == example.with_suffix(".jpg").read_bytes()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_opens_in_the_front_end_whole(front_end: FrontEnd, schema: dict[str, Any], example: Path) -> None:
    _skip_without_nodes(example, schema)
    page = front_end.open(example)
    assert page["dialogs"] == []
    assert page["problems"] == []
    _assert_whole(page, json.loads(example.read_text()))
    assert not _overlaps(page["nodes"])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_to_the_saved_picture(
    server: ComfyServer, front_end: FrontEnd, schema: dict[str, Any], example: Path
) -> None:
    _skip_without_nodes(example, schema)
    prompt = _small(front_end.open(example)["prompt"])
    pictures = server.run(prompt)
    server.post("/free", {"unload_models": True, "free_memory": True})
    # instantid_keep_person draws nothing: its picture is the preview.
    sources = [node for node in prompt.values() if node["class_type"] in ("EmptyLatentImage", "VAEEncode")]
    batch = [node["inputs"].get("batch_size", 1) for node in sources]
    saved = [picture for picture in pictures if picture.parent.name == "output"]
    assert [picture.stem for picture in saved] == [
        f"{example.stem}_{number:05}_" for number in range(1, len(saved) + 1)
    ]
    frames = [getattr(Image.open(picture), "n_frames", 1) for picture in saved]  # an animation is one file
    assert sum(frames) == sum(batch)
    assert pictures
    for picture in pictures:
        _assert_not_empty(picture)


def test_the_miniature_draws_the_person_of_its_portrait(
    server: ComfyServer, front_end: FrontEnd, schema: dict[str, Any]
) -> None:
    """As it stands in the example: a face that is more like the portrait than like any other, and lies where it did."""
    prompt = front_end.open(ROOT / "example_workflows" / "instantid_miniature.json")["prompt"]
    (chosen,) = (node["inputs"]["portrait"] for node in prompt.values() if node["class_type"] == "InstantIDMiniature")
    picture = _saved(server.run(prompt))
    server.post("/free", {"unload_models": True, "free_memory": True})
    files = miniature.files()
    analyzer = FaceAnalyzer.load(files.pack, device="cpu")
    faces = analyzer.detect(picture)[0]
    assert len(faces) == 1
    people = [largest(analyzer.detect(file)[0]) for file in files.portraits]
    embeddings = analyzer.embed([picture, *files.portraits], [*faces, *people])
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    likeness = embeddings[1:] @ embeddings[0]
    number = schema["InstantIDMiniature"]["input"]["required"]["portrait"][0].index(chosen)
    assert likeness.argmax() == number, likeness
    assert np.linalg.norm(faces[0].kps - people[number].kps, axis=1).max() <= 0.1 * miniature.SIZE[1]


@pytest.mark.skipif(not OLD_WORKFLOWS, reason="needs the reference pack: set REFERENCE_PATH to a checkout")
@pytest.mark.parametrize("workflow", OLD_WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_of_the_old_pack_opens_and_runs_as_it_is(
    server: ComfyServer, front_end: FrontEnd, schema: dict[str, Any], workflow: Path
) -> None:
    page = front_end.open(workflow)
    stored = json.loads(workflow.read_text())
    absent = {node["type"] for node in stored["nodes"]} - set(schema)
    # Newer front ends mark nodes whose file is missing.
    without_file = {
        node["class_type"]
        for node in page["prompt"].values()
        for name, value in node["inputs"].items()
        if value not in _choices(schema, node["class_type"], name, [value])
    }
    _assert_whole(page, stored, absent, without_file)
    for node in page["nodes"]:
        if node["type"] in NODES:
            values = _node(stored, node["id"])["widgets_values"]
            assert [value for name, value in node["widgets"].items() if name not in OURS] == values
            assert all(node["widgets"].get(name, default) == default for name, default in OURS.items())
    pictures = server.run(_with_what_is_here(_small(page["prompt"]), schema))
    server.post("/free", {"unload_models": True, "free_memory": True})
    _assert_not_empty(pictures[0])


def _skip_without_nodes(workflow: Path, schema: dict[str, Any]) -> None:
    types = {node["type"] for node in json.loads(workflow.read_text())["nodes"]}
    if any(name.startswith("IPAdapter") and name not in schema for name in types):
        pytest.skip("needs IPAdapter_plus: set IPADAPTER_PATH to a checkout")


def _saved(pictures: list[Path]) -> Path:
    """The one in ComfyUI's output folder; others are previews."""
    (picture,) = (picture for picture in pictures if picture.parent.name == "output")
    return picture


def _node(workflow: dict[str, Any], node_id: str) -> dict[str, Any]:
    return next(node for node in workflow["nodes"] if str(node["id"]) == node_id)


def _assert_whole(
    page: dict[str, Any], stored: dict[str, Any], absent: set[str] = frozenset(), may_be_red: set[str] = frozenset()
) -> None:
    """No red node, and every stored link still ends where it ended."""
    absent = absent - ON_THE_PAGE_ONLY
    assert {node["id"] for node in page["nodes"]} == {str(node["id"]) for node in stored["nodes"]}
    assert {node["type"] for node in page["nodes"] if not node["known"]} == absent
    assert {node["type"] for node in page["nodes"] if node["errors"]} <= absent | may_be_red
    for node in page["nodes"]:
        assert node["dangling"] == []
        linked = {slot["name"] for slot in _node(stored, node["id"]).get("inputs", []) if slot.get("link") is not None}
        assert set(node["linked"]) == linked, node["type"]


def _overlaps(nodes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of nodes that cover each other."""
    pairs = [(a, b) for i, a in enumerate(nodes) for b in nodes[:i]]
    return [(a["type"], b["type"]) for a, b in pairs if all(_meet(a["bounds"], b["bounds"], side) for side in (0, 1))]


def _meet(a: list[float], b: list[float], side: int) -> bool:
    return a[side] < b[side] + b[side + 2] and b[side] < a[side] + a[side + 2]


def _small(prompt: dict[str, Any]) -> dict[str, Any]:
    """The same prompt with a picture of a quarter of the width and height, and two steps; the miniature is small."""
    if any(node["class_type"] == "InstantIDMiniature" for node in prompt.values()):
        return prompt
    for node in prompt.values():
        if node["class_type"] == "EmptyLatentImage":
            node["inputs"] |= {side: node["inputs"][side] // 4 for side in ("width", "height")}
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 2
    return prompt


def _with_what_is_here(prompt: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The prompt with pictures and models of this server, and without nodes of other packs: what comes in goes out."""
    for node in prompt.values():
        if node["class_type"] not in schema and not any(isinstance(value, list) for value in node["inputs"].values()):
            pytest.skip("needs another pack, for a node that no link goes into: set IPADAPTER_PATH to a checkout")
    ways_round = {
        node_id: next(value for value in node["inputs"].values() if isinstance(value, list))
        for node_id, node in prompt.items()
        if node["class_type"] not in schema
    }
    result = {node_id: node for node_id, node in prompt.items() if node_id not in ways_round}
    for node in result.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                while value[0] in ways_round:
                    value = ways_round[value[0]]
                node["inputs"][name] = value
            choices = _choices(schema, node["class_type"], name, [value])
            if value not in choices and node["class_type"] not in NODES:
                node["inputs"][name] = choices[0]
    return result


def _choices(schema: dict[str, Any], node_id: str, name: str, otherwise: list[Any]) -> list[Any]:
    """The values that a node offers for an input, or ``otherwise`` where it offers none."""
    specs = schema.get(node_id, {"input": {}})["input"]
    choices = {**specs.get("required", {}), **specs.get("optional", {})}.get(name, [None])[0]
    return choices if isinstance(choices, list) else otherwise


def _assert_not_empty(picture: Path) -> None:
    low, high = Image.open(picture).convert("L").getextrema()
    assert high > low, f"{picture} has one colour"
