"""Likeness of persons and pictures: the right pairs, words, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fast_instantid import FaceAnalyzer, miniature
from fast_instantid.cli import main
from fast_instantid.errors import FastInstantIDError
from fast_instantid.people import find_person, likeness_in, likeness_word
from fast_instantid.people.likeness import BANDS, paired
from training import people as measured

PORTRAITS = miniature.files().portraits
BLANK = Image.new("RGB", (128, 128))


@pytest.fixture(scope="module")
def analyzer():
    return FaceAnalyzer.load(miniature.files().pack, device="cpu")


@pytest.fixture(scope="module")
def six(analyzer):
    return [find_person(analyzer, portrait) for portrait in PORTRAITS]


def beside(*numbers):
    """Portraits beside each other."""
    picture = Image.new("RGB", (128 * len(numbers), 128))
    for place, number in enumerate(numbers):
        picture.paste(Image.open(PORTRAITS[number]).convert("RGB"), (128 * place, 0))
    return picture


class TestLikenessIn:
    def test_it_is_the_cosine_of_persons(self, analyzer, six):
        values = likeness_in(analyzer, PORTRAITS, six[:1])
        assert values.shape == (6, 1)
        assert values.dtype == np.float32
        assert values[:, 0] == pytest.approx([six[0].likeness(other) for other in six], abs=1e-5)

    def test_each_person_is_paired_with_another_face_in_whatever_order(self, analyzer, six):
        values = likeness_in(analyzer, beside(2, 0, 1), six[:3])
        assert (values > 0.9).all(), values
        again = likeness_in(analyzer, beside(2, 0, 1), [six[1], six[2], six[0]])
        assert again[0] == pytest.approx(values[0, [1, 2, 0]], abs=1e-5)

    def test_a_person_without_a_face_is_nan(self, analyzer, six):
        values = likeness_in(analyzer, [PORTRAITS[1], BLANK, beside(0, 1)], six[:2])
        assert np.isnan(values).tolist() == [[True, False], [True, True], [False, False]]
        assert np.isnan(likeness_in(analyzer, BLANK, six[:2])).all()
        assert likeness_in(analyzer, beside(0, 1, 2), six[2:3])[0, 0] > 0.9, "faces may be left over"

    def test_what_cannot_be_compared(self, analyzer, six):
        with pytest.raises(FastInstantIDError, match="no person to compare"):
            likeness_in(analyzer, BLANK, [])
        stranger = replace(six[0], recognizer="another", name="ada")
        with pytest.raises(FastInstantIDError, match="ada and the faces of the pictures were made by different"):
            likeness_in(analyzer, PORTRAITS[0], [stranger])
        with pytest.raises(FastInstantIDError, match="ada and the faces of the pictures were made by different"):
            find_person(analyzer, PORTRAITS[0], choose=stranger)
        unknown = replace(six[0], recognizer="")
        assert likeness_in(analyzer, PORTRAITS[0], [unknown])[0, 0] == pytest.approx(1, abs=1e-5)


def test_the_most_alike_are_paired_first(six):
    rows = np.stack([six[2].embedding, six[0].embedding + six[1].embedding, six[1].embedding])
    assert sorted(paired(six[:3], rows)) == [(0, 1), (1, 2), (2, 0)]
    assert paired(six[:1], rows[:1]) == [(0, 0)]
    assert sorted(person for person, _ in paired(six[:3], rows[:2])) in ([0, 2], [1, 2])
    assert paired(six[:2], np.empty((0, 512))) == []
    assert paired(six[:2], np.full((1, 512), np.nan)) == []


def test_words_have_bounds():
    assert [likeness_word(value) for value in (1, 0.8, 0.79, 0.55, 0.54, 0.25, 0.24, -1)] == [
        *("strong", "strong", "moderate", "moderate", "weak", "weak", "none", "none")
    ]
    assert likeness_word(float("nan")) == likeness_word(np.float32("nan")) == "no face"
    assert list(BANDS.values()) == sorted(BANDS.values(), reverse=True)


class TestMeasured:
    """Fast versions of what ``python -m benchmarks people`` measures, on people that the miniature never saw."""

    def test_the_right_one_of_six_is_chosen(self, analyzer):
        assert measured.right_choices(analyzer, 4) == {"choices": 24, "right": 1.0}

    def test_likeness_tells_the_same_from_different_people(self, analyzer):
        found = measured.separation(analyzer, 30)
        assert found["auc"] > 0.99
        assert found["reach"]["moderate"]["same"] > 0.95
        assert found["reach"]["moderate"]["different"] < 0.05

    def test_more_references_help_and_a_wrong_one_is_made_good(self, analyzer):
        rows = {row["name"]: row for row in measured.references(analyzer, 6)}
        mean = {name: row["mean"] for name, row in rows.items() if "mean" in row}
        assert mean["1 right"] < mean["4 right"] < mean["8 right"]
        for right in (3, 7):
            clean, wrong = mean[f"{right} right"], mean[f"{right} right, 1 wrong"]
            assert wrong < clean
            for remedy in ("without(outliers())", "robust()"):
                assert clean - mean[f"{right} right, 1 wrong, {remedy}"] < (clean - wrong) / 2
        assert rows["outliers()"]["found"] > 0.5
        assert rows["outliers()"]["right_ones_dropped"] < 0.05


def test_persons_and_photographs_are_compared_in_the_shell(six, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    six[0].save("ada.safetensors")
    beside(1, 0).save("group.png")
    BLANK.save("blank.png")
    names = ["ada.safetensors", "group.png", "blank.png", str(PORTRAITS[0])]
    assert main(["person", "compare", *names, "--pack", "miniature", "--json"]) == 0
    rows = {(row["a"], row["b"]): row for row in json.loads(capsys.readouterr().out)}
    assert len(rows) == 6
    assert rows["ada.safetensors", "group.png"]["word"] == "strong", "the face most like the person"
    assert rows["ada.safetensors", names[3]]["likeness"] == 1
    assert rows["ada.safetensors", "blank.png"]["likeness"] is None
    assert rows["blank.png", names[3]]["word"] == "no face"
    assert main(["person", "compare", *names, "--pack", "miniature"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["1.000", "strong"]
    assert lines[-1].split()[:3] == ["nan", "no", "face"]
