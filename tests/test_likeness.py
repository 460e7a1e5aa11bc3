"""Likeness of persons and pictures: the right pairs, words, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fast_instantid import FaceAnalyzer, miniature
from fast_instantid.errors import FastInstantIDError
from fast_instantid.people import find_person, likeness_in, likeness_word
from fast_instantid.people.likeness import BANDS, paired

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
