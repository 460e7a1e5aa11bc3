"""What README and documentation say of the repository is so; tests/test_docs.py runs their examples."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_first_number_is_that_of_the_table():
    ours, theirs = re.search(r"begins after (.+?) in place of (.+?)\.\*\*", README).groups()
    assert re.search(rf"^\| weight edited: before sampling \| {theirs} \| {ours} \|", README, re.MULTILINE)


def test_the_tests_that_the_documents_name_are_there():
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    named = 0
    docs = ROOT / "docs"
    for document in [
        docs / "fidelity.md",
        docs / "findings.md",
        *(docs / "migration").glob("*.md"),
        *(docs / "adr").glob("*.md"),
    ]:
        file = ""
        for name, test in re.findall(
            r"`(?:tests/)?(?:comfyui/)?(test_\w+\.py|…)?(?:::(test_\w+))?`", document.read_text()
        ):
            file = name if name.endswith(".py") else file
            if name or test:
                assert file in files, f"{document.name} names {name}"
                assert not test or f"def {test}(" in files[file], f"{document.name} names {file}::{test}"
                named += 1
    assert named > 30


def test_the_commands_of_the_promises_name_tests():
    commands = re.findall(r"`pytest ([^`]+)`", (ROOT / "docs" / "promises.md").read_text())
    assert len(commands) > 20
    for name in " ".join(commands).split():
        path, _, test = name.partition("::")
        assert (
            re.search(rf"^(?:def|class) {test}\b", (ROOT / path).read_text(), re.MULTILINE)
            if test
            else (ROOT / path).exists()
        ), name


def test_packages_are_installed_from_a_clone():
    """There is no release on an index yet."""
    texts = {path: path.read_text() for path in [*(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").iterdir()]}
    texts[ROOT / "README.md"] = README
    assert [str(path) for path, text in texts.items() if re.search(r"pip install \S*fast-instantid", text)] == []


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README + (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_the_stages_in_the_documentation_are_those_of_the_code():
    table = re.findall(r"^\| (`.+?) \|", (ROOT / "docs" / "observe.md").read_text(), re.MULTILINE)
    named = {name for cell in table for name in re.findall(r"`([^`]+)`", cell)}
    sources = "\n".join(path.read_text() for path in (ROOT / "fast_instantid").rglob("*.py"))
    told = set(re.findall(r"\bstage\(\"([^\"]+)\"", sources))
    hooked = {"IdentityNet", "ControlNet", "UNet", "VAE encode", "VAE decode", "text encoder"}
    assert named == told | hooked
