"""What ``generate`` takes beside people and prompts: likeness, a gate, photographs without a face, poses, additions."""

from __future__ import annotations

import copy
import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fast_instantid import FaceAnalyzer, InstantID, Person, keypoint_picture, miniature, until_alike
from fast_instantid.cli import main
from fast_instantid.cli.output import save_picture
from fast_instantid.errors import BackendError, FastInstantIDError
from fast_instantid.people import find_person, likeness_in, likeness_word
from fast_instantid.pipelines.load import SCHEDULERS, with_additions
from fast_instantid.recorder import Recorder

FILES = miniature.files()
PORTRAITS = FILES.portraits
PROMPT = ("--prompt", "flat portrait, plain blue background")
MODELS = ("--base", "miniature", "--device", "cpu")


@pytest.fixture(scope="module")
def analyzer():
    return FaceAnalyzer.load(FILES.pack, device="cpu")


@pytest.fixture(scope="module")
def instantid():
    return InstantID.from_pretrained("miniature", device="cpu")


@pytest.fixture(scope="module")
def ada(analyzer):
    return find_person(analyzer, PORTRAITS[0])


@pytest.fixture
def run(ada, capsys, tmp_path, monkeypatch):
    """``run(*arguments)``: exit code, stdout and stderr of ``generate``, beside ``ada.safetensors``."""
    monkeypatch.chdir(tmp_path)
    ada.save("ada.safetensors")

    def run(*arguments, steps=1):
        capsys.readouterr()
        code = main(["generate", *map(str, arguments), *PROMPT, *MODELS, "--steps", str(steps)])
        return code, *capsys.readouterr()

    return run


def report():
    return list(csv.DictReader(Path("out/report.csv").open(encoding="utf-8")))


def pixels(path):
    return np.asarray(Image.open(path), int)


