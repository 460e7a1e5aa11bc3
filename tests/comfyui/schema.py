"""What of a node pack is an interface: workflows store the names, orders and values, other packs call the functions.

With ``COMFYUI_PATH`` and ``REFERENCE_PATH`` set, ``python -m tests.comfyui.schema`` writes ``schema.json`` anew, which
freezes this for cubiq/ComfyUI_InstantID at 1ef34ef.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from benchmarks.nodes.host import load_pack
from tests.comfyui.conftest import REFERENCE  # which brings a host in sight

import folder_paths  # isort: skip

FILE = Path(__file__).with_name("schema.json")
FUNCTIONS = ("extractFeatures", "draw_kps")


def describe(pack: ModuleType) -> dict[str, Any]:
    """The interface of a loaded pack, as JSON has it: ids, sockets, values and signatures, in order."""
    names = pack.NODE_DISPLAY_NAME_MAPPINGS
    module = importlib.import_module(f"{pack.__name__}.InstantID")
    described = {
        "nodes": {id: {"name": names[id], **_node(node)} for id, node in pack.NODE_CLASS_MAPPINGS.items()},
        "functions": {name: _parameters(getattr(module, name)) for name in FUNCTIONS},
    }
    return json.loads(json.dumps(described))


def _node(node: type) -> dict[str, Any]:
    with mock.patch.object(folder_paths, "get_filename_list", lambda kind: [f"a file of {kind}"]):
        sections = node.INPUT_TYPES()
    return {
        "class": node.__name__,
        "category": node.CATEGORY,
        "function": node.FUNCTION,
        "parameters": _parameters(getattr(node, node.FUNCTION))[1:],
        "inputs": {
            section: [[name, kind, *options] for name, (kind, *options) in inputs.items()]
            for section, inputs in sections.items()
        },
        "return_types": node.RETURN_TYPES,
        "return_names": getattr(node, "RETURN_NAMES", node.RETURN_TYPES),
        "output_node": getattr(node, "OUTPUT_NODE", False),
    }


def _parameters(function: Callable) -> list[list[str]]:
    """Name, and default where there is one."""
    parameters = inspect.signature(function).parameters.values()
    return [[p.name] if p.default is p.empty else [p.name, repr(p.default)] for p in parameters]


if __name__ == "__main__":
    text = json.dumps(describe(load_pack(Path(REFERENCE))), indent=1)
    FILE.write_text(text + "\n")
