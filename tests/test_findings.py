"""docs/findings.md: its commands are there, its numbers are counted again, and the caches of the report do fail."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.findings import STANDIN, run
from benchmarks.findings_model import full_size_bytes
from benchmarks.step_host import SIZES

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs" / "findings.md").read_text()
TRIALS = 8
BY_CHANCE = "wrong faces: reused address"
"""Whether a picture lies where another lay is up to the allocator."""
OF_THE_HOST = "added to a step: operators in all"
"""Each version of ComfyUI makes its attention of other operators."""
VERDICTS = ("done", "done otherwise", "refused", "option", "not needed", "not measured")


def cells(row: dict) -> str:
    """A row of the document's table of counts."""
    values = [f"{row['values'][side]:,}" for side in ("reference", "ours")]
    return f"| {row['issue']} | {row['name']} | {' | '.join(values)} |"


def assert_counts_are_those_of_the_document(rows: list[dict], but: tuple[str, ...] = ()) -> None:
    """All that both sides have a count of."""
    rows = [row for row in rows if row["unit"] in ("count", "bytes") and [*row["values"]] == ["reference", "ours"]]
    missing = [cells(row) for row in rows if row["name"] not in but and cells(row) not in DOCUMENT]
    assert not missing, "docs/findings.md lacks:\n" + "\n".join(missing)
    named = set(re.findall(r"^\| \S+ \| (.+?) \| [\d,]+ \| [\d,]+ \|$", DOCUMENT, re.MULTILINE))
    assert named == {row["name"] for row in rows}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, dict]:
    """Of a run without a checkout of ComfyUI."""
    path = tmp_path_factory.mktemp("findings") / "findings.json"
    command = [sys.executable, "-m", "benchmarks", "findings", "--runs", "1", "--trials", str(TRIALS)]
    subprocess.run([*command, "--json", str(path)], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    document = json.loads(path.read_text())
    assert document["about"]["reference"] == "re-implemented"
    return {row["name"]: row for row in document["results"]}


def test_the_counts_are_those_of_the_document(rows):
    assert_counts_are_those_of_the_document([*rows.values()], but=(OF_THE_HOST,))


@pytest.mark.parametrize("kind", ["reused address", "edited in place", "one changed pixel"])
def test_ours_never_gives_a_wrong_face(rows, kind):
    counts = rows[f"wrong faces: {kind}"]["values"]
    assert counts["trials"] == TRIALS, "pictures that give the face of the one before prove nothing"
    assert counts["ours"] == counts["no cache"] == 0


def test_the_caches_of_the_report_give_wrong_faces(rows):
    """Or the trial could not fail."""
    assert rows["wrong faces: edited in place"]["values"]["pointer key"] == TRIALS
    assert rows["wrong faces: one changed pixel"]["values"]["sampled key"] >= TRIALS - 1


def test_both_sides_give_the_same_step(rows):
    """Or their counts would not be of the same work. What the report calls critical blocks is not the same."""
    distances = rows["distance from the reference's step, of what the face does to it"]["values"]
    assert distances["ours"] < 1e-3 < 0.1 < distances["selected blocks"]


def test_bytes_at_sdxls_size_are_by_a_formula_that_holds_for_tiny_networks(rows):
    reference, ours = full_size_bytes(SIZES["tiny"], itemsize=4)
    assert rows["bytes a patched model holds, tiny networks"]["values"] == {"reference": reference, "ours": ours}


def test_the_checkout_of_the_pack_needs_one_of_comfyui():
    with pytest.raises(SystemExit, match="--reference needs --comfyui"):
        run(None, STANDIN, 1, 1, None)


def test_every_issue_has_a_verdict_in_the_summary_and_a_section():
    for issue in [*map(str, range(1, 11)), "VRAM", "system"]:
        assert re.search(rf"^\| {issue} \| .+ \| \*\*(true|partly|false)\*\* \| .+ \|$", DOCUMENT, re.MULTILINE), issue
        assert re.search(rf"^### {issue}\b", DOCUMENT, re.MULTILINE | re.IGNORECASE), issue


@pytest.mark.parametrize(
    "fix",
    [
        *("hash cache", "adaptive", "batched detection", "threads", "persistent", "pinned", "patch caching", "hooks"),
        *("one conditioning copy", "selective patching", "weight pruning", "pre-allocated", "in-place", "fused"),
        *("expand", "CUDA", "ROCm", "TensorRT", "pure PyTorch", "MediaPipe", "cuDNN", "TF32", "allocator"),
        *("batch size", "resolution", "TorchCompile", "PCIe", "checkpointing", "offloading", "before `.to`"),
    ],
)
def test_every_fix_has_a_verdict(fix):
    table = DOCUMENT.partition("\n## The fixes\n")[2]
    found = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    named = [row for row in found if fix.lower() in row[0].lower()]
    assert named, f"no row of {fix}"
    for row in named:
        assert row[1] in VERDICTS, row


def test_the_commands_are_there():
    commands = set(
        re.findall(r"(?:`|^)((?:python -m benchmarks|fast-instantid|make) [^`#\n]+)", DOCUMENT, re.MULTILINE)
    )
    assert len(commands) >= 5
    for command in commands:
        words = command.split()
        if words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), command
            continue
        module = ["benchmarks", words[3]] if words[0] == "python" else ["fast_instantid", words[1]]
        asked = [sys.executable, "-m", *module, "--help"]
        described = subprocess.run(asked, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        for option in re.findall(r"--[a-z-]+", command):
            assert option in described, command


def test_the_headline_is_that_of_the_committed_result():
    [path] = (ROOT / "benchmarks" / "results").rglob("headline--*--cpu.json")
    rows = {row["name"]: row for row in json.loads(path.read_text())["results"]}
    before, in_all = rows["in all: before sampling"]["ratio"]["median"], rows["in all"]["ratio"]["median"]
    most = rows["in all"]["reference_seconds"]["median"] / rows["in all"]["limit_seconds"]["median"]
    text = " ".join(DOCUMENT.split())
    assert f"finds {before:.1f}x before sampling and {in_all:.1f}x with it. {most:.1f}x is what" in text
