"""What the doctor says of packages, face backends, node packs and GPUs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from fast_instantid.observe import node_packs
from fast_instantid.observe.doctor import Finding, Places, faces, machine, versions

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places.of_shell(tmp_path)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a distribution's metadata first on Python's path."""

    def installed(name: str, version: str, folder: str = "site-packages") -> Path:
        site = tmp_path / folder
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(str(site))
        return site

    return installed


def only(findings: Any, level: str, *words: str) -> Finding:
    """The one of that level that speaks of these words."""
    (found,) = [f for f in findings if f.level == level and all(w.lower() in f.found.lower() for w in words)]
    return found


# Packages


def test_what_is_installed_here_is_fit(places: Places):
    only(versions.needed(places), "ok", f"torch {torch.__version__}", "numpy", "safetensors")


def test_damaged_metadata_hides_nothing_else(places: Places, install):
    site = install("somebodys", "1.0")
    (site / "somebodys-1.0.dist-info" / "METADATA").write_bytes(b"Name: caf\xe9\n")
    findings = [*versions.needed(places)]
    only(findings, "ok", f"torch {torch.__version__}")


def test_a_library_that_cannot_be_loaded(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "safetensors.py").write_text("raise ImportError('numpy.core.multiarray failed to import')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "safetensors")
    monkeypatch.setattr(versions, "import_module", machine.import_module.__wrapped__)  # without its cache
    assert "--force-reinstall --no-deps safetensors" in only(versions.needed(places), "broken", "multiarray").do


# The machine


def test_this_machine(places: Places):
    findings = list(machine.torch_and_device(places))
    only(findings, "ok", "Python", sys.executable)
    only(findings, "ok", f"torch {torch.__version__}", "everything runs on")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a torch that sees no GPU")
@pytest.mark.parametrize("vendor", ["NVIDIA", "AMD"])
def test_a_gpu_that_torch_does_not_use_is_a_warning(places: Places, monkeypatch: pytest.MonkeyPatch, vendor: str):
    monkeypatch.setattr(machine, "gpu_vendor", lambda: vendor)
    found = only(machine.torch_and_device(places), "warning", f"there is an {vendor} GPU")
    assert "CPU" in found.why
    assert found.do


def write_pci(root: Path, **content: str) -> Path:
    """A machine with one device on PCI, as Linux lists it."""
    device = root / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    for name, text in content.items():
        (device / name).write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("content", "vendor"),
    [
        ({"class": "0x030000", "vendor": "0x10de"}, "NVIDIA"),
        ({"class": "0x030200", "vendor": "0x10de"}, "NVIDIA"),
        ({"class": "0x040300", "vendor": "0x10de"}, None),  # its sound
        ({"class": "0x030000", "vendor": "0x1002"}, "AMD"),
        ({"class": "0x030000", "vendor": "0x8086"}, None),
        ({"class": "garbage", "vendor": ""}, None),
    ],
)
def test_a_gpu_without_a_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, str], vendor: str | None
):
    monkeypatch.setattr(machine, "find_gpus", lambda: ([], ""))
    assert machine.gpu_vendor(write_pci(tmp_path, **content)) == vendor


@pytest.mark.parametrize("sign", ["proc/driver/nvidia/version", "usr/lib/wsl/lib/libcuda.so.1"])
def test_signs_of_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: str):
    monkeypatch.setattr(machine, "find_gpus", lambda: ([], ""))
    (tmp_path / sign).parent.mkdir(parents=True)
    (tmp_path / sign).touch()
    assert machine.gpu_vendor(tmp_path) == "NVIDIA"


# Face networks


def test_torch_really_runs_them(places: Places):
    only(faces.backend(places), "ok", "torch on")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(places: Places):
    only(faces.backend(replace(places, backend="torch", device="cuda")), "broken", "cuda")


def test_onnxruntime_really_runs_them(places: Places):
    only(
        faces.backend(replace(places, backend="onnxruntime", device="cpu")), "ok", "onnxruntime", "CPUExecutionProvider"
    )


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="needs the CPU build")
def test_a_provider_of_another_build(places: Places):
    found = only(
        faces.backend(replace(places, backend="onnxruntime", device="cuda")), "broken", "CUDAExecutionProvider"
    )
    assert "onnxruntime-gpu" in found.why
    assert "pip uninstall onnxruntime" in found.do


def test_rocm_is_gone(places: Places):
    found = only(
        faces.backend(replace(places, backend="onnxruntime", device="rocm")), "broken", "ROCMExecutionProvider"
    )
    assert "7.1" in found.why
    assert "migraphx" in found.do


def test_two_onnxruntimes_are_named_where_the_provider_is_missing(places: Places, install):
    install("onnxruntime-directml", "1.20.1")
    found = only(faces.backend(replace(places, backend="onnxruntime", device="openvino")), "broken", "OpenVINO")
    assert "onnxruntime, onnxruntime-directml" in found.why


# Node packs


def write_packs(comfyui: Path, ours: list[str], old: list[str]) -> Places:
    for name in ours:
        (comfyui / "custom_nodes" / name / "fast_instantid" / "comfyui").mkdir(parents=True)
    for name in old:
        (comfyui / "custom_nodes" / name).mkdir(parents=True)
        (comfyui / "custom_nodes" / name / "InstantID.py").write_text("class ApplyInstantID:\n    pass\n")
    (comfyui / "custom_nodes").mkdir(exist_ok=True)
    return Places.of_comfyui(comfyui)


def examined_packs(places: Places) -> list[tuple[str, str]]:
    return [(finding.level, finding.found) for finding in node_packs.node_packs(places)]


def test_one_pack(tmp_path: Path):
    ((level, text),) = examined_packs(write_packs(tmp_path, ["ComfyUI_InstantID"], ["cubiq.disabled"]))
    assert level == "ok"
    assert "ComfyUI_InstantID" in text


def test_the_old_pack_beside_ours(tmp_path: Path):
    places = write_packs(tmp_path, ["ComfyUI_InstantID"], ["comfyui_instantid_old"])
    found = only(node_packs.node_packs(places), "warning", "comfyui_instantid_old")
    assert found.do.startswith("rename comfyui_instantid_old to comfyui_instantid_old.disabled")
    assert [level for level, _ in examined_packs(places)] == ["warning"]


def test_two_copies_of_ours(tmp_path: Path):
    found = examined_packs(write_packs(tmp_path, ["ComfyUI_InstantID", "fast-instantid"], []))
    assert [level for level, _ in found] == ["warning"]
    assert "fast-instantid" in found[0][1]


def test_none_of_ours(tmp_path: Path):
    ((level, text),) = examined_packs(write_packs(tmp_path, [], ["ComfyUI_InstantID"]))
    assert level == "note"
    assert "the old one is" in text
