"""The sdist and the wheel made from it: what they hold, what they say of themselves, how large they are."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import fast_instantid

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fast_instantid"
BUILT = (".git", ".venv*", "build", "dist", "site", "*.egg-info", "__pycache__", ".*_cache", ".nox", "benchmarks")
BUILD = "import sys, setuptools.build_meta as hooks; getattr(hooks, f'build_{sys.argv[1]}')(sys.argv[2])"
MOST_BYTES = 25_000_000  # the miniature's weights are 19.6 MB; the index takes 100 MB


def build(kind: str, source: Path, into: Path) -> Path:
    """As pip and ``python -m build`` do, without a network: with the setuptools that is here."""
    done = subprocess.run([sys.executable, "-c", BUILD, kind, str(into)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = into.glob({"sdist": "*.tar.gz", "wheel": "*.whl"}[kind])
    return path


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source") / "tree"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*BUILT))
    return build("sdist", source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked)
    (source,) = unpacked.iterdir()
    return zipfile.ZipFile(build("wheel", source, sdist.parent))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(wheel.read(name))


def package_files() -> set[str]:
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_the_sdist_holds_the_package_and_its_papers_and_nothing_else(sdist: Path):
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers() if member.isfile()}
    papers = {"README.md", "CHANGELOG.md", "LICENSE", "NOTICE", "CITATION.cff", "SECURITY.md"}
    made = {name for name in members if name.startswith("fast_instantid.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert members.keys() - made == {*package_files(), *papers, "pyproject.toml", "MANIFEST.in"}
    assert not [name for name, member in members.items() if member.mode & 0o022], "writable by others"
    assert sdist.stat().st_size < MOST_BYTES


def test_the_wheel_holds_the_package_with_the_miniature(wheel: zipfile.ZipFile):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == package_files()
    assert "fast_instantid/miniature/weights/antelopev2/glintr100.onnx" in names
    assert Path(wheel.filename).stat().st_size < MOST_BYTES
    assert {Path(name).name for name in wheel.namelist() if "/licenses/" in name} == {"LICENSE", "NOTICE"}


def test_the_metadata_say_what_pyproject_and_the_package_do(metadata: Message, wheel: zipfile.ZipFile):
    assert metadata["Version"] == fast_instantid.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    extras = ["diffusers", "onnxruntime", "download", "xxhash", "observe", "batch", "serve", "ray", "docs", "dev"]
    assert metadata.get_all("Provides-Extra") == extras
    assert metadata["Description-Content-Type"] == "text/markdown"
    (entry,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert b"fast-instantid = fast_instantid.cli:main" in wheel.read(entry)


def test_the_changelog_and_the_citation_know_this_version():
    version = re.escape(fast_instantid.__version__)
    assert re.search(rf"^## \[{version}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
