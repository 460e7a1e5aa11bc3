"""The pack in the newest front end, where nodes are elements of the page (Nodes 2.0), and what its server offers."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fast_instantid.cache import FOLDER
from tests.comfyui.node_schema import SCHEMA, read
from tests.comfyui.server.host import PACK_FOLDER, ROOT, ComfyServer
from tests.comfyui.test_examples import BLUEPRINT, box, holds
from tests.comfyui.test_server import (  # noqa: F401  # fixtures
    EXAMPLES,
    _assert_not_empty,
    _saved,
    _skip_without_nodes,
    _small,
    front_end,
    schema,
    server,
)

if TYPE_CHECKING:
    from tests.comfyui.server.frontend import FrontEnd

MINIATURE = ROOT / "example_workflows" / "instantid_miniature.json"
BASIC = SCHEMA.parent / "instantid_basic.json"
ROUNDED = 1  # pixel

_THUMBNAIL = """() => app.graph.nodes.find((node) => node.type === 'InstantIDLoadPerson'
    ).widgets.find((widget) => widget.name === 'thumbnail').element.naturalWidth"""
_LINES = """() => [...document.querySelectorAll('[data-node-id] textarea[readonly]')
    ].map((area) => getComputedStyle(area).lineHeight)"""
_REPORT = """() => app.graph.nodes.find((node) => node.type === 'InstantIDLikeness'
    ).widgets.find((widget) => widget.name === 'report').element.querySelector('textarea').value"""
_ADD = """async ([workflow, photo]) => {
    await app.loadGraphData(workflow);
    const [box] = app.graph.nodes;
    const [load, save] = ['LoadImage', 'SaveImage'].map((type) => LiteGraph.createNode(type));
    [load, save].forEach((node) => app.graph.add(node));
    load.widgets[0].value = photo;
    load.connect(0, box, 0);
    box.connect(0, save, 0);
    return (await app.graphToPrompt()).output;
}"""


@pytest.fixture
def nodes_2(front_end: FrontEnd):  # noqa: F811
    if front_end.version < (1, 49):
        pytest.skip("needs a front end whose Nodes 2.0 draw where the workflow says: 1.49 or newer")
    with front_end.nodes_2():
        yield front_end


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.stem)
def example(request: pytest.FixtureRequest, schema: dict[str, Any]) -> Path:  # noqa: F811
    _skip_without_nodes(request.param, schema)
    return request.param


def test_no_node_needs_more_room_than_its_workflow_gives_it(nodes_2: FrontEnd, example: Path) -> None:
    """With test_examples.py: in Nodes 2.0 no node covers another, and groups hold their nodes."""
    stored = {str(node["id"]): node for node in read(example)["nodes"]}
    measured = nodes_2.boxes(example)
    assert set(measured) == set(stored)
    outgrown = {}
    for id, (x, y, width, height) in measured.items():
        left, top, right, bottom = box(stored[id])
        given = left - ROUNDED, top - ROUNDED, right + ROUNDED, bottom + ROUNDED
        if not holds(given, (x, y, x + width, y + height)):
            outgrown[id] = stored[id]["type"], (right - left, bottom - top), (width, height)
    assert outgrown == {}


def test_no_font_of_the_machine_decides_how_high_a_report_is(nodes_2: FrontEnd) -> None:
    """Otherwise workflows have room on some machines only: lines of Noto Sans Mono are 2 px higher than DejaVu's."""
    nodes_2.open(ROOT / "example_workflows" / "instantid_people.json")
    assert nodes_2.page.evaluate(_LINES) == ["12px", "12px"]


def test_a_twin_is_what_the_page_posts(front_end: FrontEnd, example: Path) -> None:  # noqa: F811
    posted = front_end.open(example)["prompt"]
    twin = read(SCHEMA.parent / example.name)
    assert {id: (node["class_type"], node["inputs"]) for id, node in posted.items()} == {
        id: (node["class_type"], node["inputs"]) for id, node in twin.items()
    }


def test_run_is_all_that_the_miniature_needs(nodes_2: FrontEnd, server: ComfyServer) -> None:  # noqa: F811
    before = {*(server.base / "output").glob("*.png")}
    nodes_2.run(MINIATURE)
    (picture,) = {*(server.base / "output").glob("*.png")} - before
    _assert_not_empty(picture)