@pytest.mark.usefixtures("loaded_once")
class TestLikeness:
    def test_it_is_told_where_it_is_asked_for(self, run, analyzer, ada):
        with Recorder() as recorded:
            code, out, _ = run("--person", "ada.safetensors", "-o", "a.png", "--json")
        assert code == 0
        assert "likeness" not in json.loads(out)
        assert not {"detect", "recognise", "load network"} & {span.name for span in recorded.spans}, "no face models"
        code, out, _ = run("--person", "ada.safetensors", "-o", "b.png", "--json", "--likeness")
        told = json.loads(out)
        expected = likeness_in(analyzer, "b.png", [ada])[0, 0]
        assert told["likeness"] == pytest.approx(expected, abs=1e-4)
        assert told["word"] == likeness_word(expected)
        assert np.array_equal(pixels("a.png"), pixels("b.png"))
        _, out, _ = run("--person", "ada.safetensors", "-o", "c.png", "--likeness")
        assert f"likeness {told['likeness']}, word {told['word']}" in out
        for seeds in (("0",), ("0", "1")):  # also of pictures that are there
            assert run("--person", "ada.safetensors", "-o", "out", "--seed", *seeds, "2")[0] == 0
        assert run("--person", "ada.safetensors", "-o", "out", "--seed", "0", "1", "2", "--likeness")[0] == 0
        rows = report()
        assert [row["status"] for row in rows] == ["kept"] * 3
        assert float(rows[0]["likeness"]) == pytest.approx(told["likeness"], abs=2e-2)
        assert all(row["word"] == likeness_word(float(row["likeness"])) for row in rows)

    def test_a_picture_without_a_face(self, run):
        code, out, _ = run("--person", "ada.safetensors", "--size", "8x8", "--likeness", "--json", "-o", "a.png")
        assert (code, json.loads(out)["likeness"], json.loads(out)["word"]) == (0, None, "no face")

    def test_the_gate_keeps_the_most_alike_of_the_tries_and_its_seed(self, run):
        alone = {}
        for seed in (5, 1005, 2005):
            run("--person", "ada.safetensors", "--seed", seed, "-o", f"{seed}.png", "--likeness")
            alone[seed] = json.loads(Image.open(f"{seed}.png").text["fast-instantid settings"])["likeness"]
        best = max(alone, key=alone.get)
        gate = ("--person", "ada.safetensors", "--seed", 5, "--at-least", "1", "--tries", "3")
        code, out, _ = run(*gate, "-o", "kept.png", "--json")
        assert (code, json.loads(out)["kept_seed"], json.loads(out)["likeness"]) == (0, best, alone[best])
        assert np.array_equal(pixels("kept.png"), pixels(f"{best}.png"))
        assert main(["generate", "--from", "kept.png", *MODELS, "-o", "again.png"]) == 0
        assert np.array_equal(pixels("kept.png"), pixels("again.png"))
        middle = sorted(alone.values())[1]
        enough = next(seed for seed, likeness in alone.items() if likeness >= middle)
        for status in ("drawn", "kept"):
            assert run(*gate[:4], "--at-least", middle, "--tries", "3", "-o", "out")[0] == 0
            (row,) = report()
            assert (row["status"], int(row["kept_seed"]), row["seed"]) == (status, enough, "5"), "no more than needed"
            assert float(row["likeness"]) == alone[enough]
        assert len(list(Path("out").glob("*.png"))) == 1

    def test_several_pictures_are_gated_each_for_itself(self, run):
        people = [*map(str, PORTRAITS[:2])]
        gate = ("--person", *people, "--seed", "1", "2", "--at-least", "0.87", "--tries", "2", "-o", "out")
        assert run(*gate)[0] == 0
        rows = report()
        again = [int(row["kept_seed"]) - int(row["seed"]) for row in rows]
        assert set(again) == {0, 1000}, "some are drawn again, and others not"
        before = {path: path.read_bytes() for path in Path("out").glob("*.png")}
        (gone := Path("out") / rows[1]["output"]).unlink()  # as a kill between two batches leaves it
        assert run(*gate)[0] == 0
        assert [row["status"] for row in report()] == ["kept", "drawn", "kept", "kept"]
        assert {path: path.read_bytes() for path in before if path != gone} == {
            path: content for path, content in before.items() if path != gone
        }
        assert [row["kept_seed"] for row in report()] == [row["kept_seed"] for row in rows]

    def test_python_keeps_the_most_alike_too(self, ada, analyzer, instantid):
        options = {"num_inference_steps": 2, "width": 128, "height": 128}
        kept = until_alike(instantid, PROMPT[1], ada, at_least=1, tries=3, seed=5, **options)
        alone = {seed: instantid(PROMPT[1], ada, seed=seed, **options).images[0] for seed in (5, 1005, 2005)}
        likeness = {seed: likeness_in(analyzer, image, [ada])[0, 0] for seed, image in alone.items()}
        assert kept.seed == max(likeness, key=likeness.get)
        assert kept.likeness.shape == (1,)
        assert kept.lowest == pytest.approx(likeness[kept.seed], abs=1e-6)
        assert np.array_equal(kept.image, alone[kept.seed])
        assert until_alike(instantid, "x", ada, at_least=-1, tries=3, seed=5, **options).seed == 5
        with pytest.raises(FastInstantIDError, match="tries 0: expected 1 to 100"):
            until_alike(instantid, "x", ada, at_least=0.5, tries=0)
        with pytest.raises(FastInstantIDError, match="at_least nan: expected -1 to 1"):
            until_alike(instantid, "x", ada, at_least=float("nan"))
        with pytest.raises(FastInstantIDError, match="likeness needs Persons"):
            until_alike(instantid, "x", instantid.identity(ada), at_least=0.5)
        with pytest.raises(BackendError, match="no face analyzer to judge likeness"):
            until_alike(InstantID(instantid.pipe, 0, adapter=instantid.adapter), "x", ada, at_least=0.5)

    def test_a_person_of_another_recogniser_is_refused_before_it_is_drawn(self, run, ada):
        Person(**{**vars(ada), "recognizer": "0" * 64}).save("other.safetensors")
        code, _, err = run("--person", "other.safetensors", "--likeness", "-o", "a.png")
        assert code == 1
        assert "were made by different recognisers" in err
        assert not Path("a.png").exists()


