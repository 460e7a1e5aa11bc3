"""What a start costs, in counts: modules that an import brings, files that are opened and read before they are used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fast_instantid import Cache, FaceAnalyzer
from fast_instantid.recorder import Recorder
from tests.fresh import fresh_python

NEEDED = {"fast_instantid", "PIL", "safetensors", "xxhash"}
"""Packages that faces and identities import beside torch and numpy; what else is installed stays unimported."""

IMPORTED = """
import sys, torch, numpy
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
before = set(sys.modules)
%s
added = {name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
models = [path for path in opened if path.endswith((".onnx", ".bin", ".safetensors", ".pt", ".pth", ".ckpt"))]
import json
print(json.dumps([sorted(added), models]))
"""


def imported(code: str) -> tuple[set[str], list[str]]:
    """Top-level packages that running ``code`` imports beside torch, numpy and the standard library, and the model
    files that it opens."""
    added, models = json.loads(fresh_python(IMPORTED % code).stdout)
    return set(added) - {"torch", "numpy"}, models


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import fast_instantid", {"fast_instantid"}),
        ("import fast_instantid; dir(fast_instantid)", {"fast_instantid"}),
        ("from fast_instantid import Adapter, Cache, FaceAnalyzer, Identity, Person, keypoint_picture", NEEDED),
        ("import fast_instantid.cli", {"fast_instantid"}),
    ],
)
def test_an_import_brings_what_is_needed_and_opens_no_model(code: str, expected: set[str]) -> None:
    assert imported(code) == (expected, [])


def test_the_count_sees_a_package_and_a_model(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.touch()
    assert imported(f"import fast_instantid, pytest; open({str(path)!r})")[1] == [str(path)]
    assert "pytest" in imported("import pytest")[0]


def test_a_first_identity_does_not_wait_for_torchs_compiler() -> None:
    """It is half of what torch can import. sympy comes with it, as soon as tensors without data are calculated with."""
    first_run = """
from fast_instantid import Adapter, FaceAnalyzer, miniature
from fast_instantid.images import load_image
files = miniature.files()
embedding = FaceAnalyzer.load(files.pack, device="cpu").embed(load_image(files.portraits[0]))
adapter = next(path for path in files.instantid.iterdir() if path.is_file() and "adapter" in path.name)
Adapter.load(adapter, "cpu").identity(embedding)
assert "torch._dynamo" not in sys.modules
"""
    added, models = imported(first_run)
    assert added == NEEDED
    assert len(models) >= 3, "detector, recogniser and adapter"


def test_a_network_is_loaded_when_it_first_runs(pack: Path, astronaut) -> None:
    def loaded(job) -> int:
        with Recorder() as recorded:
            job()
        return [span.name for span in recorded.spans].count("load network")

    cache = Cache()
    analyzers: list[FaceAnalyzer] = []
    assert loaded(lambda: analyzers.append(FaceAnalyzer.load(pack, device="cpu", cache=cache))) == 0
    [analyzer] = analyzers
    assert loaded(lambda: analyzer.detect(astronaut)) == 1, "keypoints need no recogniser"
    assert loaded(lambda: analyzer.embed(astronaut)) == 1
    assert loaded(lambda: analyzer.embed(astronaut[:, ::-1].copy())) == 0
    again = FaceAnalyzer.load(pack, device="cpu", cache=cache)
    assert loaded(lambda: again.embed(astronaut)) == 0, "a face that is known needs no network"
