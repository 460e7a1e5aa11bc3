"""What the doctor says of packages, face backends, packs, GPUs and settings."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from fast_instantid.observe import gpu as drivers
from fast_instantid.observe.doctor import Finding, Places, faces, gpus, machine, packs, settings, versions
from fast_instantid.observe.gpu import GpuInfo, Gpus, PcieLink, ProcessMemory, Reading

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
    only(versions.needed(places), "ok", f"torch {torch.__version__}", "numpy", "xxhash")


def test_too_old_is_broken_where_nothing_works_without_it(places: Places, install):
    install("numpy", "1.21.0")
    found = only(versions.needed(places), "broken", "numpy 1.21.0")
    assert "1.24" in found.why
    install("diffusers", "0.20.0")
    assert "generate" in only(versions.needed(places), "warning", "diffusers 0.20.0").why


def test_other_versions_than_tested_are_one_line(places: Places, install):
    install("numpy", "3.0.1")
    install("xxhash", "9.0")
    found = only(versions.untested(places), "note")
    assert "numpy 3.0.1 (2.4)" in found.found
    assert "xxhash 9.0 (4.1)" in found.found
    assert "safetensors" not in found.found


def test_a_version_that_cannot_be_told_is_not_too_old(places: Places, install):
    install("numpy", "weird")
    only(versions.needed(places), "ok", "numpy weird")
    only(versions.untested(places), "note", "numpy weird")


def test_damaged_metadata_hides_nothing_else(places: Places, install):
    site = install("somebodys", "1.0")
    (site / "somebodys-1.0.dist-info" / "METADATA").write_bytes(b"Name: caf\xe9\n")
    findings = [finding for check in versions.CHECKS for finding in check(places)]
    only(findings, "ok", f"torch {torch.__version__}")


@pytest.mark.parametrize(("vendor", "names"), [("nvidia", "nvidia-ml-py onnxruntime-gpu"), (None, "onnxruntime")])
def test_what_could_be_installed_fits_the_machine(
    places: Places, monkeypatch: pytest.MonkeyPatch, vendor: str | None, names: str
):
    monkeypatch.setattr(versions, "gpu_beside", lambda: (vendor, ""))
    monkeypatch.setattr(versions, "installed", dict)
    found = only(versions.not_there(places), "note")
    asked = {name for name in found.do.split() if name.startswith(("nvidia", "onnxruntime"))}
    assert asked == set(names.split())


@pytest.mark.parametrize(("version", "said"), [("0.3.64", False), ("0.8.0", False), ("0.2.1", True)])
def test_comfyuis_version(tmp_path: Path, version: str, said: bool):
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    text = " ".join(finding.found for finding in versions.untested(Places.of_comfyui(tmp_path)))
    assert (f"ComfyUI {version}" in text) == said


@pytest.mark.parametrize(("other", "level"), [("4.11.0.86", "note"), ("5.0.0", "warning")])
def test_two_opencvs(places: Places, install, other: str, level: str):
    install("opencv-contrib-python", other)
    found = only(versions.opencv(places), level, "opencv-contrib-python")
    assert "pip uninstall" in found.do


def test_an_opencv_that_cannot_be_loaded(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cv2.py").write_text("raise ImportError('numpy.core.multiarray failed to import')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cv2")
    assert "numpy" in only(versions.opencv(places), "broken", "multiarray").why


def test_a_package_that_is_there_twice(places: Places, install):
    site = install("torch", "2.1.0")
    found = only(versions.twice(places), "warning", "torch", "2 times", "2.1.0", str(site))
    assert "uninstall" in found.do


def test_the_table_is_what_is_tested_and_declared():
    """In constraints.txt and pyproject.toml; what a table says must be true."""
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.M))
    project = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|diffusers|onnxruntime|download|observe) = \[(.*?)\]", project, re.M | re.S)
    declared = dict(re.findall(r'"([\w-]+)>=([\w.]+)', "".join(lists)))
    assert {package.name for package in versions.PACKAGES} == declared.keys()
    for package in versions.PACKAGES:
        assert package.minimum == declared[package.name], package.name
        assert any(pinned[package.name.replace("-", "_")
                   if package.name.replace("-", "_") in pinned else package.name].startswith(tested)
                   for tested in package.tested), package.name  # fmt: skip
    assert pinned["insightface"] == versions.ORACLE.tested[0]
    assert all(version in (ROOT / "README.md").read_text() for version in versions.TESTED_COMFYUI)
    assert "torch==2.11" in (ROOT / ".ci" / "comfyui").read_text()
    assert "2.11" in versions.PACKAGES[0].tested
    lowest = re.search(r'requires-python = ">=(\d+)\.(\d+)"', project)
    assert lowest is not None
    assert (int(lowest[1]), int(lowest[2])) == machine._OLDEST_PYTHON


# The machine


def test_this_machine(places: Places):
    findings = [finding for check in machine.CHECKS for finding in check(places)]
    only(findings, "ok", "Python", sys.executable)
    only(findings, "ok", f"torch {torch.__version__}")
    only(findings, "ok", "everything runs on")


def test_an_old_python(places: Places, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    only(machine.python(places), "broken", "too old")


def test_little_memory(places: Places, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "main_memory", lambda: 8 * GIB)
    only(machine.system(places), "note", "8.0 GiB")


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((8, 6), ["sm_80", "sm_90"], True),
        ((8, 6), ["sm_86"], True),
        ((8, 0), ["sm_86"], False),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_80", "compute_90"], True),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_90a", "compute_90a"], False),
        ((6, 1), ["sm_75", "compute_90"], False),
    ],
)
def test_which_gpus_a_build_runs_on(capability: tuple[int, int], built_for: list[str], runs: bool):
    assert machine.runs_on(*capability, built_for) == runs


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a torch that sees no GPU")
@pytest.mark.parametrize("vendor", ["nvidia", "amd"])
def test_a_gpu_that_torch_was_not_built_for(places: Places, monkeypatch: pytest.MonkeyPatch, vendor: str):
    card = FakeGpu(GpuInfo(0, "A Card", vendor))
    monkeypatch.setattr(drivers, "find_gpus", lambda: Gpus([card], []))
    found = only(machine.device(places), "warning", "A Card is there", "built for")
    assert "build of torch" in found.do


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
        ({"class": "0x030000", "vendor": "0x10de"}, "nvidia"),
        ({"class": "0x030200", "vendor": "0x10de"}, "nvidia"),
        ({"class": "0x040300", "vendor": "0x10de"}, None),  # its sound
        ({"class": "0x030000", "vendor": "0x1002"}, "amd"),
        ({"class": "0x030000", "vendor": "0x1002", "mem_info_vram_total": str(16 * GIB)}, "amd"),
        ({"class": "0x030000", "vendor": "0x1002", "mem_info_vram_total": str(GIB // 2)}, None),  # in the processor
        ({"class": "0x030000", "vendor": "0x8086"}, None),
        ({"class": "garbage", "vendor": ""}, None),
    ],
)
def test_a_gpu_without_a_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, str], vendor: str | None
):
    monkeypatch.setattr(drivers, "find_gpus", lambda: Gpus([], []))
    assert machine.gpu_beside(write_pci(tmp_path, **content))[0] == vendor


@pytest.mark.parametrize("sign", ["proc/driver/nvidia/version", "usr/lib/wsl/lib/libcuda.so.1"])
def test_signs_of_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: str):
    monkeypatch.setattr(drivers, "find_gpus", lambda: Gpus([], []))
    (tmp_path / sign).parent.mkdir(parents=True)
    (tmp_path / sign).touch()
    assert machine.gpu_beside(tmp_path)[0] == "nvidia"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a torch that sees no GPU")
def test_a_gpu_that_lies_idle_is_a_warning(places: Places, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "gpu_beside", lambda: ("nvidia", "a GPU of NVIDIA's"))
    assert "CPU" in only(machine.device(places), "warning", "a GPU of NVIDIA's is there").why


# Face networks


def test_torch_really_runs_them(places: Places):
    only(faces.backend(places), "ok", "torch on")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(places: Places):
    only(faces.backend(places.asking("torch", "cuda")), "broken", "cuda")


def test_onnxruntime_really_runs_them(places: Places):
    only(faces.backend(places.asking("onnxruntime", "cpu")), "ok", "onnxruntime", "CPUExecutionProvider")


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="needs the CPU build")
def test_a_provider_of_another_build(places: Places):
    found = only(faces.backend(places.asking("onnxruntime", "cuda")), "broken", "CUDAExecutionProvider")
    assert "onnxruntime-gpu" in found.why
    assert "pip uninstall onnxruntime" in found.do


def test_rocm_is_gone(places: Places):
    found = only(faces.backend(places.asking("onnxruntime", "rocm")), "broken", "ROCMExecutionProvider")
    assert "7.1" in found.why
    assert "migraphx" in found.do


@pytest.mark.parametrize(("backend", "level"), [("torch", "note"), ("onnxruntime", "warning")])
def test_two_onnxruntimes(places: Places, install, backend: str, level: str):
    install("onnxruntime-gpu", "1.20.1")
    found = only(faces.several_onnxruntimes(places.asking(backend, "cpu")), level, "onnxruntime-gpu 1.20.1")
    assert "pip install onnxruntime-gpu" in found.do


def test_onnxruntimes_companions_are_no_second_one(places: Places, install):
    install("onnxruntime-extensions", "0.14")
    assert not list(faces.several_onnxruntimes(places))


def test_cuda_libraries_that_do_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    assert "missing" in faces._library_error("cuda")
    (tmp_path / "capi").mkdir()
    for name in ("libonnxruntime_providers_cuda.so", "onnxruntime_providers_cuda.dll"):
        (tmp_path / "capi" / name).write_bytes(b"\x7fELF" + bytes(200))
    assert "cannot load" in faces._library_error("cuda")


def test_another_cuda_than_torchs():
    reason = "libcublasLt.so.12: cannot open shared object file: No such file or directory"
    assert "CUDA 12" in faces.cuda_versions(reason, "13.0")
    assert not faces.cuda_versions(reason, "12.8")
    assert not faces.cuda_versions("libcudnn.so.9: cannot open shared object file", "13.0")


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
    return [(finding.level, finding.found) for check in packs.CHECKS for finding in check(places)]


def test_one_pack(tmp_path: Path):
    ((level, text),) = examined_packs(write_packs(tmp_path, ["ComfyUI_InstantID"], ["cubiq.disabled"]))
    assert level == "ok"
    assert "ComfyUI_InstantID" in text


def test_the_old_pack_beside_ours(tmp_path: Path):
    places = write_packs(tmp_path, ["ComfyUI_InstantID"], ["comfyui_instantid_old"])
    found = only(packs.clashes(places), "warning", "comfyui_instantid_old")
    assert "take as long as they did without this pack" in found.why
    assert [level for level, _ in examined_packs(places)] == ["warning"]


def test_two_copies_of_ours(tmp_path: Path):
    found = examined_packs(write_packs(tmp_path, ["ComfyUI_InstantID", "fast-instantid"], []))
    assert [level for level, _ in found] == ["warning", "note"]
    assert "fast-instantid" in found[1][1]


def test_a_name_that_cannot_be_imported(tmp_path: Path):
    places = write_packs(tmp_path, ["InstantID (fast) 1"], [])
    assert "imported by nobody" in only(packs.name_of_folder(places), "note", "InstantID (fast) 1").why


def test_none_of_ours(tmp_path: Path):
    ((level, text),) = examined_packs(write_packs(tmp_path, [], ["ComfyUI_InstantID"]))
    assert level == "note"
    assert "the old one is" in text


# GPUs


@dataclass
class FakeGpu:
    """A GPU at the boundary of the driver."""

    info: GpuInfo = field(default_factory=lambda: GpuInfo(0, "A Card", "nvidia", "580.65", 24 * GIB))
    reading: Reading = field(default_factory=lambda: Reading(memory_used=2 * GIB, utilization=0.0))
    pcie: PcieLink | None = None
    holders: list[ProcessMemory] | None = None

    def read(self) -> Reading:
        return self.reading

    def link(self) -> PcieLink | None:
        return self.pcie

    def processes(self) -> list[ProcessMemory] | None:
        return self.holders


def test_free_memory():
    found = only(gpus.memory(FakeGpu(holders=[ProcessMemory(os.getpid(), "python", GIB)])), "ok", "22.0 of 24.0 GiB")
    assert "this process 1.0 GiB" in found.found


def test_memory_that_others_hold():
    holders = [ProcessMemory(7, "python", 9 * GIB), ProcessMemory(8, "blender", 10 * GIB), ProcessMemory(9, None, None)]
    gpu = FakeGpu(reading=Reading(memory_used=20 * GIB), holders=holders)
    found = only(gpus.memory(gpu), "warning", "4.0 of 24.0 GiB")
    assert "blender (pid 8) 10.0 GiB, python (pid 7) 9.0 GiB, a process (pid 9)" in found.found


@pytest.mark.parametrize(
    ("holders", "used", "level"),
    [
        ([], 22 * GIB, "warning"),  # a container does not see those outside
        (None, 22 * GIB, "warning"),
        ([ProcessMemory(os.getpid(), "python", 12 * GIB)], 20 * GIB, "warning"),
        ([ProcessMemory(os.getpid(), "python", 20 * GIB)], 20 * GIB, "ok"),
        ([ProcessMemory(os.getpid(), "python", None)], 20 * GIB, "ok"),  # Windows tells no amounts
        ([ProcessMemory(7, "blender", None)], 20 * GIB, "warning"),
    ],
)
def test_memory_of_which_nobody_is_named(holders: list[ProcessMemory] | None, used: int, level: str):
    only(gpus.memory(FakeGpu(reading=Reading(memory_used=used), holders=holders)), level, "GiB free")


@pytest.mark.parametrize("holders", [[], None, [ProcessMemory(70001, "python", 16 * GIB)]])
def test_our_own_memory_is_nobody_elses(monkeypatch: pytest.MonkeyPatch, holders: list[ProcessMemory] | None):
    """In a container, this process is not listed, or under another number."""
    monkeypatch.setattr(gpus, "_of_this_process", lambda: 15 * GIB)
    only(gpus.memory(FakeGpu(reading=Reading(memory_used=16 * GIB), holders=holders)), "ok", "8.0 of 24.0 GiB")


def test_a_small_card_and_one_that_says_nothing():
    small = FakeGpu(GpuInfo(0, "Small", "nvidia", None, 6 * GIB), Reading(memory_used=0))
    only(gpus.memory(small), "note", "6.0 of 6.0 GiB")
    only(gpus.memory(FakeGpu(reading=Reading())), "note", "does not say")


@pytest.mark.parametrize(
    ("link", "utilization", "level", "words"),
    [
        (PcieLink(4, 16, 4, 16), 0.9, "ok", "4.0 x16"),
        (PcieLink(1, 16, 4, 16), 0.0, "ok", "while idle"),
        (PcieLink(1, 16, 4, 16), None, "ok", "while idle"),
        (PcieLink(1, 16, 4, 16), 0.9, "note", "though the GPU is busy"),
        (PcieLink(3, 4, 3, 16), 0.9, "warning", "4 of 16 lanes"),
        (PcieLink(1, 4, 3, 16), 0.0, "note", "4 of 16 lanes"),
        (PcieLink(1, 4, 3, 16), None, "note", "4 of 16 lanes"),
    ],
)
def test_pcie(link: PcieLink, utilization: float | None, level: str, words: str):
    (found,) = gpus.pcie(0, link, utilization)
    assert (found.level, words in found.found) == (level, True)
    if "lanes" in words:  # 7.6 GB at 3.0 x4 (3.94 GB/s) and x16
        assert "1,929 ms in place of 482 ms" in found.why
        assert ("look again" in found.do) == (level == "note")


def test_a_slot_with_few_lanes():
    findings = list(gpus.pcie(0, PcieLink(4, 8, 4, 8), 0.0))
    assert [finding.level for finding in findings] == ["ok", "note"]
    assert "482 ms" in findings[1].why  # 7.6 GB at 15.75 GB/s


def test_a_generation_newer_than_this_code():
    (found,) = gpus.pcie(0, PcieLink(9, 8, 9, 16), 0.9)
    assert found.level == "warning"
    assert " ms" not in found.why


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a torch that sees no GPU")
@pytest.mark.parametrize(("vendor", "said"), [("nvidia", True), ("amd", False), (None, False)])
def test_what_cannot_be_seen_is_said_where_there_is_a_sign_of_it(
    places: Places, monkeypatch: pytest.MonkeyPatch, vendor: str | None, said: bool
):
    reason = "NVIDIA GPUs: the package nvidia-ml-py is not installed; install it"
    monkeypatch.setattr(drivers, "find_gpus", lambda: Gpus([], [reason]))
    monkeypatch.setattr(gpus, "gpu_beside", lambda: (vendor, "a card"))
    (found,) = gpus.gpus(places)
    assert found.level == ("ok" if vendor is None else "note")
    assert (f"{reason}." == found.why) == said
    assert "could be seen" in found.found or "a card is there" in found.found


def test_a_gpu_is_examined_whole(places: Places, monkeypatch: pytest.MonkeyPatch):
    card = FakeGpu(pcie=PcieLink(4, 16, 4, 16))
    monkeypatch.setattr(drivers, "find_gpus", lambda: Gpus([card], []))
    assert [finding.level for finding in gpus.gpus(places)] == ["ok", "ok"]


# Settings


@pytest.mark.parametrize(
    ("count", "cores", "device", "level"),
    [
        (8, 8, "cpu", "ok"),
        (8, 16, "cpu", "ok"),
        (1, 16, "cpu", "warning"),
        (1, 16, "cuda", "ok"),
        (9, 8, "cuda", "warning"),
    ],
)
def test_threads(count: int, cores: int, device: str, level: str):
    (found,) = settings.threads(count, cores, {"OMP_NUM_THREADS": str(count)}, device)
    assert found.level == level
    assert f"OMP_NUM_THREADS={count}" in found.found


@pytest.mark.parametrize(
    ("backend", "text", "level", "words"),
    [
        ("native", "", "ok", "no settings"),
        ("native", "expandable_segments:True", "ok", "expandable_segments:True"),
        ("native", "max_split_size_mb:512", "note", "max_split_size_mb:512"),
        ("native", "expandable_segments:True,max_split_size_mb:512", "note", "torch's own"),
        ("native", "max_split_size_mb=512", "broken", "not understood"),
        ("cudaMallocAsync", "backend:cudaMallocAsync", "ok", "CUDA's own"),
        ("cudaMallocAsync", "backend:cudaMallocAsync,max_split_size_mb:512", "note", "CUDA's own"),
    ],
)
@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_the_allocator(name: str, backend: str, text: str, level: str, words: str):
    (found,) = settings.allocator(backend, "", {name: text} if text else {})
    assert (found.level, words in found.found) == (level, True)


def test_settings_that_torch_refuses():
    (found,) = settings.allocator("", "Unrecognized option foo", {"PYTORCH_ALLOC_CONF": "foo:bar"})
    assert found.level == "broken"
    assert "foo:bar: Unrecognized option foo" in found.found
    assert not list(settings.allocator("", "the driver is gone", {}))  # no fault of a setting


def test_an_allocator_that_is_switched_off():
    found = only(settings.allocator("native", "", {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}), "warning", "CACHING is set")
    assert "slower" in found.why


@pytest.mark.parametrize(("rocm", "words"), [(True, "PYTORCH_HIP_ALLOC_CONF=expandable"), (False, "no settings")])
def test_the_name_that_amds_builds_take(rocm: bool, words: str):
    environment = {"PYTORCH_HIP_ALLOC_CONF": "expandable_segments:True"}
    only(settings.allocator("native", "", environment, rocm), "ok", words)


@pytest.mark.parametrize("on", [True, False])
def test_whether_tf32_is_on(monkeypatch: pytest.MonkeyPatch, on: bool):
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    if not hasattr(matmul, "fp32_precision"):  # older than torch 2.9
        monkeypatch.setattr(matmul, "allow_tf32", on)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        assert settings._tf32_is_on(torch) == on
        return
    before = matmul.fp32_precision, conv.fp32_precision
    try:
        matmul.fp32_precision, conv.fp32_precision = "tf32" if on else "ieee", "ieee"
        assert settings._tf32_is_on(torch) == on
    finally:
        matmul.fp32_precision, conv.fp32_precision = before


def test_tf32_and_cudnn():
    (old,), (new,) = settings.tf32(7, True), settings.tf32(8, True)
    assert "changes nothing" in old.found
    assert "turn TF32 off" in new.found
    assert [f.level for on in (True, False) for f in settings.convolutions(on)] == ["ok", "ok"]
    assert [f.level for f in settings.determinism(True)] == ["note"]


def test_the_environment_of_cuda():
    set_for_cuda = {"CUDA_LAUNCH_BLOCKING": "1", "CUDA_VISIBLE_DEVICES": "1"}
    assert [f.level for f in settings.cuda_environment(set_for_cuda)] == ["warning", "ok"]
    assert not list(settings.cuda_environment({"CUDA_LAUNCH_BLOCKING": "0"}))
    (found,) = settings.without_cuda("cpu", set_for_cuda)
    assert "CUDA_LAUNCH_BLOCKING is set, and without effect" in found.found


@pytest.mark.parametrize(("vendor", "lines"), [(None, 0), ("nvidia", 1)])
def test_cuda_is_no_topic_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, vendor: str | None, lines: int):
    monkeypatch.setattr(settings, "gpu_beside", lambda: (vendor, ""))
    assert len(list(settings.without_cuda("cpu", {}))) == lines


def test_settings_here(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "comfy", raising=False)  # where the tests of the nodes ran before
    assert all(finding.level in ("ok", "note", "warning") for finding in settings.settings(places))
    (tmp_path / "custom_nodes").mkdir()
    only(settings.settings(Places.of_comfyui(tmp_path)), "note", "of this command")