@pytest.mark.usefixtures("loaded_once")
class TestNoFace:
    @pytest.fixture
    def photos(self, tmp_path):
        """50 photographs, three of them without a face."""
        (tmp_path / "photos").mkdir()
        for number in range(50):
            path = tmp_path / "photos" / f"{number:02}.png"
            if number in (7, 20, 49):
                Image.new("RGB", (128, 128), "gray").save(path)
            else:
                shutil.copy(PORTRAITS[number % 6], path)
        return tmp_path / "photos"

    @pytest.mark.parametrize(("policy", "code"), [("error", 1), ("skip", 0), ("none", 0)])
    def test_fifty_photographs_of_which_three_show_none(self, run, photos, policy, code):
        arguments = ("--person", photos, "-o", "out", "--size", "64x64", "--batch-size", 25, "--no-face", policy)
        got, _, err = run(*arguments)
        assert got == code, err
        rows = report()
        odd = [row for row in rows if Path(row["person"]).stem in ("07", "20", "49")]
        assert all(row["status"] == "drawn" for row in rows if row not in odd)
        status = {"error": "failed", "skip": "skipped", "none": "drawn"}[policy]
        assert [row["status"] for row in odd] == [status] * 3
        assert len(list(Path("out").glob("*.png"))) == (50 if policy == "none" else 47)
        if policy == "none":
            assert [row["note"] for row in rows if row["note"]] == ["no face: drawn without a person"] * 3
            assert np.array_equal(*(pixels(f"out/{row['output']}") for row in odd[:2])), "of no person"
        else:
            assert all(f"no face found in {row['person']}" in row["error"] for row in odd)
            assert all(row["person"] in err for row in odd)
        assert run(*arguments)[0] == code
        again = {row["output"]: row for row in report()}
        for row in odd:
            assert again[row["output"]]["status"] == ("kept" if policy == "none" else status)
            assert again[row["output"]]["note"] == row["note"]

    def test_one_picture(self, run, analyzer, tmp_path):
        Image.new("RGB", (128, 128)).save("blank.png")
        code, out, err = run("--photo", "blank.png", "--no-face", "skip", "-o", "a.png", "--json")
        assert (code, json.loads(out)["output"]) == (0, None)
        assert "skipped: no face found in blank.png" in err
        assert not Path("a.png").exists()
        code, out, _ = run("--photo", "blank.png", "--no-face", "none", "-o", "a.png", "--likeness")
        assert (code, "no face: drawn without a person" in out) == (0, True)
        assert main(["generate", "--from", "a.png", *MODELS, "-o", "again.png"]) == 0
        assert np.array_equal(pixels("a.png"), pixels("again.png"))
        run("--photo", "blank.png", PORTRAITS[0], "--no-face", "skip", "-o", "b.png")
        run("--photo", PORTRAITS[0], "-o", "c.png")
        assert np.array_equal(pixels("b.png"), pixels("c.png")), "of several photographs, the others count"
        code, _, err = run("--photo", "missing.png", "--no-face", "skip", "-o", "d.png")
        assert code == 1, "a missing file is no photograph without a face"


@pytest.mark.usefixtures("loaded_once")
class TestKeypoints:
    def test_a_picture_that_the_command_wrote_sets_the_pose(self, run, analyzer, ada, instantid):
        big = Image.open(PORTRAITS[3]).convert("RGB").resize((512, 512))
        big.save("big.png")
        assert main(["keypoints", "big.png", "--pack", "miniature", "-o", "hint.png"]) == 0
        assert run("--person", "ada.safetensors", "--keypoints", "hint.png", "-o", "a.png", steps=2)[0] == 0
        hint = keypoint_picture(analyzer.detect(big)[0], (512, 512), (128, 128))
        options = {"keypoints": hint, "seed": 0, "num_inference_steps": 2, "guidance_scale": miniature.GUIDANCE}
        expected = instantid(PROMPT[1], ada, **options).images[0]
        assert np.array_equal(pixels("a.png"), np.asarray(expected)), "dots of the same size, from the same points"
        hint.save("plain.jpg", quality=100)
        assert run("--person", "ada.safetensors", "--keypoints", "plain.jpg", "-o", "b.png", steps=2)[0] == 0
        assert np.abs(pixels("b.png") - pixels("a.png")).mean() < 2, "any keypoint picture works"
        Path("jobs.csv").write_text(
            "person,prompt,keypoints\nada.safetensors,a,hint.png\nada.safetensors,a,\nada.safetensors,a,missing.png\n"
        )
        assert run("--jobs", "jobs.csv", "-o", "out")[0] == 1
        rows = report()
        assert [row["status"] for row in rows] == ["drawn", "drawn", "failed"]
        assert not np.array_equal(*(pixels(f"out/{row['output']}") for row in rows[:2]))
        assert main(["generate", "--from", "a.png", *MODELS, "-o", "again.png"]) == 0
        assert np.array_equal(pixels("a.png"), pixels("again.png"))


