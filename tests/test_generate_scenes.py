"""Scenes in the shell, and ``generate`` without the IdentityNet and inside of face boxes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fast_instantid import InstantID, Pose, Scene, Subject, miniature
from fast_instantid.cli import main
from fast_instantid.cli.output import text_in
from fast_instantid.errors import FastInstantIDError
from fast_instantid.people import load_scene

PORTRAITS = miniature.files().portraits
TEXT = "flat portrait, plain blue background"
LEFT = {"person": "ada.png", "pose": {"angle": "slightly right", "x": 0.25, "size": 0.6}}
RIGHT = {"person": "bela.png", "weight": 0.9, "pose": {"x": 0.75, "size": 0.6}, "region": [0.5, 0, 1, 1]}


@pytest.fixture(scope="module")
def instantid():
    return InstantID.from_pretrained("miniature", device="cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, portrait in zip(("ada.png", "bela.png"), PORTRAITS, strict=False):
        shutil.copy(portrait, name)
    write(tmp_path)
    return tmp_path


def write(folder, *people, **scene):
    given = {"size": [256, 128], "people": list(people) or [LEFT, RIGHT]} | scene
    (folder / "bar.json").write_text(json.dumps(given))


def generate(*arguments, steps=1):
    models = ("--base", "miniature", "--device", "cpu", "--steps", str(steps))
    return main(["generate", *map(str, arguments), "--prompt", TEXT, *models])


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_scene_is_drawn_as_in_python(folder, instantid):
    assert generate("--person", "bar.json", "-o", "bar.png", steps=2) == 0
    ada, bela = (instantid.person(name) for name in ("ada.png", "bela.png"))
    left = Subject(ada, pose=Pose.of("slightly right", x=0.25, size=0.6))
    right = Subject(bela, 0.9, (0.5, 0, 1, 1), Pose(x=0.75, size=0.6))
    image = instantid(TEXT, Scene((256, 128), [left, right]), seed=0, num_inference_steps=2).images[0]
    assert np.array_equal(pixels("bar.png"), np.asarray(image))


def test_likeness_of_a_scene_is_that_of_its_least_alike_person(folder, capsys):
    assert generate("--person", "bar.json", "-o", "bar.png", "--likeness", "--json", steps=8) == 0
    report = json.loads(capsys.readouterr().out)
    assert -1 <= report["likeness"] <= 1


def test_scenes_and_persons_share_a_batch(folder):
    write(folder, LEFT)
    people = ("--person", "bar.json", "ada.png", "bela.png")
    assert generate(*people, "--size", "128x128", "-o", "out") == 0
    assert len(list((folder / "out").glob("*.png"))) == 3


def test_a_folder_of_people_has_no_scenes(folder):
    assert generate("--person", folder, "-o", "out") == 0
    assert sorted(path.name.split("-")[0] for path in (folder / "out").glob("*.png")) == ["ada", "bela"]


def test_regions_may_be_pictures(folder):
    Image.new("L", (8, 8), 255).save("region.png")
    write(folder, RIGHT | {"region": "region.png"})
    (subject,) = load_scene("bar.json", lambda name: InstantID.from_pretrained("miniature").person(name)).subjects
    assert subject.mask.min() == 1


@pytest.mark.parametrize(
    ("people", "scene", "wanted"),
    [
        ([], {"size": [256]}, "not enough values"),
        ([], {"size": [256.5, 128]}, "TypeError"),
        ([], {"people": []}, "a scene of nobody"),
        ([LEFT | {"person": "carl.png"}], {}, "carl.png"),
        ([{"pose": {}}], {}, "KeyError: 'person'"),
        ([LEFT | {"pose": {"angle": "sideways"}}], {}, "unknown angle 'sideways'"),
        ([LEFT | {"pose": {"angle": "left", "yaw": 3}}], {}, "yaw"),
        ([LEFT | {"pose": {"turn": 3}}], {}, "turn"),
        ([LEFT | {"pose": {"x": 2}}], {}, "the face of person 0 lies outside of the picture"),
        ([LEFT | {"pose": {"x": "left"}}], {}, "no scene"),
        ([LEFT | {"weight": 9}], {}, "weight 9 is out of range"),
        ([LEFT | {"region": [0, 0, 2, 1]}], {}, "left, top, right and bottom of a box"),
        ([LEFT | {"region": "none.png"}], {}, "none.png"),
        ([LEFT | {"colour": "red"}], {}, "colour"),
        ([LEFT | {"person": "bar.json"}], {}, "bar.json"),
        (["ada.png"], {}, "no scene"),
    ],
)
def test_what_is_no_scene_is_named_and_nothing_is_drawn(folder, capsys, people, scene, wanted):
    write(folder, *people, **scene)
    assert generate("--person", "bar.json", "-o", "bar.png") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert wanted in error
    assert not (folder / "bar.png").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\x00", "[" * 100_000])
def test_a_file_that_is_no_json_is_named(folder, text):
    (folder / "bar.json").write_text(text)
    with pytest.raises(FastInstantIDError, match=r"bar.json: no scene: "):
        load_scene("bar.json")


def test_without_the_identity_net_it_is_not_loaded(folder, instantid):
    assert generate("--person", "ada.png", "--no-identity-net", "-o", "ada.out.png", steps=2) == 0
    assert text_in(folder / "ada.out.png", "settings")["identity_net"] is False
    without = InstantID.from_pretrained("miniature", identity_net=False, device="cpu")
    assert not hasattr(without.pipe, "controlnet")
    ada = without.person("ada.png")
    run = {"seed": 0, "num_inference_steps": 2}
    image = without(TEXT, ada, width=128, height=128, **run).images[0]
    assert np.array_equal(pixels("ada.out.png"), np.asarray(image))
    same = instantid(TEXT, ada, keypoints=False, width=128, height=128, **run).images[0]
    assert np.abs(np.asarray(same).astype(int) - np.asarray(image)).max() <= 1


@pytest.mark.parametrize(
    "more",
    [("--image", "bela.png", "--strength", "0.9"), ("--scheduler", "DDIMScheduler"), ("--profile", "lcm-merged")],
    ids=lambda more: more[0],
)
def test_without_the_identity_net_the_other_options_work(folder, more):
    assert generate("--person", "ada.png", "--no-identity-net", *more, "-o", "ada.out.png", steps=2) == 0
    assert pixels("ada.out.png").shape == (128, 128, 3)


def test_settings_of_a_picture_are_drawn_again(folder):
    given = ("--enhance-non-face-region", "--no-identity-net")
    assert generate("--person", "ada.png", *given, "-o", "one.png") == 0
    assert generate("--from", "one.png", "-o", "two.png") == 0
    assert text_in(folder / "one.png", "settings") == text_in(folder / "two.png", "settings")
    assert np.array_equal(pixels("one.png"), pixels("two.png"))


def test_the_identity_stays_inside_of_the_face_as_in_python(folder, instantid):
    assert generate("--person", "ada.png", "--enhance-non-face-region", "-o", "ada.out.png", steps=2) == 0
    run = {"seed": 0, "num_inference_steps": 2, "width": 128, "height": 128, "enhance_non_face_region": True}
    image = instantid(TEXT, instantid.person("ada.png"), **run).images[0]
    assert np.array_equal(pixels("ada.out.png"), np.asarray(image))


def test_flags_are_columns_of_a_csv_file(folder):
    (folder / "jobs.csv").write_text(
        "person,prompt,enhance_non_face_region\nada.png,a,true\nada.png,a,false\nada.png,a,x\n"
    )
    assert generate("--jobs", "jobs.csv", "-o", "out") == 1
    assert len(list((folder / "out").glob("*.png"))) == 2
    assert "line 4" in (folder / "out" / "report.csv").read_text()
