"""``make demo`` and ``fast-instantid demo``: the first thing that a newcomer sees."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fast_instantid import miniature
from fast_instantid.cli import main
from fast_instantid.demo import PROMPTS, Demo, Picture
from fast_instantid.demo.sheet import sheet
from fast_instantid.faces import Face
from fast_instantid.people import Person

ROOT = Path(__file__).parent.parent
PERSON = Person(np.ones((1, 512)), Face(np.zeros(4, np.float32), np.zeros((5, 2), np.float32), 1.0), (128, 128))


def test_make_demo_needs_nothing_and_tells_what_it_did(tmp_path):
    [command] = re.findall(r"^demo:.*\n\t\$\(RUN\) -m (fast_instantid demo.*)$", (ROOT / "Makefile").read_text(), re.M)
    arguments = [sys.executable, "-m", *command.split(), "--steps", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FAST_INSTANTID_MODELS": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for stage in ("find the person", "make the identity"):
        assert re.search(rf"{stage} +[\d.]+ ms +[\d.]+ ms", result.stdout), stage
    assert re.search(r"sample 4 pictures, 1 steps +[\d.]+ ms$", result.stdout, re.M)
    number = r"^ *(no face|-?\d\.\d\d  (strong|moderate|weak|none)) *"
    for prompt in PROMPTS[:-1]:
        assert re.search(rf"{number}  {prompt}$", result.stdout, re.M)
    assert re.search(rf"{number}  {PROMPTS[-1]} \(of fay, in the same batch\)$", result.stdout, re.M)
    assert re.search(r"\d other people score -?\d\.\d\d to -?\d\.\d\d", result.stdout)
    [picture] = tmp_path.iterdir()
    assert str(picture.name) in result.stdout
    assert Image.open(picture).size[0] > 3 * miniature.SIZE[1]


def test_a_portrait_and_prompts_of_ones_own(tmp_path, capsys):
    photo = miniature.files().portraits[-1]
    wide = Image.new("RGB", (192, 160), "grey")
    wide.paste(Image.open(photo), (40, 20))
    wide.save(tmp_path / "mine.png")
    arguments = ["demo", "--photo", str(tmp_path / "mine.png"), "--prompt", "red jacket", "--prompt", "blue shirt"]
    output = tmp_path / "sheet.png"
    threads, cache = torch.get_num_threads(), tmp_path / "cache"
    arguments += ["--steps", "1", "--seed", "3", "-o", str(output), "--json", "--device", "cpu", "--cache", str(cache)]
    assert main(arguments) == 0
    assert torch.get_num_threads() == threads
    assert [path.name for path in cache.iterdir()] == ["fast-instantid-cache"]
    printed = json.loads(capsys.readouterr().out)
    assert [picture["prompt"] for picture in printed["pictures"]] == ["red jacket", "blue shirt"]
    assert len(printed["strangers"]) == len(miniature.files().portraits)
    first, again = printed["seconds"]["find the person"]
    assert again < first / 4, "a face is paid for once"
    assert output.is_file()


def test_a_shipped_portrait_is_no_stranger_to_itself(tmp_path, capsys):
    portraits = miniature.files().portraits
    copied = tmp_path / "copy.png"
    copied.write_bytes(portraits[0].read_bytes())
    sampling = ["--prompt", "x", "--steps", "1"]
    assert main(["demo", "--photo", str(copied), *sampling, "--json", "-o", str(tmp_path / "o.png")]) == 0
    assert len(json.loads(capsys.readouterr().out)["strangers"]) == len(portraits) - 1


def test_a_picture_without_a_drawn_face_is_an_error_in_one_line(tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "blank.png")
    output = tmp_path / "out.png"
    assert main(["demo", "--photo", str(tmp_path / "blank.png"), "-o", str(output)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"error: .*blank.png: no face found; the miniature knows drawn faces .*", error)
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "steps 0: expected 1 to 1000"),
        (["--seed", "-1"], "seed -1"),
        (["--photo", "nowhere.png"], "nowhere.png: no such file"),
        (["-o", "out.txt"], "must end in one of .png"),
        (["--photo", "out.png", "-o", "out.png"], "would replace the photo"),
    ],
)
def test_nonsense_is_refused(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *options]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7])
def test_the_sheet_shows_every_picture_once(number):
    colors = [(40 * i, 255 - 30 * i, 128) for i in range(number)]
    pictures = [
        Picture(f"prompt {i}", Image.new("RGB", (128, 128), color), 0.5, PERSON) for i, color in enumerate(colors)
    ]
    portrait, keypoints = Image.new("RGB", (100, 200), (1, 2, 3)), Image.new("RGB", (128, 128), (4, 5, 6))
    paper = np.asarray(sheet(Demo(PERSON, portrait, keypoints, pictures, [0.1])))
    areas = [int((paper == color).all(-1).sum()) for color in (*colors, (4, 5, 6), (1, 2, 3))]
    assert areas == [areas[0]] * (number + 1) + [areas[0] // 2], "a narrow portrait keeps its shape"


def test_another_person_is_named_and_shown_in_the_corner():
    other = Person(np.ones((1, 512)), PERSON.face, (128, 128), Image.new("RGB", (112, 112), (9, 8, 7)), "Fay")
    image = Image.new("RGB", (128, 128), (90, 80, 70))
    shown = [
        np.asarray(sheet(Demo(PERSON, image, image, [Picture("a", image, 0.9, one)], []))) for one in (PERSON, other)
    ]
    own, another = (int((paper == (9, 8, 7)).all(-1).sum()) for paper in shown)
    assert own == 0
    assert another == 84 * 84


def test_long_captions_stay_below_their_picture():
    def paper(prompt: str) -> np.ndarray:
        picture = Picture(prompt, Image.new("RGB", (128, 128)), math.nan, PERSON)
        return np.asarray(sheet(Demo(PERSON, picture.image, picture.image, [picture], [])))

    margin = paper("")[0, 0]
    for prompt in ("a " * 400, "x" * 400, "übermäßig lang " * 40):
        drawn = paper(prompt)
        assert not (drawn == paper("")).all()
        assert (drawn[:, -28:] == margin).all()
