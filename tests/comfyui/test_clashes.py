"""ComfyUI lets the pack that is loaded last have a node's name, without a word. We say what lies beside us, once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import folder_paths
import pytest

from benchmarks.nodes.host import load_pack
from tests.comfyui.conftest import REFERENCE
from tests.comfyui.installation import Installation, installed

OLD_PACK = """
class InstantIDModelLoader:
    FUNCTION = "load_model"

class ApplyInstantID:
    FUNCTION = "apply_instantid"

class ApplyInstantIDAdvanced(ApplyInstantID):
    pass

NODE_CLASS_MAPPINGS = {
    "InstantIDModelLoader": InstantIDModelLoader,
    "ApplyInstantID": ApplyInstantID,
    "ApplyInstantIDAdvanced": ApplyInstantIDAdvanced,
}
"""
BUILT_ON_US = """
from custom_nodes.ComfyUI_InstantID.InstantID import ApplyInstantIDAdvanced, InstantIDModelLoader

class ApplyInstantIDAdvancedWithFaceSelection(ApplyInstantIDAdvanced):
    'Like "ApplyInstantIDAdvanced" of ComfyUI_InstantID.'

NODE_CLASS_MAPPINGS = {"ApplyInstantIDAdvancedWithFaceSelection": ApplyInstantIDAdvancedWithFaceSelection}
"""
INIT = "from .InstantID import NODE_CLASS_MAPPINGS\n"


@pytest.fixture
def comfyui(tmp_path: Path) -> Iterator[Installation]:
    with installed(tmp_path / "ComfyUI") as installation:
        yield installation


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The logged warnings so far."""
    caplog.set_level(logging.INFO)
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.name == "fast_instantid" and record.levelno >= logging.WARNING
    ]


def write_pack(folder: Path, module: str = "InstantID", code: str = OLD_PACK) -> Path:
    """A small pack in the shape of the old one, or another."""
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(INIT.replace("InstantID", module))
    (folder / f"{module}.py").write_text(code)
    return folder


def load_all(*folders: Path) -> None:
    for folder in folders:
        load_pack(folder)


def test_alone_we_say_nothing(comfyui: Installation, warnings):
    comfyui.start("ComfyUI_InstantID")
    assert not warnings()


def test_other_packs_and_what_else_lies_there_are_none_of_our_business(comfyui: Installation, warnings):
    write_pack(comfyui.custom_nodes / "ComfyUI_FaceSelection", "InstantID", BUILT_ON_US)
    write_pack(comfyui.custom_nodes / "ComfyUI_IPAdapter_plus", "IPAdapterPlus", "NODE_CLASS_MAPPINGS = {}")
    (comfyui.custom_nodes / "example_node.py.example").touch()
    (comfyui.custom_nodes / "single_file.py").write_text("NODE_CLASS_MAPPINGS = {}")
    (comfyui.custom_nodes / "__pycache__").mkdir()
    (comfyui.custom_nodes / "empty").mkdir()
    (comfyui.custom_nodes / "removed").symlink_to(comfyui.base / "not there")
    (comfyui.custom_nodes / "loop").symlink_to(comfyui.custom_nodes / "loop")
    (comfyui.custom_nodes / "binary").mkdir()
    (comfyui.custom_nodes / "binary" / "InstantID.py").write_bytes(bytes(range(256)))
    comfyui.start()
    assert not warnings()


@pytest.mark.parametrize("name", ["ComfyUI_InstantID", "comfyui_instantid", "InstantID (old)"])
@pytest.mark.parametrize("we_are_loaded", ["first", "last"])
def test_the_old_pack_beside_us_is_named_once(comfyui: Installation, warnings, name: str, we_are_loaded: str):
    ours, old = comfyui.install(), write_pack(comfyui.custom_nodes / name)
    load_all(*((ours, old) if we_are_loaded == "first" else (old, ours)))
    (warning,) = warnings()
    assert str(old) in warning
    assert "remove" in warning.lower()


def test_the_real_old_pack_is_recognised(comfyui: Installation, warnings):
    if REFERENCE is None:
        pytest.skip("needs the reference pack: set REFERENCE_PATH to a checkout of cubiq/ComfyUI_InstantID")
    (comfyui.custom_nodes / "cubiq").symlink_to(REFERENCE)
    comfyui.start()
    (warning,) = warnings()
    assert str(comfyui.custom_nodes / "cubiq") in warning


def test_the_old_pack_is_seen_in_a_second_folder_of_custom_nodes(comfyui: Installation, warnings, tmp_path: Path):
    folder_paths.add_model_folder_path("custom_nodes", str(tmp_path / "missing"))
    folder_paths.add_model_folder_path("custom_nodes", str(tmp_path / "more_nodes"))
    old = write_pack(tmp_path / "more_nodes" / "ComfyUI_InstantID")
    comfyui.start()
    (warning,) = warnings()
    assert str(old) in warning


def test_two_copies_of_us_are_named_once(comfyui: Installation, warnings):
    """For example a clone, and an installation of the manager under another name."""
    copies = comfyui.install("ComfyUI_InstantID"), comfyui.install("fast-instantid")
    load_all(*copies)
    (warning,) = warnings()
    assert all(str(copy) in warning for copy in copies)
    assert "remove" in warning.lower()


@pytest.mark.parametrize("name", ["ComfyUI_InstantID.disabled", ".disabled/comfyui_instantid@1_0_0"])
def test_disabled_packs_are_no_clash(comfyui: Installation, warnings, name: str):
    write_pack(comfyui.custom_nodes / name)
    comfyui.install("Copy.disabled")
    comfyui.start()
    assert not warnings()
