"""What a start costs, in counts: modules that an import brings, files that are opened and read before they are used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.tiny_adapter import write_tiny_adapter
from fast_instantid import Adapter, Cache, FaceAnalyzer, ModelFileError
from fast_instantid.recorder import Recorder
from tests.fresh import ROOT, fresh_python

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


@pytest.mark.parametrize("command", [["--help"], ["generate", "--help"], ["person", "--help"]])
def test_help_imports_neither_torch_nor_diffusers(command: list[str]) -> None:
    code = "import sys; from fast_instantid.cli import main\ntry: main(sys.argv[1:])\nfinally: print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.check_output([sys.executable, "-c", code, *command], text=True, env=environment)
    assert not {"torch", "numpy", "diffusers", "transformers"} & set(told.splitlines()[-1].split())


KNOWN = """
from pathlib import Path
from fast_instantid import Adapter, Cache, FaceAnalyzer
from fast_instantid.images import load_image
pack, adapter, picture, folder = sys.argv[1:]
cache = Cache(directory=folder)
analyzer = FaceAnalyzer.load(pack, device="cpu", cache=cache)
weights = Adapter.load(adapter, "cpu", cache=cache)
identity = weights.identity(analyzer.embed(load_image(picture)))
person = analyzer.networks.recognizer_fingerprint
assert (cache.stats.misses, weights.token_width) == (int(Path(folder, "misses").read_text()), identity.tokens.shape[-1])
"""


def test_a_new_process_opens_no_model_for_a_face_that_the_disk_cache_knows(pack: Path, astronaut, tmp_path) -> None:
    adapter = write_tiny_adapter(tmp_path / "ip-adapter.bin", channels=[64, 128])
    photo = tmp_path / "photo.png"
    Image.fromarray(astronaut).save(photo)
    arguments = str(pack), str(adapter), str(photo), str(tmp_path)
    for misses in (3, 0):
        (tmp_path / "misses").write_text(str(misses))
        told = fresh_python(IMPORTED % KNOWN, *arguments).stdout
        added, opened = json.loads(told)
        assert set(added) - {"torch", "numpy"} <= NEEDED
        opened = {Path(path).name for path in opened if "fast-instantid-cache" not in path}
        files = {"ip-adapter.bin", *(path.name for path in pack.iterdir())}
        assert opened == (files if misses else set()), "facts of the files come from the cache"


@pytest.mark.parametrize("change", ["same size and time", "replaced", "damaged"])
def test_what_the_cache_knows_of_a_file_is_of_that_version(change: str, tmp_path: Path) -> None:
    path = write_tiny_adapter(tmp_path / "ip-adapter.bin", channels=[64, 128])
    other = write_tiny_adapter(tmp_path / "other.bin", channels=[64, 128], seed=1)
    embedding, times = np.ones(512, np.float32), path.stat()

    def keys() -> object:
        adapter = Adapter.load(path, "cpu", cache=Cache(directory=tmp_path))
        return adapter.identity(embedding).bank.keys[0]

    first, known = keys(), Adapter.load(path, "cpu", cache=Cache(directory=tmp_path))
    if change == "replaced":
        other.replace(path)
    else:
        content = other.read_bytes() if change == "same size and time" else b"\0" * times.st_size
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    if change == "damaged":
        with pytest.raises(ModelFileError):
            keys()
    else:
        assert not np.array_equal(keys(), first)
    assert np.array_equal(known.identity(embedding).bank.keys[0], first), "chosen before the change, and in the cache"
    with pytest.raises(ModelFileError, match=None if change == "damaged" else "since it was chosen; load it again"):
        known.identity(-embedding)