def test_a_person_is_kept_shown_and_drawn(nodes_2: FrontEnd, server: ComfyServer) -> None:  # noqa: F811
    examples, output = ROOT / "example_workflows", server.base / "output"
    nodes_2.run(examples / "instantid_keep_person.json")
    kept = server.base / "models" / "instantid" / "people" / "Example.safetensors"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    before = {*output.rglob("*.png")}
    nodes_2.run(examples / "instantid_load_person.json")
    assert nodes_2.page.evaluate(_THUMBNAIL) == 112
    nodes_2.run(examples / "instantid_people.json")
    drawn = {*output.rglob("*.png")} - before
    assert len(drawn) == 4
    for picture in drawn:
        _assert_not_empty(picture)
    report = nodes_2.page.evaluate(_REPORT)
    assert "image[0]: Person" in report
    assert "no face" not in report


def test_the_page_offers_the_models_that_it_may_download(nodes_2: FrontEnd, tmp_path: Path) -> None:
    """It lists all that are missing, and takes addresses of ``properties.models``."""
    workflow = read(ROOT / "example_workflows" / "instantid_basic.json")
    for node in workflow["nodes"]:
        for model in node["properties"].get("models", []):
            model["name"] = node["widgets_values"][0] = f"absent_{model['name'].rsplit('/')[-1]}"
    (tmp_path / "workflow.json").write_text(json.dumps(workflow))
    nodes_2.open(tmp_path / "workflow.json")
    nodes_2.page.get_by_role("button", name="View details").click()  # it comes with an answer of the server
    panel = nodes_2.page.get_by_test_id("properties-panel")
    panel.get_by_role("button", name="Download all").wait_for()
    text = panel.inner_text()  # without the nodes, which show the names too
    for name in ("ip-adapter.bin", "diffusion_pytorch_model.safetensors", "sd_xl_base_1.0.safetensors"):
        assert f"absent_{name}" in text


def test_the_blueprint_is_offered_and_draws(server: ComfyServer, front_end: FrontEnd) -> None:  # noqa: F811
    try:
        offered = server.get_json("/global_subgraphs")
    except OSError:
        pytest.skip("this ComfyUI knows no blueprints")
    assert BLUEPRINT.stem in {entry["name"] for entry in offered.values() if PACK_FOLDER in entry["info"]["node_pack"]}
    prompt = front_end.page.evaluate(_ADD, [read(BLUEPRINT), "instantid_example_person.jpg"])
    _assert_not_empty(_saved(server.run(_small(prompt))))
    server.post("/free", {"unload_models": True, "free_memory": True})


def test_the_server_has_texts_and_help_in_each_language(server: ComfyServer) -> None:  # noqa: F811
    texts = server.get_json("/i18n")
    for language in ("en", "zh", "ja"):
        assert (
            texts[language]["nodeDefs"]["ApplyInstantID"]
            == read(ROOT / f"locales/{language}/nodeDefs.json")["ApplyInstantID"]
        )
    assert server.get(f"/extensions/{PACK_FOLDER}/docs/ApplyInstantID/zh.md").decode().startswith("# 应用 InstantID\n")


def test_agents_find_schema_and_twins_on_the_server(server: ComfyServer) -> None:  # noqa: F811
    for file in SCHEMA.parent.iterdir():
        assert server.get(f"/api/workflow_templates/{PACK_FOLDER}/api/{file.name}") == file.read_bytes()


def test_the_setting_of_the_page_keeps_faces_on_the_servers_disk(server: ComfyServer) -> None:  # noqa: F811
    kept = server.base / "user" / FOLDER
    prompt = _small(read(BASIC))
    server.post("/settings/FastInstantID.KeepFaces", False)
    server.run(prompt)
    assert not kept.exists()
    server.post("/settings/FastInstantID.KeepFaces", True)
    server.post("/free", {"unload_models": True, "free_memory": True})
    (sampler,) = (node for node in prompt.values() if node["class_type"] == "ApplyInstantID")
    sampler["inputs"]["weight"] = 0.7
    server.run(prompt)
    files = [*kept.iterdir()]
    assert len(files) >= 2, "a face and an identity"
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    server.post("/settings/FastInstantID.KeepFaces", False)


def test_a_prompt_with_the_loader_of_an_abandoned_pack_runs(server: ComfyServer) -> None:  # noqa: F811
    try:
        assert "InsightFaceLoader" in server.get_json("/node_replacements")
    except OSError:
        pytest.skip("this ComfyUI replaces no nodes")
    prompt = _small(read(BASIC))
    (loader,) = (node for node in prompt.values() if node["class_type"] == "InstantIDFaceAnalysis")
    loader |= {"class_type": "InsightFaceLoader", "inputs": {"provider": "CUDA"}}
    _assert_not_empty(_saved(server.run(prompt)))
