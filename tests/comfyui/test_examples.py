"""What users and agents start from: workflows, their twins in API format, photos, a blueprint and the node schema."""

from __future__ import annotations

import copy
import itertools
import logging
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import folder_paths
import pytest
from PIL import Image

from fast_instantid.people import Person
from fast_instantid.sources import MODELS
from tests.comfyui import node_schema
from tests.comfyui.conftest import ROOT
from tests.comfyui.node_schema import SCHEMA, read

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
PHOTOS = ROOT / "example_workflows" / "input"
BLUEPRINT = ROOT / "subgraphs" / "InstantID portrait.json"
TITLE = 30  # of a node, above its position
MODEL_FILE = re.compile(r".*\.(safetensors|bin|ckpt|pth?|onnx)")
PUBLISHED = {f"{model.repository}/{file}": hash for model in MODELS.values() for file, hash in model.files.items()}

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install jsonschema")


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.stem)
def example(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def workflow(example: Path) -> dict[str, Any]:
    return read(example)


@pytest.fixture
def twin(example: Path) -> dict[str, Any]:
    return read(SCHEMA.parent / example.name)


def box(node: dict[str, Any]) -> tuple[float, ...]:
    """Left, top, right, bottom."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def frame(group: dict[str, Any]) -> tuple[float, ...]:
    x, y, width, height = group["bounding"]
    return x, y, x + width, y + height


def meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def holds(outer: tuple[float, ...], inner: tuple[float, ...]) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


# Layout. That nodes need no more room than stored is measured in the browser (test_nodes_2.py).


def test_no_node_covers_another(workflow: dict[str, Any]) -> None:
    pairs = itertools.combinations(workflow["nodes"], 2)
    assert [(a["type"], b["type"]) for a, b in pairs if meet(box(a), box(b))] == []


def test_groups_hold_their_nodes(workflow: dict[str, Any]) -> None:
    boxes, frames = [*map(box, workflow["nodes"])], [*map(frame, workflow["groups"])]
    assert [pair for pair in itertools.combinations(frames, 2) if meet(*pair)] == []
    pairs = itertools.product(frames, boxes)
    assert [(outer, inner) for outer, inner in pairs if meet(outer, inner) and not holds(outer, inner)] == []
    assert all(any(holds(outer, inner) for inner in boxes) for outer in frames), "a group is empty"


# Models and photos


def test_loaders_say_where_their_models_come_from(our_pack: ModuleType, workflow: dict[str, Any]) -> None:
    """The front end offers a model of ``properties.models`` whose name is the chosen one."""
    nodes = [*workflow["nodes"], *read(BLUEPRINT)["definitions"]["subgraphs"][0]["nodes"]]
    for node in nodes:
        values = (
            [] if node["type"] == "InstantIDLoadPerson" else node.get("widgets_values") or []
        )  # a person is shipped
        files = [value for value in values if MODEL_FILE.fullmatch(str(value))]
        models = node["properties"].get("models", [])
        assert [model["name"] for model in models] == files
        for model in models:
            repository, revision, file = re.fullmatch(
                r"https://huggingface\.co/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", model["url"]
            ).groups()
            hash = PUBLISHED.get(f"{repository}/{file}")
            if hash:
                assert (model["hash"], model["hash_type"]) == (hash, "SHA256")
                assert revision == MODELS["instantid"].revision
            assert re.fullmatch("[0-9a-f]{64}", model.get("hash", "0" * 64))
            assert model["directory"] in {*folder_paths.folder_names_and_paths, "ipadapter", "clip_vision"}


def test_every_photo_and_person_is_shipped(workflow: dict[str, Any]) -> None:
    for node in workflow["nodes"]:
        if node["type"] == "LoadImage":
            assert (PHOTOS / node["widgets_values"][0]).is_file()
        if node["type"] == "InstantIDLoadPerson":
            assert Person.load(PHOTOS.parent / "people" / node["widgets_values"][0]).picture is not None


@pytest.mark.parametrize("kind", ["input", "people"])
def test_files_are_put_into_the_hosts_folders_and_replace_none(
    our_pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    examples = sys.modules[f"{our_pack.__name__}.fast_instantid.comfyui.examples"]

    def use(target: Path) -> None:
        monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(target if kind == "input" else tmp_path))
        known = ([str(target if kind == "people" else tmp_path)], {".safetensors"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, "instantid_people", known)

    use(tmp_path / kind)
    shipped = {path.name for path in (PHOTOS.parent / kind).iterdir()}
    examples.provide_files()
    assert {path.name for path in (tmp_path / kind).iterdir()} == shipped
    for name in shipped:
        (tmp_path / kind / name).write_text("the user's own")
    examples.provide_files()
    assert {path.read_text() for path in (tmp_path / kind).iterdir()} == {"the user's own"}
    (tmp_path / "file").touch()
    use(tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        examples.provide_files()
    assert str(tmp_path / "file") in caplog.text


def test_an_example_has_a_square_thumbnail(example: Path) -> None:
    picture = example.with_suffix(".jpg")
    assert Image.open(picture).size == (512, 512)
    assert picture.stat().st_size <= 100_000


# For agents


def test_the_schema_is_that_of_the_nodes(our_pack: ModuleType) -> None:
    assert read(SCHEMA) == node_schema.json_schema(our_pack), "python -m tests.comfyui.node_schema writes it anew"


def test_a_twin_is_its_workflow(workflow: dict[str, Any], twin: dict[str, Any]) -> None:
    nodes = {str(node["id"]): node for node in workflow["nodes"] if node["type"] != "MarkdownNote"}
    assert {id: node["class_type"] for id, node in twin.items()} == {id: node["type"] for id, node in nodes.items()}
    links = {
        (str(target), nodes[str(target)]["inputs"][slot]["name"]): [str(source), output]
        for _, source, output, target, slot, _ in workflow["links"]
    }
    for id, node in twin.items():
        assert {name for target, name in links if target == id} <= set(node["inputs"])
        for name, value in node["inputs"].items():
            assert value == links[id, name] if isinstance(value, list) else value in nodes[id]["widgets_values"]


def test_a_twin_fits_the_schema(twin: dict[str, Any]) -> None:
    jsonschema.validate(twin, read(SCHEMA))


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 5.1},
        {"weight": "0.8"},
        {"layers": "all"},
        {"cn_strength": 0.8},
        {"image": "a.png"},
        {"image": [10]},
        {"start_at": None},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_node_refuses(change: dict[str, Any]) -> None:
    prompt = copy.deepcopy(read(SCHEMA.parent / "instantid_basic.json"))
    (node,) = (node for node in prompt.values() if node["class_type"] == "ApplyInstantID")
    node["inputs"] |= change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(prompt, read(SCHEMA))


# The blueprint


def test_the_blueprint_is_one_box_whose_links_are_whole() -> None:
    """The form that the front end asks for: a root of one subgraph (stores/subgraphStore.ts)."""
    blueprint = read(BLUEPRINT)
    (box,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert box["type"] == subgraph["id"]
    assert [slot["name"] for slot in box["inputs"]] == [slot["name"] for slot in subgraph["inputs"]]
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    for link in subgraph["links"]:
        if link["origin_id"] in nodes:
            assert link["id"] in nodes[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
        else:
            assert link["id"] in subgraph["inputs"][link["origin_slot"]]["linkIds"]
        if link["target_id"] in nodes:
            assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
        else:
            assert link["id"] in subgraph["outputs"][link["target_slot"]]["linkIds"]
