"""The interface for old workflows and other packs: the reference's, followed by our additions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui import schema

ROOT = Path(__file__).resolve().parent.parent.parent
FROZEN = json.loads(schema.FILE.read_text())
IDS = list(FROZEN["nodes"])


@pytest.fixture(scope="module")
def described(our_pack) -> dict[str, Any]:
    return schema.describe(our_pack)


@pytest.fixture(params=IDS)
def node(request: pytest.FixtureRequest, described) -> tuple[dict[str, Any], dict[str, Any]]:
    """Each node in turn, frozen and ours."""
    assert request.param in described["nodes"], f"the node {request.param} is missing"
    return FROZEN["nodes"][request.param], described["nodes"][request.param]


def test_the_frozen_interface_is_the_references(reference_pack):
    assert schema.describe(reference_pack) == FROZEN


def test_every_node_is_there_in_order(described):
    assert list(described["nodes"])[: len(IDS)] == IDS


def test_names_and_sockets_are_the_references(node):
    frozen, ours = node
    for what in ("name", "class", "category", "function", "return_types", "return_names", "output_node"):
        assert ours[what] == frozen[what], what


def test_inputs_are_the_references_and_ours_come_after(node):
    frozen, ours = node
    assert not ours["inputs"].keys() - {"required", "optional"}, "other sections change what the host's cache sees"
    assert [name for name, *_ in ours["inputs"]["required"]] == [name for name, *_ in frozen["inputs"]["required"]]
    for section, inputs in frozen["inputs"].items():
        given = ours["inputs"][section][: len(inputs)]
        assert [_without_our_words(entry) for entry in given] == [_same_default(entry) for entry in inputs]
        for (name, kind, *_), (_, our_kind, *_) in zip(inputs, given, strict=True):
            assert our_kind[: len(kind)] == kind, f"{name}: new values come after the old ones"


def _without_our_words(entry: list[Any]) -> list[Any]:
    """An input without what only the page shows, and a choice without its values, which the caller compares."""
    name, kind, *options = entry
    rest = {key: value for key, value in (options[0] if options else {}).items() if key not in ("tooltip", "advanced")}
    return [name, "a choice" if isinstance(kind, list) else kind, _with_default(kind, rest)]


def _same_default(entry: list[Any]) -> list[Any]:
    name, kind, *options = entry
    return [name, "a choice" if isinstance(kind, list) else kind, _with_default(kind, options[0] if options else {})]


def _with_default(kind: Any, options: dict[str, Any]) -> dict[str, Any]:
    """A choice without a default has its first value."""
    return {"default": kind[0], **options} if isinstance(kind, list) else options


def test_new_inputs_may_be_left_out(node):
    frozen, ours = node
    old = [name for section in frozen["inputs"].values() for name, *_ in section]
    new = [entry for section in ours["inputs"].values() for entry in section if entry[0] not in old]
    defaults = {name: default for name, *default in ours["parameters"]}
    assert all(defaults[name] for name, *_ in new)
    for name, kind, *options in new:
        if isinstance(kind, list) or kind in ("FLOAT", "INT", "BOOLEAN", "STRING"):
            assert repr(_with_default(kind, options[0])["default"]) == defaults[name][0], name


def test_methods_take_the_references_arguments(node):
    frozen, ours = node
    assert ours["parameters"][: len(frozen["parameters"])] == frozen["parameters"]
    assert all(default for _, *default in ours["parameters"][len(frozen["parameters"]) :])


@pytest.mark.parametrize("name", schema.FUNCTIONS)
def test_functions_take_the_references_arguments(described, name: str):
    frozen = FROZEN["functions"][name]
    assert described["functions"][name][: len(frozen)] == frozen
    assert all(default for _, *default in described["functions"][name][len(frozen) :])


def test_the_papers_layers_are_offered_and_not_the_default(described):
    for id in ("ApplyInstantID", "ApplyInstantIDAdvanced"):
        inputs = {name: kind for name, kind, *_ in described["nodes"][id]["inputs"]["optional"]}
        assert inputs["layers"] == ["reference", "paper"]


def test_every_input_has_a_tooltip(node):
    _, ours = node
    entries = [entry for section in ours["inputs"].values() for entry in section]
    assert not [name for name, _, *options in entries if not options or not options[0].get("tooltip", "").strip()]


@pytest.mark.parametrize("id", IDS)
def test_packs_that_derive_nodes_change_only_theirs(our_pack, id: str):
    """They write into the dictionaries of ``INPUT_TYPES``."""
    before = {name: node.INPUT_TYPES() for name, node in our_pack.NODE_CLASS_MAPPINGS.items()}
    for section in our_pack.NODE_CLASS_MAPPINGS[id].INPUT_TYPES().values():
        for _, *options in section.values():
            options[0]["default"] = "changed"
        section["another"] = ("INT",)
    assert {name: node.INPUT_TYPES() for name, node in our_pack.NODE_CLASS_MAPPINGS.items()} == before


@pytest.mark.parametrize("id", IDS)
def test_every_node_is_described_and_has_a_help_page(our_pack, id: str):
    node = our_pack.NODE_CLASS_MAPPINGS[id]
    assert node.DESCRIPTION.strip()
    page = (ROOT / our_pack.WEB_DIRECTORY / "docs" / f"{id}.md").read_text()
    inputs = [name for section in node.INPUT_TYPES().values() for name in section]
    assert not [name for name in inputs if name not in page], "inputs that the page does not mention"
