"""The re-implementation of the reference in the benchmarks counts what the reference does, in a real ComfyUI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.comfyui.conftest import REFERENCE, ROOT
from tests.test_findings import BY_CHANCE, assert_counts_are_those_of_the_document


def counted(comfyui: Path, folder: Path, *arguments: str) -> list[dict]:
    path = folder / "findings.json"
    command = [sys.executable, "-m", "benchmarks", "findings", "--comfyui", str(comfyui), *arguments]
    command += ["--runs", "1", "--trials", "4", "--json", str(path)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return json.loads(path.read_text())["results"]


@pytest.fixture(scope="module")
def of_the_pack(real_host, tmp_path_factory) -> list[dict]:
    if REFERENCE is None:
        pytest.skip("needs the reference pack: set REFERENCE_PATH to a checkout of cubiq/ComfyUI_InstantID")
    folder = tmp_path_factory.mktemp("pack")
    return counted(real_host, folder, "--reference", str(Path(REFERENCE).resolve()))


def test_the_reimplementation_counts_what_the_pack_counts(of_the_pack, real_host, tmp_path):
    """Every count, the operators of a step and the bytes included."""
    reimplemented = counted(real_host, tmp_path)

    def counts(rows: list[dict]) -> dict[str, dict]:
        return {row["name"]: row["values"] for row in rows if row["unit"] in ("count", "bytes")}

    expected, found = counts(of_the_pack), counts(reimplemented)
    for each in (expected, found):
        del each[BY_CHANCE]
    assert len(expected) > 30
    assert found == expected


def test_the_counts_of_the_pack_are_those_of_the_document(of_the_pack):
    assert_counts_are_those_of_the_document(of_the_pack)
