"""A user's ComfyUI folder: models, custom nodes by any name, and workflows that are queued."""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import folder_paths
import pytest

from benchmarks.nodes.host import load_pack
from tests.comfyui import tiny
from tests.comfyui.conftest import ROOT

_NOT_SHIPPED = ("tests", "benchmarks", "docs", "examples", "example_workflows", "demo_output", "*.egg-info", ".*")


class Refused(ValueError):
    """The host refuses the workflow; the text is its message to the user."""


class Installation:
    """Make one with :func:`installed`."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.models = base / "models"
        self.custom_nodes = base / "custom_nodes"
        self.custom_nodes.mkdir(parents=True)

    def install(self, name: str = "fast-instantid") -> Path:
        """A copy of this repository under ``custom_nodes``."""
        folder = self.custom_nodes / name
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*_NOT_SHIPPED, "__pycache__"))
        return folder

    def start(self, name: str = "fast-instantid") -> ModuleType:
        """Install the pack, and load it as the host does."""
        return load_pack(self.install(name))


@contextmanager
def installed(base: Path) -> Iterator[Installation]:
    """An installation that the host takes for its own in the block, and forgets after it, modules included."""
    installation = Installation(base)
    kinds = {kind: ([*paths], extensions) for kind, (paths, extensions) in folder_paths.folder_names_and_paths.items()}
    kinds["custom_nodes"] = ([str(installation.custom_nodes)], set())
    for kind in ("instantid", "instantid_people", "instantid_poses", "insightface"):
        kinds.pop(kind, None)
    modules = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "base_path", str(base))
        patch.setattr(folder_paths, "models_dir", str(installation.models))
        patch.setattr(folder_paths, "folder_names_and_paths", kinds)
        patch.setattr(folder_paths, "filename_list_cache", {})
        patch.setattr(sys, "path", [*sys.path])
        patch.syspath_prepend(str(base))  # the host's own folder is where Python starts
        try:
            yield installation
        finally:
            for name in set(sys.modules) - modules:
                if _lies_in(sys.modules[name], base):
                    del sys.modules[name]


def _lies_in(module: ModuleType, folder: Path) -> bool:
    files = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
    return any(str(file).startswith(str(folder)) for file in files)


def queue(node: type, **values: Any) -> tuple[Any, ...]:
    """Run a node of a workflow as the host does, which first checks its values (execution.py, ``validate_inputs``).

    Raises:
        Refused: a value is not one of those offered, or the node's own ``VALIDATE_INPUTS`` does not like it.
    """
    validate = getattr(node, "VALIDATE_INPUTS", None)
    taken = {} if validate is None else inspect.signature(validate).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    own = {name: value for name, value in values.items() if takes_all or name in taken}
    types = node.INPUT_TYPES()
    sockets = {**types["required"], **types.get("optional", {})}
    if missing := types["required"].keys() - values.keys():
        raise Refused(f"Required input is missing: {missing}")
    values = {name: value for name, value in values.items() if name in sockets}  # the host ignores others
    for name in values.keys() - own.keys():
        kind, limits = sockets[name][0], dict(*sockets[name][1:])
        if isinstance(kind, list) and values[name] not in kind:
            raise Refused(f"Value not in list: {name}: {values[name]!r} not in {kind}")
        if kind == "FLOAT" and not limits["min"] <= values[name] <= limits["max"]:
            raise Refused(f"Value of {name} is smaller or bigger than {limits['min']} to {limits['max']}")
    if own and (verdict := validate(**own)) is not True:
        raise Refused(f"Custom validation failed for node: {verdict}")
    return tiny.call(node, **values)
