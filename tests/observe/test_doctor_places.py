"""Where model files are looked for: folders that may not be read, and those that ComfyUI is told of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fast_instantid.observe.doctor import Places
from tests.observe.doctor_models import examined, troubles

ROOT = Path(__file__).resolve().parents[2]


# What this process may not read. Root may read everything, unless it gives up that right.

LOOK = """
import json, os, sys
from pathlib import Path
from fast_instantid.observe.doctor import Places
from fast_instantid.observe.doctor.files import CHECKS

host, root, closed = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
made = []
for path, mode in closed:
    before = (root / path).stat().st_mode
    (root / path).chmod(mode)
    try:
        places = Places.of_shell(root) if host == "shell" else Places.of_comfyui(root)
        made.append([[finding.level, finding.found] for check in CHECKS for finding in check(places)])
    finally:
        (root / path).chmod(before)
print(json.dumps(made))
"""


def looked_at_without_rights(host: str, root: Path, closed: list[tuple[str, int]]) -> list[list[list[str]]]:
    """For each path, closed alone: level and text of all findings."""
    rights = "-dac_override,-dac_read_search"
    if os.name == "nt":
        pytest.skip("needs the permissions of POSIX")
    if os.geteuid():
        prefix = []
    elif shutil.which("setpriv"):
        prefix = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]
    else:
        pytest.skip("root may read everything, and there is no setpriv to give that up")
    command = [*prefix, sys.executable, "-c", LOOK, host, str(root), json.dumps(closed)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_what_may_not_be_read_is_broken_and_keeps_nothing_else_from_being_looked_at(models: Path):
    closed = [
        (path, mode)
        for path in ("antelopev2", "base", "base/unet", "instantid", "instantid/ControlNetModel")
        for mode in (0, 0o444, 0o111)
    ]
    closed += [("antelopev2/glintr100.onnx", 0), ("base/vae/config.json", 0), ("instantid/ip-adapter.bin", 0)]
    for (path, mode), findings in zip(closed, looked_at_without_rights("shell", models, closed), strict=True):
        broken = [text for level, text in findings if level != "ok"]
        assert len(broken) == 1, (path, oct(mode), findings)
        assert broken[0].startswith(f"{models / path} cannot be read"), (path, oct(mode))
        wanted = 4 - (2 if path == "instantid" and mode != 0o111 else 1)
        assert len(findings) - 1 >= wanted, (path, oct(mode), findings)


def test_closed_above_all(models: Path):
    ((*findings,),) = looked_at_without_rights("shell", models, [(".", 0)])
    ((level, text),) = findings
    assert level == "broken"
    assert text.startswith(f"{models} cannot be read")


def test_a_closed_folder_beside_what_is_used_is_a_note(comfyui: Path):
    (comfyui / "models" / "controlnet" / "private").mkdir()
    closed = [("models/controlnet/private", 0), ("models/controlnet/private", 0o444)]
    for findings in looked_at_without_rights("comfyui", comfyui, closed):
        assert sorted(level for level, _ in findings) == ["note", *["ok"] * 4]


# Further folders of ComfyUI


def test_further_folders_of_comfyui(comfyui: Path, tmp_path: Path):
    shutil.move(comfyui / "models" / "insightface", tmp_path / "elsewhere" / "insightface")
    base = f"mine:\n  base_path: {tmp_path / 'elsewhere'}\n  is_default: true\n"
    (comfyui / "extra_model_paths.yaml").write_text(f"{base}  insightface: |\n    nothing\n    insightface\n")
    assert [finding.level for finding in examined(Places.of_comfyui(comfyui))] == ["ok"] * 4


def test_the_order_of_further_folders(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """ComfyUI appends them, or puts them first where the section says so; the pack puts its own folder last."""
    monkeypatch.setenv("MY_MODELS", str(tmp_path))
    (comfyui / "extra_model_paths.yaml").write_text(
        "one:\n  base_path: $MY_MODELS\n  instantid: a\n  insightface: a\n  controlnet: a\n"
        "two:\n  base_path: ${MY_MODELS}\n  instantid: b\n  insightface: b\n  controlnet: |\n    b\n    a\n"
        "three:\n  is_default: true\n  base_path: ..\n  instantid: c\n  controlnet: c\n"
    )
    places, models = Places.of_comfyui(comfyui), comfyui / "models"
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    assert places.adapters == (c, a, b, models / "instantid")
    assert places.faces == (models / "insightface", b, a)
    assert places.identitynets == (c, models / "controlnet", a, b)


def test_a_kind_without_folders_loses_no_other(comfyui: Path, tmp_path: Path):
    (comfyui / "extra_model_paths.yaml").write_text(f"mine:\n  base_path: {tmp_path}\n  loras:\n  instantid: a\n")
    (found,) = troubles(Places.of_comfyui(comfyui))
    assert "loras in mine" in found.found
    assert "does not start" in found.found
    assert Places.of_comfyui(comfyui).adapters[0] == tmp_path / "a"


@pytest.mark.parametrize("text", ["mine: [1", "mine: 3", "- a"])
def test_further_folders_that_cannot_be_read_are_said(comfyui: Path, text: str):
    (comfyui / "extra_model_paths.yaml").write_text(text)
    (found,) = troubles(Places.of_comfyui(comfyui))
    assert found.level == "note"
    assert "extra_model_paths.yaml" in found.found
