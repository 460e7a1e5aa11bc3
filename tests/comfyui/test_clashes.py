"""ComfyUI lets the pack that is loaded last have a node's id, without a word. We say so when all are loaded, once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import folder_paths
import pytest

from benchmarks.nodes.host import load_pack
from tests.comfyui.installation import Installation, installed
from tests.comfyui.server.host import PACK_FOLDER, ComfyServer

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
BESIDE = """
class InstantIDModelLoader:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES = ()
    CATEGORY = FUNCTION = "zen"

class InstantIDFaceAnalysis(InstantIDModelLoader):
    pass

NODE_CLASS_MAPPINGS = {
    "InstantIDModelLoader": InstantIDModelLoader,
    "InstantIDFaceAnalysis": InstantIDFaceAnalysis,
    "ZenIDCombineFace": InstantIDModelLoader,
}
"""
BUILT_ON_US = """
from custom_nodes.ComfyUI_InstantID.InstantID import ApplyInstantIDAdvanced, InstantIDModelLoader

class WithFaceSelection(ApplyInstantIDAdvanced):
    'Like "ApplyInstantIDAdvanced" of ComfyUI_InstantID.'

class BetterLoader(InstantIDModelLoader):
    'In its place, on purpose.'

NODE_CLASS_MAPPINGS = {"WithFaceSelection": WithFaceSelection, "InstantIDModelLoader": BetterLoader, "odd": object()}
"""
INIT = "from .InstantID import NODE_CLASS_MAPPINGS\n"


@pytest.fixture
def comfyui(tmp_path: Path) -> Iterator[Installation]:
    with installed(tmp_path / "ComfyUI") as installation:
        yield installation


def write_pack(folder: Path, module: str = "InstantID", code: str = OLD_PACK) -> Path:
    """A small pack in the shape of the old one, or another."""
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(INIT.replace("InstantID", module))
    (folder / f"{module}.py").write_text(code)
    return folder


@pytest.fixture
def said_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """``said_of(*folders)``: our warnings when a host has loaded these packs in this order."""

    def load_all(*folders: Path) -> list[str]:
        host = ModuleType("nodes")
        host.NODE_CLASS_MAPPINGS = {}
        monkeypatch.setitem(sys.modules, "nodes", host)
        copies = []
        for folder in folders:
            pack = load_pack(folder)
            host.NODE_CLASS_MAPPINGS |= pack.NODE_CLASS_MAPPINGS or {}
            if clashes := sys.modules.get(f"{pack.__name__}.fast_instantid.comfyui.clashes"):
                copies.append((clashes, pack.NODE_CLASS_MAPPINGS))
        for clashes, nodes in copies:
            clashes.warn_of_clashes(nodes)
        return [
            record.getMessage()
            for record in caplog.records
            if record.name == "fast_instantid" and record.levelno >= logging.WARNING
        ]

    return load_all


def test_alone_and_beside_packs_with_other_ids_we_say_nothing(comfyui: Installation, said_of):
    others = [
        write_pack(comfyui.custom_nodes / "ComfyUI_FaceSelection", "InstantID", BUILT_ON_US),
        write_pack(comfyui.custom_nodes / "ComfyUI_IPAdapter_plus", "IPAdapterPlus", "NODE_CLASS_MAPPINGS = None"),
    ]
    (comfyui.custom_nodes / "example_node.py.example").touch()
    (comfyui.custom_nodes / "removed").symlink_to(comfyui.base / "not there")
    (comfyui.custom_nodes / "loop").symlink_to(comfyui.custom_nodes / "loop")
    write_pack(comfyui.custom_nodes / "not loaded")
    folder_paths.add_model_folder_path("custom_nodes", str(comfyui.base / "missing"))
    assert said_of(comfyui.install("ComfyUI_InstantID"), *others) == []


@pytest.mark.parametrize("name", ["ComfyUI_InstantID", "comfyui_instantid", "InstantID (old) 1.0"])
@pytest.mark.parametrize("first", ["we", "they"])
def test_the_old_pack_beside_us_is_named_once(comfyui: Installation, said_of, name: str, first: str):
    ours, old = comfyui.install(), write_pack(comfyui.custom_nodes / name)
    (warning,) = said_of(*((ours, old) if first == "we" else (old, ours)))
    assert str(old) in warning
    assert str(ours) in warning
    used = "ours: it keeps" if first == "they" else "the other pack's InstantIDModelLoader, ApplyInstantID,"
    assert f"ComfyUI runs {used}" in warning
    assert "Remove one of the two folders" in warning


@pytest.mark.parametrize("first", ["we", "they"])
def test_nobody_is_told_to_remove_a_pack_with_other_nodes(comfyui: Installation, said_of, first: str):
    ours, other = comfyui.install(), write_pack(comfyui.custom_nodes / "ComfyUI_ZenID", "ZenID", BESIDE)
    (warning,) = said_of(*((ours, other) if first == "we" else (other, ours)))
    ids = "InstantIDModelLoader, InstantIDFaceAnalysis"
    assert f"{other} and this pack in {ours} both have the nodes {ids}." in warning
    assert f"ComfyUI runs {'the other pack' if first == 'we' else 'ours'}" in warning
    assert "It has other nodes too: keep it if you use them." in warning
    assert "Remove" not in warning


def test_the_old_pack_is_seen_in_a_second_folder_of_custom_nodes(comfyui: Installation, said_of, tmp_path: Path):
    folder_paths.add_model_folder_path("custom_nodes", str(tmp_path / "more_nodes"))
    old = write_pack(tmp_path / "more_nodes" / "ComfyUI_InstantID")
    assert str(old) in said_of(comfyui.install(), old)[0]


def test_the_real_old_pack_is_recognised(comfyui: Installation, said_of, reference_pack):
    cubiq = comfyui.custom_nodes / "cubiq"
    cubiq.symlink_to(reference_pack.__path__[0])
    (warning,) = said_of(comfyui.install(), cubiq)
    assert str(cubiq) in warning
    assert "ApplyInstantIDControlNet" in warning


def test_two_copies_of_us_are_named_once(comfyui: Installation, said_of):
    """For example a clone, and an installation of the manager under another name."""
    copies = comfyui.install("ComfyUI_InstantID"), comfyui.install("fast-instantid")
    (warning,) = said_of(*copies)
    assert all(str(copy) in warning for copy in copies)
    assert "Remove one of the two folders" in warning


def test_a_server_tells_when_all_packs_are_loaded(real_host: Path, tmp_path: Path):
    """In whatever order the file system names the folders."""
    others = [write_pack(tmp_path / "packs" / name, "ZenID", BESIDE) for name in ("AAA", "zzz")]
    with ComfyServer(real_host, tmp_path / "base", others) as server:
        used = server.get_json("/object_info/InstantIDModelLoader")["InstantIDModelLoader"]["python_module"]
        log = server.log()
    for other in others:
        (line,) = (line for line in log.splitlines() if f"custom_nodes/{other.name} and this pack" in line)
        assert ("the other pack's" in line) == (used == f"custom_nodes.{other.name}")
        assert ("ours: it keeps" in line) == (used == f"custom_nodes.{PACK_FOLDER}")
