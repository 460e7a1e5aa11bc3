"""Likeness of persons and pictures: the right pairs, words, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from PIL import Image

from fast_instantid import FaceAnalyzer, miniature
from fast_instantid.errors import FastInstantIDError
from fast_instantid.people import find_person, likeness_in, likeness_word
from fast_instantid.people.likeness import BANDS, _best_pairs

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


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 3), (4, 6), (6, 2)])
def test_no_other_pairing_has_a_larger_sum(shape):
    random = np.random.default_rng(0)
    for _ in range(50):
        values = random.normal(size=shape).round(1)  # with ties
        pairs = _best_pairs(values)
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs) == min(shape)
        wide = values if shape[0] <= shape[1] else values.T
        best = max(wide[range(len(wide)), order].sum() for order in permutations(range(len(wide.T)), len(wide)))
        assert sum(values[pair] for pair in pairs) == pytest.approx(best)


def test_words_have_bounds():
    assert [likeness_word(value) for value in (1, 0.8, 0.79, 0.55, 0.54, 0.25, 0.24, -1)] == [
        *("strong", "strong", "moderate", "moderate", "weak", "weak", "none", "none")
    ]
    assert likeness_word(float("nan")) == likeness_word(np.float32("nan")) == "no face"
    assert list(BANDS.values()) == sorted(BANDS.values(), reverse=True)
