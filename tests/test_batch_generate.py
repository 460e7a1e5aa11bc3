"""``fast-instantid batch generate``: what it keeps, what it draws again, and which folders it takes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pty
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from fast_instantid import miniature
from fast_instantid.cli import main
from fast_instantid.cli.jobs import Job
from fast_instantid.cli.output import text_in
from fast_instantid.cli.studio import Studio
from tests.batches import start

MINIATURE = ("--base", "miniature", "--device", "cpu", "--steps", "1", "--size", "64x64")


@pytest.fixture
def draw(capsys, tmp_path, monkeypatch, loaded_once):
    """``draw(*arguments, code=0)``: what ``batch generate`` says on stderr, beside ada.png."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(miniature.files().portraits[0], "ada.png")

    def draw(*arguments, code=0, command=("batch", "generate")):
        capsys.readouterr()
        assert main([*command, *map(str, arguments), *MINIATURE]) == code
        return capsys.readouterr().err

    return draw


ADA = ("--person", "ada.png", "-o", "out", "--prompt", "a")


def report(folder="out"):
    return list(csv.DictReader(Path(folder, "report.csv").open(encoding="utf-8", newline="")))


def pictures(folder="out"):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.png"))}


def test_a_damaged_picture_is_drawn_again(draw):
    draw(*ADA, "b")
    before = pictures()
    path, whole = Path("out", min(before)), min(before.items())[1]
    for damaged in (b"", whole[:100], whole[:-20], whole[:-200] + bytes(100) + whole[-100:]):
        path.write_bytes(damaged)
        said = draw(*ADA, "b")
        assert f"warning: {path} is damaged, and made again" in said
        assert "1 drawn, 1 kept" in said
        assert pictures() == before
    assert "damaged" not in draw(*ADA, "b")
    path.unlink()
    path.mkdir()
    assert "Is a directory" in draw(*ADA, "b", code=1)


def test_folders_of_other_commands_and_settings_are_refused(draw):
    plain = ("generate",)
    draw(*ADA, "--identity-range", 0.9, 1, command=plain)
    assert "this folder holds results of an unknown run" in draw(*ADA, code=1)
    Path("out/report.csv").unlink()  # as a kill leaves it
    assert "this folder holds results of an unknown run" in draw(*ADA, code=1)
    assert not Path("out/_run.json").exists()
    draw(*ADA, "b", "--identity-range", 0.9, 1, command=plain)
    shutil.rmtree("out")
    draw(*ADA)
    before = pictures()
    assert "out: this folder belongs to 'batch': go on with that" in draw(*ADA, "b", command=plain, code=1)
    assert pictures() == before


def test_names_that_are_no_text_are_escaped_in_the_report(draw):
    os.rename("ada.png", name := os.fsdecode(b"caf\xe9.png"))
    for status in ("drawn", "kept"):
        draw("--person", name, "--prompt", "a", "-o", "out")
        assert [(row["person"], row["status"]) for row in report()] == [("caf\\udce9.png", status)]
    draw("--person", name, "--prompt", "b", "-o", "out")
    assert [(row["person"], row["prompt"]) for row in report()] == [("caf\\udce9.png", "a"), ("caf\\udce9.png", "b")]


def test_a_row_of_a_name_that_no_file_can_have_stops_no_other(draw):
    long = "\U00020000" * 60
    Path("jobs.csv").write_text(
        f"person,seed\nada.png,{10**300}\nada.png,-{10**300}\n{long}.png,{2**63 - 1000}\nada.png,1\n"
    )
    shutil.copy("ada.png", Path(f"{long}.png"))
    draw("jobs.csv", "-o", "out", "--prompt", "a", code=1)
    assert [row["status"] for row in report()] == ["failed", "failed", "drawn", "drawn"]
    assert "expected 0 to" in report()[0]["error"]
    assert len(pictures()) == 2
    assert "2 kept" in draw("jobs.csv", "-o", "out", "--prompt", "a", code=1)


def test_of_many_errors_the_first_are_printed_and_all_are_in_the_report(draw):
    Path("jobs.csv").write_text("person,prompt\n" + "".join(f"nobody-{i}.png,a\n" for i in range(30)))
    said = draw("jobs.csv", "-o", "out", code=1)
    assert (said.count("error: nobody-"), "and 10 more such lines" in said) == (20, True)
    assert all("no such file" in row["error"] for row in report())


def test_a_row_of_letters_that_the_locale_lacks_stops_no_other(draw, monkeypatch):
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    Path("jobs.csv").write_text("person,prompt\ncaf\u00e9.png,a\nada.png,b\n", encoding="utf-8")
    process = start("batch", "generate", Path("jobs.csv").absolute(), "-o", Path("out").absolute(), *MINIATURE)
    assert "1 drawn, 0 kept, 1 failed" in process.communicate()[1]
    assert [row["status"] for row in report()] == ["failed", "drawn"]
    assert "no file can have this name" in report()[0]["error"]


