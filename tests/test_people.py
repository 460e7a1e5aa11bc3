"""Persons: found, chosen, weighed, kept in files and compared."""

from __future__ import annotations

import csv
import json
import stat
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fast_instantid import Adapter, FaceAnalyzer, Identity, InstantID, Person, Subject, miniature
from fast_instantid.cli import main
from fast_instantid.errors import BackendError, FastInstantIDError, ModelFileError, NoFaceError
from fast_instantid.people import find_people, find_person, merge, ordered
from fast_instantid.weights import read_metadata

PORTRAITS = miniature.files().portraits
BLANK = Image.new("RGB", (128, 128))


@pytest.fixture(scope="module")
def analyzer():
    return FaceAnalyzer.load(miniature.files().pack, device="cpu")


@pytest.fixture(scope="module")
def six(analyzer):
    return [find_person(analyzer, portrait) for portrait in PORTRAITS]


@pytest.fixture(scope="module")
def instantid():
    return InstantID.from_pretrained("miniature", device="cpu")


@pytest.fixture(scope="module")
def group():
    """Three of the portraits beside each other, the middle one enlarged."""
    picture = Image.new("RGB", (512, 256), "gray")
    for number, (left, top, side) in enumerate([(0, 128, 128), (128, 0, 256), (384, 0, 128)]):
        picture.paste(Image.open(PORTRAITS[number]).convert("RGB").resize((side, side)), (left, top))
    return picture


def nearest(person, people):
    return int(np.argmax([person.likeness(other) for other in people]))


class TestChoosing:
    @pytest.mark.parametrize(
        ("choose", "expected"),
        [
            ("largest", 1),
            ("left to right", 0),
            ("right to left", 2),
            ("top to bottom", 2),
            ("bottom to top", 0),
            ("center", 1),
            (0, 0),
            (1, 1),
            (-1, 2),
            (lambda faces: min(faces, key=lambda face: face.bbox[0]), 0),
        ],
    )
    def test_the_face_that_is_meant(self, analyzer, six, group, choose, expected):
        assert nearest(find_person(analyzer, group, choose=choose), six) == expected

    def test_the_face_most_like_a_person(self, analyzer, six, group):
        for number in range(3):
            assert nearest(find_person(analyzer, group, choose=six[number]), six) == number

    def test_orders_are_stable(self):
        faces = [{"bbox": [0, 0, 4, 4], "det_score": 0.5, "number": number} for number in range(3)]
        numbers = {order: [face["number"] for face in ordered(faces, order)] for order in ("score", "left to right")}
        assert numbers == {"score": [0, 1, 2], "left to right": [0, 1, 2]}
        assert ordered(faces)[0]["number"] == 2  # as the reference takes the last of equal ones

    def test_all_people_of_a_photograph(self, analyzer, six, group):
        people = find_people(analyzer, group)
        assert [nearest(person, six) for person in people] == [0, 1, 2]
        assert [person.name for person in people] == ["image 1", "image 2", "image 3"]
        assert find_people(analyzer, BLANK) == []

    def test_what_nobody_can_mean(self, analyzer, group):
        with pytest.raises(NoFaceError, match=r"face 3 of 3: they count from 0, left to right"):
            find_person(analyzer, group, choose=3)
        with pytest.raises(FastInstantIDError, match="unknown order of faces 'leftmost': choose one of largest, left"):
            find_person(analyzer, group, choose="leftmost")
        with pytest.raises(FastInstantIDError, match="2 pictures where one is expected"):
            find_people(analyzer, [group, group])