class TestAdditions:
    @pytest.fixture
    def lora(self, instantid, tmp_path, monkeypatch):
        """A LoRA's file. Each command gets a UNet of its own, which LoRAs change."""
        pipe = instantid.pipe

        def load_pipeline(*_):
            return type(pipe)(**{**pipe.components, "unet": copy.deepcopy(pipe.unet)})

        monkeypatch.setattr("fast_instantid.pipelines.load_pipeline", load_pipeline)
        tensors, rng = {}, torch.Generator().manual_seed(0)
        for name, layer in pipe.unet.named_modules():
            if name.endswith(("attn1.to_q", "attn2.to_v")):
                for part, shape in (("A", (2, layer.in_features)), ("B", (layer.out_features, 2))):
                    tensors[f"unet.{name}.lora_{part}.weight"] = torch.randn(shape, generator=rng)
        save_file(tensors, tmp_path / "style.safetensors")
        return "style.safetensors"

    @pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
    def test_loras_and_a_scheduler(self, run, lora):
        pictures = {}
        for name, options in {
            "plain": (),
            "nothing": ("--lora", lora, "0"),
            "half": ("--lora", lora, "0.5"),
            "twice": ("--lora", lora, "0.25", "--lora", lora, "0.25"),
            "lcm": ("--lora", lora, "0.5", "--scheduler", "LCMScheduler"),
        }.items():
            code, _, err = run("--person", "ada.safetensors", *options, "-o", f"{name}.png", steps=2)
            assert code == 0, err
            pictures[name] = pixels(f"{name}.png")
        for one, other in (("plain", "nothing"), ("half", "twice")):
            assert np.abs(pictures[one] - pictures[other]).max() <= 2
        for one, other in (("half", "nothing"), ("half", "lcm")):
            assert np.abs(pictures[one] - pictures[other]).max() > 10
        assert main(["generate", "--from", "lcm.png", *MODELS, "-o", "again.png"]) == 0
        assert np.array_equal(pixels("again.png"), pictures["lcm"])

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_every_scheduler_is_there_or_says_what_it_needs(self, name, instantid):
        try:
            pipe = with_additions(instantid.pipe, name)
        except FastInstantIDError as error:
            assert name in ("DPMSolverSDEScheduler", "LMSDiscreteScheduler")
            assert "requires the" in str(error)  # noqa: PT017
        else:
            assert type(pipe.scheduler).__name__ == name
            assert pipe.scheduler.config.prediction_type == "v_prediction"

    @pytest.mark.usefixtures("loaded_once")
    def test_another_controlnet(self, run):
        assert main(["keypoints", str(PORTRAITS[3]), "--pack", "miniature", "-o", "hint.png"]) == 0
        net, pictures = FILES.instantid / "ControlNetModel", {}
        for name, more in {"plain": (), "zero": (net, "hint.png", "0"), "full": (net, "hint.png")}.items():
            options = ("--controlnet", *more) if more else ()
            arguments = ("--person", "ada.safetensors", *options, "--seed", "1", "2", "-o", name)
            code, _, err = run(*arguments)
            assert code == 0, err
            pictures[name] = pixels(next(Path(name).glob("*-1-*")))
        assert np.abs(pictures["plain"] - pictures["zero"]).max() <= 1
        assert np.abs(pictures["plain"] - pictures["full"]).max() > 10

    @pytest.mark.usefixtures("loaded_once")
    def test_a_picture_to_begin_with(self, run, ada):
        start = Image.new("RGB", (200, 160), (250, 20, 20))
        start.save("start.png")
        distance = []
        for strength in ("0.25", "1"):
            options = ("--image", "start.png", "--strength", strength)
            code, _, err = run("--person", "ada.safetensors", *options, "-o", f"{strength}.png", steps=4)
            assert code == 0, err
            distance.append(np.abs(pixels(f"{strength}.png") - [250, 20, 20]).mean())
        assert distance[0] < distance[1] / 2
        Path("jobs.csv").write_text(
            "person,prompt,image,strength\nada.safetensors,a,start.png,0.5\nada.safetensors,a,,\n"
        )
        assert run("--jobs", "jobs.csv", "-o", "out", steps=2)[0] == 0
        assert main(["generate", "--from", "0.25.png", *MODELS, "-o", "again.png"]) == 0
        assert np.array_equal(pixels("0.25.png"), pixels("again.png"))

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--scheduler", "Euler"], "unknown scheduler 'Euler': choose one of DDIMScheduler"),
            (["--scheduler", "DPMSolverSDEScheduler"], "DPMSolverSDEScheduler requires the torchsde library"),
            (["--lora", "missing.safetensors"], "missing.safetensors: neither a file nor a folder"),
            (["--lora", "ada.safetensors"], "ada.safetensors"),
            (["--lora", "a", "b"], "--lora a b: expected PATH [SCALE], the scale from -10 to 10"),
            (["--lora", "a", "nan"], "--lora a nan: expected PATH [SCALE]"),
            (["--controlnet", "net"], "--controlnet net: expected PATH PICTURE [SCALE]"),
            (["--controlnet", "missing", "a.png"], "missing: neither a file nor a folder"),
            (["--controlnet", "ada.safetensors", "a.png"], "expected a ControlNet"),
            (["--image", "missing.png", "--strength", "1"], "missing.png"),
            (["--image", "start.png", "--strength", "2"], "strength 2 of 1 steps: expected 0 to 1"),
            (
                ["--image", "start.png", "--strength", "0.5"],
                "strength 0.5 of 1 steps: expected 0 to 1, and at least one",
            ),
            (["--strength", "0.5"], "--strength without --image"),
            (["--tries", "2"], "--tries without --at-least"),
            (["--at-least", "1.5"], "at_least 1.5: expected -1 to 1"),
            (["--at-least", "0.5", "--tries", "0"], "tries 0: expected 1 to 100"),
            (["--keypoints", "missing.png"], "missing.png"),
        ],
    )
    @pytest.mark.usefixtures("loaded_once")
    def test_what_cannot_be_is_said_and_nothing_drawn(self, run, options, said):
        Image.new("RGB", (128, 128)).save("start.png")
        for output in ("a.png", "out"):
            code, out, err = run("--person", "ada.safetensors", "--seed", "1", *options, "-o", output)
            assert code == 1
            assert said in err
            assert "Traceback" not in err
            assert out == ""
        assert not Path("a.png").exists()
        assert list(Path("out").glob("*.png")) == []


@pytest.mark.parametrize(
    "settings",
    [
        *("[]", "5", '{"seed": "x"}', '{"lora": 5}', '{"lora": ["ab"]}', '{"size": [1]}', '{"size": 5}', "{"),
        *("[" * 100_000, '{"seed": Infinity}', f'{{"scale": {10**400}}}'),
    ],
)
def test_settings_that_lie_are_refused(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_picture(Image.new("RGB", (8, 8)), Path("a.png"), settings=settings)
    assert main(["generate", "--from", "a.png", "--person", "p.safetensors", *PROMPT, *MODELS, "-o", "b.png"]) == 1
    assert re.search(r"a.png: no settings in it|--lora a b: expected PATH", capsys.readouterr().err)