def test_a_picture_that_memory_does_not_hold_stops_no_other(draw, monkeypatch):
    sample = Studio._sample

    def allocate(self, batch, people):
        torch.empty(1 << 60 if "large" in [job.prompt for job in batch] else 1, dtype=torch.uint8)
        return sample(self, batch, people)

    draw(*ADA, "b", "c")
    monkeypatch.setattr(Studio, "_sample", allocate)
    said = draw("--person", "ada.png", "-o", "other", "--prompt", "a", "b", "large", "c", code=1)
    assert "3 drawn, 0 kept, 1 failed" in said
    assert "error: ada.png: out of memory; try a smaller --size" in said
    assert {*pictures()} < {*(row["output"] for row in report("other"))}


def test_hidden_files_of_a_folder_of_persons_are_no_persons(draw):
    Path("people").mkdir()
    for name in ("ada.png", "._ada.png", ".fast-instantid-0123456789abcdef.png"):
        shutil.copy("ada.png", Path("people", name))
    draw("--person", "people", "--prompt", "a", "-o", "out")
    assert [row["person"] for row in report()] == ["people/ada.png"]
    draw("--person", "people/._ada.png", "--prompt", "a", "-o", "named")
    assert len(pictures("named")) == 1


def two_alike():
    """Two prompts whose jobs have names with the same hash."""
    models = {"negative_prompt": "", "scale": 0.8, "controlnet_conditioning_scale": 0.8, "num_inference_steps": 1}
    one = Job("ada.png", "PROMPT", 0, **models, guidance_scale=1.0, noise=0.0, size=(64, 64))
    before, after = json.dumps(one.settings, sort_keys=True).split("PROMPT")
    start, seen = hashlib.sha256(before.encode()), {}
    for number in range(1_000_000):
        (digest := start.copy()).update(f"{number}{after}".encode())
        if (other := seen.setdefault(digest.digest()[:4], number)) != number:
            return one, str(other), str(number)
    raise AssertionError("no collision")


def test_two_jobs_with_one_hash_have_two_names(draw):
    one, *prompts = two_alike()
    options = [
        f"--{name.replace('_', '-')}={value}" for name, value in one.settings.items() if name in ("scale", "noise")
    ]
    options += ["--controlnet-conditioning-scale=0.8", "--guidance-scale=1", "--negative-prompt=", "-o", "out"]
    for order in (prompts, prompts, prompts[1:], prompts[:1]):
        draw("--person", "ada.png", *options, "--prompt", *order)
        rows = {row["prompt"]: row for row in report()}
        names = [rows[prompt]["output"] for prompt in prompts]
        assert [len(name) for name in names] == [len("ada-0-.png") + 8, len("ada-0-.png") + 16]
        assert [text_in(Path("out", name), "settings")["prompt"] for name in names] == prompts
    assert len(pictures()) == 2
    assert "1 failed" in draw("--person", "ada.png", *options, "--prompt", *prompts, prompts[1], code=1)


def test_lines_of_errors_count_those_of_long_prompts(draw):
    Path("jobs.csv").write_text('person,prompt,seed\nada.png,"a\nb",1\n\nada.png,c,x\n')
    draw("jobs.csv", "-o", "out", code=1)
    assert "jobs.csv, line 5: seed 'x'" in report()[1]["error"]


def test_a_column_twice_is_refused(draw):
    Path("jobs.csv").write_text("person,prompt,seed,prompt,,\nada.png,a,1,b,,\n")
    said = draw("jobs.csv", "-o", "out", code=1)
    assert "jobs.csv: several columns are named prompt: rename or remove all but one" in said
    Path("jobs.csv").write_text("person,prompt,seed,,\nada.png,a,1,,\n")
    assert "1 drawn" in draw("jobs.csv", "-o", "out")


def test_what_remains_is_shown_beside_the_steps(tmp_path):
    shutil.copy(miniature.files().portraits[0], tmp_path / "ada.png")
    terminal, stderr = pty.openpty()
    process = start(
        *("batch", "generate", "--person", tmp_path / "ada.png", "--prompt", *"abcd", "-o", tmp_path / "out"),
        *("--batch-size", 1, *MINIATURE),
        stderr=stderr,
    )
    os.close(stderr)
    shown = b""
    with suppress(OSError):  # at the end
        while part := os.read(terminal, 65536):
            shown += part
    os.close(terminal)
    assert process.wait() == 0
    lines = shown.decode().split("\r\033[K")
    assert "0/4 pictures; sampling: step 1/1" in lines
    assert [
        line for line in lines if line.startswith("3/4 pictures, 0:") and line.endswith(" left; sampling: step 1/1")
    ]
    assert [line for line in lines if line.startswith(f"{tmp_path / 'out'}: 4 drawn")]