class TestPhotographs:
    def test_those_without_a_face_are_left_out_on_request(self, analyzer, six, caplog):
        pictures = [BLANK, PORTRAITS[0], BLANK]
        person = find_person(analyzer, pictures, no_face="skip", weights=[1, 2, 3])
        assert np.array_equal(person.embeddings, six[0].embeddings)
        assert person.weights.tolist() == [2]
        assert "no face found in image 0, image 2: left out" in caplog.text
        with pytest.raises(NoFaceError, match="image 0, image 2"):
            find_person(analyzer, pictures)
        with pytest.raises(NoFaceError, match="image 0, image 1"):
            find_person(analyzer, [BLANK, BLANK], no_face="skip")
        with pytest.raises(FastInstantIDError, match=r"unknown policy 'ignore'.*error, skip or none"):
            find_person(analyzer, BLANK, no_face="ignore")

    def test_equal_weights_are_the_plain_mean_to_the_bit(self, analyzer):
        plain = find_person(analyzer, PORTRAITS[:2])
        weighed = find_person(analyzer, PORTRAITS[:2], weights=[3, 3])
        assert np.array_equal(plain.embedding, weighed.embedding)
        assert np.array_equal(plain.embedding, plain.embeddings.mean(axis=0))
        assert weighed.rows is weighed.embeddings

    def test_weights_move_the_person(self, analyzer, six):
        likeness = [
            find_person(analyzer, PORTRAITS[:2], weights=[1, weight]).likeness(six[1]) for weight in (0, 0.5, 1, 2)
        ]
        assert likeness == sorted(likeness)
        assert find_person(analyzer, PORTRAITS[:2], weights=[1, 0]).likeness(six[0]) == pytest.approx(1)

    @pytest.mark.parametrize(
        ("weights", "said"),
        [
            ([1], "1 weights for 2 photographs"),
            ([0, 0], "at least one above 0"),
            ([1, -1], "expected 0 or more"),
            ([1, float("nan")], "NaN or infinity"),
        ],
    )
    def test_weights_that_weigh_nothing(self, analyzer, weights, said):
        with pytest.raises(FastInstantIDError, match=said):
            find_person(analyzer, PORTRAITS[:2], weights=weights)

    def test_an_outlier_is_named_dropped_and_outweighed(self, six):
        rng = np.random.default_rng(0)
        rows = six[0].embeddings + rng.normal(0, 0.02, (5, 512)).astype(np.float32)
        right = Person(rows, six[0].face, six[0].photo_size)
        wrong = merge([right, six[1]])
        assert right.outliers() == []
        assert wrong.outliers() == [5]
        assert np.array_equal(wrong.without([5]).embedding, right.embedding)
        cost = 1 - wrong.likeness(right)
        assert 1 - wrong.robust().likeness(right) < cost / 5
        with pytest.raises(FastInstantIDError, match="no photograph is left"):
            wrong.without(range(6))

    def test_the_table_is_what_pairs_say(self, six):
        table = merge(six).likeness_table()
        for i, j in combinations(range(6), 2):
            assert table[i, j] == pytest.approx(six[i].likeness(six[j]), abs=1e-6)


