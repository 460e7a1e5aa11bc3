"""The files that describe our nodes to others, made from the nodes: a JSON schema, and the English texts of the page.

``python -m tests.comfyui.node_schema`` writes both anew, after an input was added or a tooltip was changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from benchmarks.nodes.host import load_pack
from tests.comfyui.conftest import ROOT  # which brings a host in sight

import folder_paths  # isort: skip

SCHEMA = ROOT / "example_workflows" / "api" / "nodes.schema.json"
LOCALES = ROOT / "locales"
_TYPES = {"FLOAT": "number", "INT": "integer", "BOOLEAN": "boolean", "STRING": "string"}
_LINK = {
    "description": "The output of another node: the node's key in the prompt, and the number of the output.",
    "type": "array",
    "prefixItems": [{"type": "string"}, {"type": "integer", "minimum": 0}],
    "minItems": 2,
    "maxItems": 2,
}


def inputs_of(node: type) -> dict[str, tuple[Any, dict[str, Any], bool]]:
    """Type, options, and whether it is required, of each input that a prompt may have."""
    with mock.patch.object(folder_paths, "get_filename_list", return_value=[]):
        sections = node.INPUT_TYPES()
    return {
        name: (kind, options, section == "required")
        for section in ("required", "optional")
        for name, (kind, options) in sections.get(section, {}).items()
    }


def outputs_of(node: type) -> list[tuple[str, str]]:
    """Name and type of each output."""
    return list(zip(getattr(node, "RETURN_NAMES", node.RETURN_TYPES), node.RETURN_TYPES, strict=True))


def json_schema(pack: ModuleType) -> dict[str, Any]:
    """A prompt in ComfyUI's API format: what it may say to our nodes. Nodes of others are left open."""
    nodes = pack.NODE_CLASS_MAPPINGS
    defined = {id: _node(id, pack.NODE_DISPLAY_NAME_MAPPINGS[id], node) for id, node in nodes.items()}
    rules = [{"if": {"properties": {"class_type": {"const": id}}}, "then": {"$ref": f"#/$defs/{id}"}} for id in defined]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A prompt with Fast InstantID's nodes, in ComfyUI's API format",
        "type": "object",
        "additionalProperties": {"type": "object", "required": ["class_type", "inputs"], "allOf": rules},
        "$defs": {"link": _LINK, **defined},
    }


def _node(id: str, title: str, node: type) -> dict[str, Any]:
    inputs = inputs_of(node)
    return {
        "title": title,
        "description": node.DESCRIPTION,
        "outputs": [{"name": name, "type": kind} for name, kind in outputs_of(node)],
        "properties": {
            "class_type": {"const": id},
            "inputs": {
                "type": "object",
                "properties": {name: _input(kind, options) for name, (kind, options, _) in inputs.items()},
                "required": [name for name, (*_, required) in inputs.items() if required],
                "additionalProperties": False,
            },
        },
    }


def _input(kind: Any, options: dict[str, Any]) -> dict[str, Any]:
    link, said = {"$ref": "#/$defs/link"}, {"description": options["tooltip"]}
    if isinstance(kind, list):  # the names of model files differ between installations
        value: dict[str, Any] = {"enum": kind} if kind else {"type": "string"}
        said |= {"default": options.get("default", kind[0])} if kind else {}
    elif kind in _TYPES:
        value = {"type": _TYPES[kind]}
        bounds = {"minimum": "min", "maximum": "max"}
        value |= {name: options[option] for name, option in bounds.items() if option in options}
        said |= {"default": options["default"]}
    else:
        return {**said, "socket": kind, **link}
    return {**said, "anyOf": [value, link]}


def english(pack: ModuleType) -> dict[str, Any]:
    """The texts of the nodes as the page reads translations. Those of the outputs are kept from the file."""
    kept = read(LOCALES / "en" / "nodeDefs.json")
    return {
        id: {
            "display_name": pack.NODE_DISPLAY_NAME_MAPPINGS[id],
            "description": node.DESCRIPTION,
            "inputs": {name: {"tooltip": options["tooltip"]} for name, (_, options, _) in inputs_of(node).items()},
            "outputs": kept.get(id, {}).get("outputs", {}),
        }
        for id, node in pack.NODE_CLASS_MAPPINGS.items()
    }


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    pack = load_pack(ROOT)
    for path, made in ((SCHEMA, json_schema(pack)), (LOCALES / "en" / "nodeDefs.json", english(pack))):
        path.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
