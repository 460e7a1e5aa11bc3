"""The doctor as people and programs meet it: the command, its text, its JSON, its exit code, and a bare machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fast_instantid import cli
from fast_instantid.observe.doctor import Finding, Places, Report, examination, examine
from tests.fresh import SHELL, fresh_python

ROOT = Path(__file__).resolve().parents[2]
LEVELS = ["ok", "note", "warning", "broken"]


def test_a_fresh_machine_is_not_ready_and_told_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["doctor", "--models", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("BROKEN  ") == 1
    assert "fast-instantid download --to" in printed.out
    conclusion = printed.out.rpartition("\n\n")[2]
    assert conclusion.startswith("InstantID does not work as asked")
    assert "broken: 1" in conclusion
    assert "\033" not in printed.out
    assert not printed.err


def test_json_is_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["doctor", "--json", "--models", str(tmp_path)]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["version"] == 1
    assert document["broken"] is True
    assert sorted(document) == ["broken", "conclusion", "counts", "findings", "package", "version"]
    assert sorted(document["counts"]) == sorted(LEVELS)
    assert all(sorted(finding) == ["do", "found", "level", "topic", "why"] for finding in document["findings"])
    assert sum(document["counts"].values()) == len(document["findings"])


def test_where_nothing_is_broken_the_exit_code_is_0(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(examination, "_TOPICS", ())
    assert cli.main(["doctor"]) == 0
    assert "All is well" in capsys.readouterr().out


def test_options_say_where_to_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in "pi":
        (tmp_path / name).mkdir()
    options = ["--pack", str(tmp_path / "p"), "--instantid", str(tmp_path / "i"), "--base", "me/my-sdxl"]
    assert cli.main(["doctor", "--json", "--models", str(tmp_path / "m"), *options]) == 1
    (missing,) = [f for f in json.loads(capsys.readouterr().out)["findings"] if f["topic"] == "Model files"]
    assert missing["level"] == "broken"
    for name in ("p", "i", "me/my-sdxl"):  # and not the default, where it did not look
        assert name in missing["why"]


def test_what_is_no_comfyui_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["doctor", "--comfyui", str(tmp_path)]) == 1
    assert "not a ComfyUI" in capsys.readouterr().err


def test_a_comfyui_is_examined(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "custom_nodes").mkdir()
    assert cli.main(["doctor", "--comfyui", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert str(tmp_path / "models") in printed
    assert "Node packs" in printed


def test_every_finding_that_is_not_ok_says_more_than_that(tmp_path: Path):
    """Why it matters and what to do, where something is wrong."""
    for finding in examine(Places.of_shell(tmp_path)).findings:
        assert finding.topic
        assert finding.found
        if finding.level in ("warning", "broken"):
            assert finding.why, finding
            assert finding.do, finding


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def falls_over(places: Places) -> list[Finding]:
        raise RuntimeError("boom\nand more")

    def half_way(places: Places):
        yield Finding("ok", "the first half")
        raise KeyError("second half")

    topics = (("Trouble", (falls_over, half_way), False),)
    monkeypatch.setattr(examination, "_TOPICS", topics)
    report = examine(Places.of_shell(tmp_path))
    assert [finding.level for finding in report.findings] == ["warning", "ok", "warning"]
    assert report.findings[0].found == 'the check "falls over" failed: RuntimeError: boom'
    assert not report.broken


def test_the_text_keeps_to_its_width_and_paths_whole():
    long = "/a/folder/" + "with/a/long/name/" * 8
    report = Report(
        [
            Finding("warning", f"word {'word ' * 40}{long}", "why " * 50, f"do this\n{'then that ' * 20}", topic="One"),
            Finding("broken", "b", "w", "d", topic="Two"),
            Finding("ok", "fine", topic="Two"),
        ]
    )
    lines = report.text(width=80).splitlines()
    assert all(len(line) <= 80 for line in lines if long not in line)
    assert any(long in line for line in lines)
    assert [line for line in lines if line and not line.startswith(" ")][1:3] == ["One", "Two"]
    assert report.broken


def test_names_of_files_do_not_move_the_cursor():
    report = Report([Finding("broken", "a\033[2Jb", "why\a", "do\033[31m\nand \r that", topic="T")])
    assert all(line.isprintable() for line in report.text().splitlines())
    assert "[2Jb" in report.text()


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ([], "All is well"),
        (["ok", "note"], "All is well"),
        (["warning"], "could be better"),
        (["warning", "broken"], "does not work as asked: it"),
        (["broken", "broken"], "first things first"),
    ],
)
def test_the_conclusion(levels: list, words: str):
    report = Report([Finding(level, "it", topic="T") for level in levels])
    assert words in report.conclusion
    assert " ".join(report.text().rpartition("\n\n")[2].split()) == report.conclusion
    counts = [f"{level}: {levels.count(level)}" for level in ("note", "warning", "broken") if level in levels]
    assert all(count in report.conclusion for count in counts)
    assert ": 0" not in report.conclusion


BARE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

for name in [name for name in sys.modules if name.partition(".")[0] in BLOCKED]:
    del sys.modules[name]
sys.meta_path.insert(0, Blocked())
from fast_instantid import cli
code = cli.main(["doctor", *sys.argv[1:]])
print("loaded:", sorted(set(BLOCKED) & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""
OPTIONAL = ("diffusers", "transformers", "accelerate", "onnxruntime", "onnx", "huggingface_hub", "pynvml", "yaml",
            "insightface", "packaging")  # fmt: skip


def run_without(modules: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"BLOCKED = {modules!r}\n{BARE}"
    if "torch" not in modules:
        return fresh_python(code, *arguments, check=False)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )


def findings_without(modules: tuple[str, ...], models: Path, *arguments: str) -> list[dict[str, str]]:
    result = run_without(modules, "--json", "--models", str(models), *arguments)
    assert result.returncode == 1, result.stderr
    assert "loaded: []" in result.stderr
    assert "Traceback" not in result.stderr
    return json.loads(result.stdout)["findings"]


def test_with_nothing_but_the_package_itself(tmp_path: Path):
    findings = findings_without(OPTIONAL, tmp_path)
    assert [finding["topic"] for finding in findings if finding["level"] == "broken"] == ["Model files"]
    assert not [finding for finding in findings if "failed" in finding["found"]]


def test_onnxruntime_asked_for_and_not_there(tmp_path: Path):
    findings = findings_without(OPTIONAL, tmp_path, "--backend", "onnxruntime", "--device", "cuda")
    (found,) = [f for f in findings if f["topic"] == "Face networks" and f["level"] == "broken"]
    assert "needs the package" in found["found"]
    assert "onnxruntime-gpu" in found["do"]


def test_without_torch_the_rest_is_examined(tmp_path: Path):
    findings = findings_without(("torch", *OPTIONAL), tmp_path)
    (broken,) = [finding for finding in findings if finding["level"] == "broken"]
    assert broken["found"] == "torch is not installed"
    assert "pytorch.org" in broken["do"]
    assert not [finding for finding in findings if "failed" in finding["found"]]
    assert ["not examined without torch" in f["found"] for f in findings if f["topic"] == "Model files"] == [True]


PYTHON = f'"{sys.executable}"' if " " in sys.executable else sys.executable
"""As it is typed into a shell."""
LIBRARIES = ("numpy", "PIL", "safetensors")


def test_without_the_small_packages_there_is_one_command(tmp_path: Path):
    result = run_without((*LIBRARIES, *OPTIONAL), "--json", "--models", str(tmp_path))
    assert result.stderr == "loaded: []\n"
    findings = json.loads(result.stdout)["findings"]
    (broken,) = [finding for finding in findings if finding["level"] == "broken"]
    assert broken["found"] == "not installed: numpy, pillow, safetensors"
    assert broken["do"] == f"{PYTHON} -m pip install numpy pillow safetensors"
    assert not [finding for finding in findings if finding["level"] == "warning"]
    for topic in ("Model files", "Face networks"):
        (note,) = [finding for finding in findings if finding["topic"] == topic]
        assert note["found"].startswith("not examined without numpy, pillow")


@pytest.mark.parametrize("module", LIBRARIES)
def test_one_that_is_missing_is_one_finding(tmp_path: Path, module: str):
    findings = findings_without((module, *OPTIONAL), tmp_path)
    (broken,) = [finding for finding in findings if finding["level"] == "broken"]
    assert broken["found"].startswith("not installed: ")
    name = broken["found"].partition(": ")[2]
    assert not [finding for finding in findings if finding["level"] == "ok" and f"{name} " in finding["found"]]
    assert not [finding for finding in findings if finding["level"] == "warning"]


def test_one_that_cannot_be_loaded_is_no_fault_of_the_doctor(tmp_path: Path):
    (tmp_path / "safetensors.py").write_text("raise ImportError('DLL load failed')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nBLOCKED = ()\n{BARE}"
    result = fresh_python(code, "--json", "--models", str(tmp_path), check=False)
    (broken,) = [f for f in json.loads(result.stdout)["findings"] if f["level"] == "broken"]
    assert broken["found"] == "safetensors is installed, but cannot be loaded: DLL load failed"


def test_a_torch_that_cannot_be_loaded(tmp_path: Path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nBLOCKED = ()\n{BARE}"
    result = subprocess.run(
        [sys.executable, "-c", code, "--models", str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 1
    assert "cannot be loaded: OSError: libcudart.so.13" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "ComfyUI" / "custom_nodes" / "ComfyUI_InstantID"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fast_instantid", folder / "fast_instantid", ignore=ignored)
    for name in ("__init__.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_in_a_clone_comfyuis_own_python_is_asked_for(clone: Path):
    code = f"import sys; sys.path.insert(0, {str(clone)!r})\nBLOCKED = ('PIL', 'numpy')\n{BARE}"
    result = fresh_python(code, "--json", cwd=clone, check=False)
    (broken,) = [f for f in json.loads(result.stdout)["findings"] if f["level"] == "broken"]
    assert broken["do"].endswith(f"{PYTHON} -m pip install numpy pillow")
    assert "ComfyUI's own Python" in broken["do"]


def test_a_clone_in_comfyui_examines_that_comfyui(clone: Path, tmp_path: Path):
    result = fresh_python(SHELL.format("fast_instantid"), "doctor", cwd=clone, check=False)
    assert result.returncode == 1
    assert f"one pack has InstantID's nodes: {clone}" in " ".join(result.stdout.split())
    assert str(tmp_path / "ComfyUI" / "models") in result.stdout