class TestFiles:
    @pytest.fixture
    def anna(self, analyzer):
        person = find_person(analyzer, PORTRAITS[:2], name="Änna / 安娜", weights=[1, 0.5])
        return Person(**{**vars(person), "notes": "two photographs"})

    def test_a_person_is_kept_whole(self, anna, tmp_path):
        path = tmp_path / "anna.safetensors"
        anna.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        again = Person.load(path)
        for name in ("name", "notes", "photo_size", "recognizer"):
            assert getattr(again, name) == getattr(anna, name), name
        for name in ("embeddings", "weights", "keypoints", "embedding"):
            assert np.array_equal(getattr(again, name), getattr(anna, name)), name
        assert np.array_equal(np.asarray(again.picture), np.asarray(anna.picture))
        assert np.array_equal(again.face.bbox, anna.face.bbox)
        assert again.face.det_score == anna.face.det_score
        with pytest.raises(ValueError, match="read-only"):
            again.embeddings[0] = 0

    def test_it_is_small_without_a_picture(self, anna, tmp_path):
        anna.save(tmp_path / "small.safetensors", picture=False)
        assert (tmp_path / "small.safetensors").stat().st_size <= 30_000
        assert Person.load(tmp_path / "small.safetensors").picture is None

    def test_its_identity_draws_without_an_adapter(self, anna, instantid, tmp_path):
        adapter = Adapter.load(miniature.files().instantid, "cpu")
        identity = adapter.identity(anna.rows)
        anna.with_identity(identity).save(tmp_path / "anna.safetensors")
        again = Person.load(tmp_path / "anna.safetensors")
        assert all(map(torch.equal, again.identity.bank.keys, identity.bank.keys))
        bare = InstantID(instantid.pipe, identity_net=0)
        assert torch.equal(bare.identity(again).tokens, identity.tokens)
        with pytest.raises(BackendError, match="no adapter"):
            bare.identity(anna)
        assert again.without([1]).identity is None  # of other photographs

    def test_a_thousand_load_in_a_second_or_so(self, anna, tmp_path):
        for number in range(100):
            anna.save(tmp_path / f"{number}.safetensors")
        time.sleep(0.02)  # file_version waits for the clock of the file system
        start = time.process_time()
        for number in range(100):
            Person.load(tmp_path / f"{number}.safetensors")
        assert (time.process_time() - start) * 10 < 3  # 1 s on a quiet core

    def test_persons_of_two_recognisers_are_not_mixed(self, anna, six):
        other = Person(**{**vars(six[2]), "recognizer": "0" * 32})
        for call in (lambda: anna.likeness(other), lambda: merge([anna, other])):
            with pytest.raises(FastInstantIDError, match="安娜 and cleo were made by different recognisers"):
                call()

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda tensors, metadata: metadata.update(version="2"), "format version 2; this package reads 1: update"),
            (lambda tensors, metadata: metadata.pop("format"), "this is not a person"),
            (lambda tensors, metadata: metadata.pop("person"), "a damaged person"),
            (lambda tensors, metadata: tensors["embeddings"].mul_(2), "its checksum does not fit"),
            (lambda tensors, metadata: metadata.update(person="{}"), "its checksum does not fit"),
        ],
    )
    def test_another_file_is_refused(self, anna, tmp_path, change, said):
        path = tmp_path / "anna.safetensors"
        anna.save(path)
        tensors, metadata = load_file(path), read_metadata(path)
        change(tensors, metadata)
        save_file(tensors, path, metadata)
        with pytest.raises(ModelFileError, match=said):
            Person.load(path)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("embeddings", torch.zeros(2, 256)),
            ("embeddings", torch.full((2, 512), torch.nan)),
            ("embeddings", torch.zeros(2, 512, dtype=torch.float16)),
            ("weights", torch.zeros(2)),
            ("weights", torch.ones(3)),
            ("keypoints", torch.zeros(4, 2)),
            ("keypoints", torch.full((5, 2), torch.inf)),
            ("box", torch.zeros(5)),
            ("picture", torch.zeros(112, 112, 3)),
            ("identity.tokens", torch.zeros(2, 1, 16, 64)),
        ],
    )
    def test_a_file_that_lies_is_refused(self, anna, tmp_path, name, value):
        from fast_instantid.people.person import _checksum

        path = tmp_path / "anna.safetensors"
        anna.save(path)
        tensors, metadata = load_file(path) | {name: value}, read_metadata(path)
        metadata["checksum"] = _checksum(tensors, metadata["person"])
        save_file(tensors, path, metadata)
        with pytest.raises(ModelFileError, match="a damaged person"):
            Person.load(path)

    def test_an_identity_is_no_person(self, anna, tmp_path):
        adapter = Adapter.load(miniature.files().instantid, "cpu")
        adapter.identity(anna.rows).save(tmp_path / "identity.safetensors")
        with pytest.raises(ModelFileError, match="this is not a person"):
            Person.load(tmp_path / "identity.safetensors")
        anna.save(tmp_path / "person.safetensors")
        with pytest.raises(ModelFileError, match="this is not an identity"):
            Identity.load(tmp_path / "person.safetensors")


class TestCommands:
    @pytest.fixture
    def run(self, capsys, tmp_path, monkeypatch):
        """``run(*arguments)``: exit code, stdout and stderr of ``person``, on the miniature's face pack."""
        monkeypatch.chdir(tmp_path)

        def run(action, *arguments):
            pack = ["--pack", "miniature"] if action == "make" else []
            code = main(["person", action, *map(str, arguments), *pack])
            out, err = capsys.readouterr()
            return code, out, err

        return run

    def test_from_photographs_to_a_picture(self, run, six, capsys):
        code, out, _ = run("make", *PORTRAITS[:2], "-o", "anna.safetensors", "--name", "Anna", "--json")
        assert (code, json.loads(out)["name"], json.loads(out)["photographs"]) == (0, "Anna", 2)
        assert run("make", PORTRAITS[0], "-o", "ada.safetensors", "--notes", "one photo")[0] == 0
        code, out, _ = run("show", "anna.safetensors", "ada.safetensors")
        assert code == 0
        assert "anna.safetensors: 'Anna', 2 photograph(s), alike by" in out
        assert "'ada', 1 photograph(s), a picture, one photo" in out
        assert run("merge", "anna.safetensors", "ada.safetensors", "-o", "both.safetensors", "--name", "Both")[0] == 0
        assert len(Person.load("both.safetensors").embeddings) == 3
        code, out, _ = run("compare", "ada.safetensors", "anna.safetensors", "both.safetensors", "--json")
        assert {pair["b"]: pair["likeness"] for pair in json.loads(out)[:1]} == {
            "anna.safetensors": pytest.approx(six[0].likeness(Person.load("anna.safetensors")), abs=1e-3)
        }
        generate = ["generate", "--person", "ada.safetensors", "--prompt", "x", "--steps", "1", "--base", "miniature"]
        assert main([*generate, "-o", "by-person.png"]) == 0
        generate[1:3] = ["--photo", str(PORTRAITS[0])]
        assert main([*generate, "-o", "by-photo.png"]) == 0
        assert np.array_equal(Image.open("by-person.png"), Image.open("by-photo.png"))

    def test_an_outlier_is_dropped(self, run):
        photos = [PORTRAITS[0]] * 3 + [PORTRAITS[1]]
        code, _, err = run("make", *photos, "-o", "a.safetensors", "--drop-outliers")
        assert code == 0
        assert "left out, as hardly alike: photo 4 of 4" in err
        assert len(Person.load("a.safetensors").embeddings) == 3

    def test_what_it_keeps_is_exported(self, run):
        instantid = miniature.files().instantid
        assert run("make", PORTRAITS[0], "-o", "a.safetensors", "--adapter", instantid, "--device", "cpu")[0] == 0
        person = Person.load("a.safetensors")
        for name in ("a.npy", "a.png", "identity.safetensors"):
            assert run("export", "a.safetensors", "-o", name)[0] == 0
            assert stat.S_IMODE(Path(name).stat().st_mode) == 0o600
        assert np.array_equal(np.load("a.npy"), person.embedding)
        assert np.array_equal(Image.open("a.png"), person.picture)
        assert torch.equal(Identity.load("identity.safetensors").tokens, person.identity.tokens)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["make", PORTRAITS[0], "-o", "a.png"], "must end in one of .safetensors"),
            (["make", PORTRAITS[0], "-o", "a.safetensors", "--index", "0", "--like", "b"], "give one of them"),
            (["make", PORTRAITS[0], "-o", "a.safetensors", "--index", "4"], "face 4 of 1"),
            (["make", PORTRAITS[0], "-o", "a.safetensors", "--choose", "left"], "unknown order of faces 'left'"),
            (["make", PORTRAITS[0], "-o", "a.safetensors", "--weights", "1", "2"], "2 weights for 1 photographs"),
            (["show", "missing.safetensors"], "no such file"),
            (["show", PORTRAITS[0]], "not a file of weights"),
            (["compare", "plain.safetensors"], "give two or more files"),
            (["export", "plain.safetensors", "-o", "x.safetensors"], "keeps no identity"),
            (["export", "plain.safetensors", "-o", "x.png"], "keeps no picture"),
            (["merge", "plain.safetensors", "-o", "nowhere/x.safetensors"], "there is no folder"),
        ],
    )
    def test_what_cannot_be_done_is_said_and_nothing_written(self, run, six, tmp_path, arguments, said):
        six[0].save("plain.safetensors", picture=False)
        code, _, err = run(*arguments)
        assert code == 1
        assert said in err
        assert "Traceback" not in err
        assert [path.name for path in tmp_path.iterdir()] == ["plain.safetensors"]


class TestBatches:
    """One batch draws other people in each picture."""

    @staticmethod
    def draw(instantid, prompts, people, seeds, **options):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        options = {"num_inference_steps": 2, "output_type": "np", "width": 128, "height": 128} | options
        return instantid(prompts, people, generator=generators, **options).images

    @pytest.mark.parametrize("guidance", [1.0, 2.0])
    def test_each_picture_is_what_it_is_alone(self, instantid, six, guidance):
        prompts = ["a portrait", "film noir", "a watercolour"]
        subjects = [Subject(six[0], 0.8), Subject(six[1], 0.4), Subject(six[2], 0.8, region=torch.ones(8, 8))]
        together = self.draw(instantid, prompts, [[s] for s in subjects], (3, 4, 5), guidance_scale=guidance)
        for i, subject in enumerate(subjects):
            alone = self.draw(instantid, prompts[i : i + 1], subject, (3 + i,), guidance_scale=guidance)
            assert np.abs(together[i] - alone[0]).max() < 2e-5
            other = self.draw(instantid, prompts[i : i + 1], six[5], (3 + i,), guidance_scale=guidance)
            assert np.abs(together[i] - other[0]).max() > 1e-2

    def test_several_pictures_of_each_and_two_people_in_each(self, instantid, six):
        left = torch.zeros(128, 128)
        left[:, :64] = 1

        def pair(one, other):
            return [Subject(one, region=left), Subject(other, region=1 - left)]

        pairs = [pair(six[0], six[1]), pair(six[2], six[3])]
        together = self.draw(instantid, ["x", "y"], pairs, range(4), num_images_per_prompt=2)
        for i in range(4):
            alone = self.draw(instantid, ["x", "y"][i // 2], pairs[i // 2], (i,))
            assert np.abs(together[i] - alone[0]).max() < 2e-5

    def test_they_show_their_people(self, instantid, analyzer, six):
        options = {"output_type": "pil", "num_inference_steps": 12}
        images = self.draw(instantid, "a portrait", [[person] for person in six], range(6), **options)
        found = [find_person(analyzer, image) for image in images]
        assert sum(nearest(person, six) == i for i, person in enumerate(found)) >= 5

    def test_what_does_not_fit_is_refused(self, instantid, six):
        with pytest.raises(FastInstantIDError, match="pictures of 1, 2 people"):
            self.draw(instantid, ["x", "y"], [six[:1], six[1:3]], (0, 1))
        with pytest.raises(FastInstantIDError, match="3 prompts for the people of 2 pictures"):
            self.draw(instantid, ["x", "y", "z"], [six[:1], six[1:2]], (0, 1, 2))
        with (
            pytest.raises(BackendError, match="people of 2 pictures, but a batch of 3: give a prompt for each"),
            instantid.attached([six[:1], six[1:2]]),
        ):
            instantid.pipe(["x", "y", "z"], image=Image.new("RGB", (128, 128)), num_inference_steps=1)
        regions = [[Subject(six[0], region=torch.ones(8, side))] for side in (8, 9)]
        with pytest.raises(FastInstantIDError, match="must have one size"):
            self.draw(instantid, ["x", "y"], regions, (0, 1))


class TestJobs:
    """Many pictures by one call of ``generate``."""

    OPTIONS = ("--base", "miniature", "--steps", "1", "--device", "cpu", "-o", "out")

    @pytest.fixture
    def run(self, six, capsys, tmp_path, monkeypatch, loaded_once):
        """``run(*arguments)``: exit code, stderr and the report of ``generate``."""
        monkeypatch.chdir(tmp_path)
        for person in six[:3]:
            person.save(f"{person.name}.safetensors")

        def run(*arguments, options=self.OPTIONS):
            code = main(["generate", *map(str, arguments), *options])
            report = Path("out/report.csv")
            rows = list(csv.DictReader(report.open(encoding="utf-8"))) if report.exists() else []
            return code, capsys.readouterr().err, rows

        return run

    def test_people_times_prompts_times_seeds(self, run):
        code, err, rows = run("--person", "*.safetensors", "--prompt", "a", "b", "--seed", "1", "2")
        assert code == 0
        assert "12 drawn, 0 kept, 0 failed" in err
        assert [row["person"] for row in rows[::4]] == ["ada.safetensors", "bela.safetensors", "cleo.safetensors"]
        pictures = {row["output"]: np.asarray(Image.open(f"out/{row['output']}")) for row in rows}
        assert len({picture.tobytes() for picture in pictures.values()}) == 12
        alone = (*self.OPTIONS[:-1], "alone.png")
        assert run("--person", "bela.safetensors", "--prompt", "b", "--seed", "2", options=alone)[0] == 0
        (name,) = (
            row["output"] for row in rows if (row["person"][:4], row["prompt"], row["seed"]) == ("bela", "b", "2")
        )
        assert np.abs(np.asarray(Image.open("alone.png"), int) - pictures[name]).max() <= 1
        before = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.png")}
        code, err, _ = run("--person", "*.safetensors", "--prompt", "a", "b", "--seed", "1", "2")
        assert "0 drawn, 12 kept, 0 failed" in err
        assert {path: path.stat().st_mtime_ns for path in Path("out").glob("*.png")} == before

    def test_json_has_the_counts(self, run, capsys):
        for command, counts in (
            (("generate",), (2, 0, 0)),
            (("generate",), (0, 2, 0)),
            (("batch", "generate"), (2, 0, 0)),
        ):
            options = ("--person", "ada.safetensors", "--prompt", "a", "--seed", "1", "2", "--json", *self.OPTIONS[:-1])
            assert main([*command, *options, "_".join(command)]) == 0
            document = json.loads(capsys.readouterr().out)
            assert (document["drawn"], document["kept"], document["failed"]) == counts

    def test_the_report_keeps_the_pictures_of_earlier_jobs(self, run):
        for seeds in (("1", "2"), ("3",), ("1",), ("4",)):
            if seeds == ("4",):
                min(Path("out").glob("*.png")).unlink()
            _, _, rows = run("--person", "ada.safetensors", "--prompt", "a", "--seed", *seeds, "--likeness")
            there = {path.name for path in Path("out").glob("*.png")}
            assert {row["output"] for row in rows} == there
            assert len(rows) == len(there)
            assert all(row["likeness"] and row["seed"] for row in rows)

    def test_a_batch_of_nobody_is_refused(self, run, capsys):
        assert main(["batch", "generate", *self.OPTIONS]) == 1
        assert "nobody to draw: give JOBS.csv, --person or --from" in capsys.readouterr().err

    def test_a_file_of_jobs_and_its_bad_rows(self, run):
        Path("jobs.csv").write_text(
            "person,prompt,seed,scale,size\nada.safetensors,a,3,,\nbela.safetensors,b,,0.5,64x64\n"
            "missing.safetensors,c,,,\ncleo.safetensors,,,,\nada.safetensors,d,x,,\nada.safetensors,e,1,9,\n"
            "ada.safetensors,a,3,,\n",
            encoding="utf-8",
        )
        code, err, rows = run("--jobs", "jobs.csv")
        assert code == 1
        assert [row["status"] for row in rows] == ["drawn", "drawn", *["failed"] * 5]
        errors = [
            "no such file",
            "jobs.csv, line 5: it names no prompt",
            "jobs.csv, line 6: seed ",
            "scale 9",
            "the same job twice",
        ]
        for row, said in zip(rows[2:], errors, strict=True):
            assert said in row["error"]
            assert said in err
        assert Image.open(f"out/{rows[1]['output']}").size == (64, 64)

    def test_settings_are_read_back(self, run):
        options = (*self.OPTIONS[:-1], "first.png")
        assert (
            run("--person", "ada.safetensors", "--prompt", "ä", "--seed", "5", "--scale", "0.6", options=options)[0]
            == 0
        )
        again = (*self.OPTIONS[:2], *self.OPTIONS[4:-1], "again.png")
        assert run("--from", "first.png", options=again)[0] == 0
        assert np.array_equal(Image.open("first.png"), Image.open("again.png"))
        assert Image.open("first.png").text == Image.open("again.png").text
        assert run("--from", "first.png", "--seed", "6", options=(*again[:-1], "other.png"))[0] == 0
        assert not np.array_equal(Image.open("first.png"), Image.open("other.png"))

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--prompt", "a"], "nobody to draw: give --photo, --person, --jobs or --from"),
            (["--person", "ada.safetensors"], "nothing to draw: give --prompt"),
            (
                ["--person", "nobody/*", "--prompt", "a"],
                "no person file (.safetensors), scene (.json) or",
            ),
            (["--jobs", "empty.csv"], "no jobs"),
            (["--jobs", "unknown.csv"], "unknown columns colour, who: choose from person, prompt"),
            (["--jobs", "missing.csv"], "missing.csv: No such file or directory; expected a table of jobs, a CSV file"),
            (["--from", "plain.png"], "no settings in it"),
            (["--from", "ada.safetensors"], "no settings in it"),
            (["--photo", PORTRAITS[0], PORTRAITS[1], "--prompt", "a", "b"], "keep the person in a file"),
        ],
    )
    def test_what_cannot_be_drawn_is_said_before_any_work(self, run, arguments, said):
        Path("empty.csv").write_text("person,prompt\n")
        Path("unknown.csv").write_text("who,prompt,colour\na,b,c\n")
        Image.new("RGB", (8, 8)).save("plain.png")
        code, err, rows = run(*arguments)
        assert code == 1
        assert said in err
        assert rows == []
        assert not Path("out").exists()
