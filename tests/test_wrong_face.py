"""No cache keys on an address or on sampled pixels (docs/adr/0014): such keys give wrong faces, ours never.

Each trial shows a picture that is new and does not look new. An answer is wrong where it is not the networks' own for
that picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from fast_instantid import Cache, FaceAnalyzer

FACE = (slice(90, 190), slice(170, 270))
"""Rows and columns of the astronaut's face."""
SAMPLES = 10_000
TRIALS = 5
Embed = Callable[[Tensor], np.ndarray]


def address_key(image: Tensor) -> Hashable:
    """The place of the picture in memory, and nothing of its content."""
    return image.data_ptr(), image.shape, image.device.type


def sampled_key(image: Tensor) -> Hashable:
    """A hash of evenly spaced values."""
    values = image.flatten()
    values = values[torch.linspace(0, values.numel() - 1, SAMPLES, dtype=torch.long)]
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def remembering(embed: Embed, key: Callable[[Tensor], Hashable]) -> Embed:
    """``embed`` behind a dictionary with such a key."""
    known: dict[Hashable, np.ndarray] = {}

    def remembered(image: Tensor) -> np.ndarray:
        name = key(image)
        if name not in known:
            known[name] = embed(image)
        return known[name]

    return remembered


def darker(picture: np.ndarray, trial: int) -> Tensor:
    """The same face in less light: other pixels everywhere."""
    return torch.from_numpy(picture)[None].float() * ((1 - 0.003 * trial) / 255)


def reused_addresses(picture: np.ndarray) -> Iterator[Tensor]:
    """A picture is freed before the next is made, which may get its address."""
    for trial in range(TRIALS + 1):
        yield darker(picture, trial)


def edits_in_place(picture: np.ndarray) -> Iterator[Tensor]:
    image = darker(picture, 0)
    yield image
    for trial in range(1, TRIALS + 1):
        image.copy_(darker(picture, trial))
        yield image


def changed_pixels(picture: np.ndarray) -> Iterator[Tensor]:
    """Copies with one changed pixel of the face. All are kept, so that only their content is in question."""
    draw = np.random.default_rng(0)
    kept = [darker(picture, 0)]
    yield kept[0]
    for _ in range(TRIALS):
        image = kept[0].clone()
        row, column = (int(draw.integers(place.start, place.stop)) for place in FACE)
        image[0, row, column] = 1 - image[0, row, column]
        kept.append(image)
        yield image


@pytest.mark.parametrize(
    ("pictures", "wrong_key"), [(reused_addresses, None), (edits_in_place, "address"), (changed_pixels, "sample")]
)
def test_ours_never_gives_a_wrong_face_and_other_keys_do(pack, astronaut, pictures, wrong_key):
    analyzer = FaceAnalyzer.load(pack, device="cpu", cache=Cache(max_bytes=0))
    ways = {
        "address": remembering(analyzer.embed, address_key),
        "sample": remembering(analyzer.embed, sampled_key),
        "ours": FaceAnalyzer.load(pack, device="cpu", cache=Cache()).embed,
    }
    wrong, trials = dict.fromkeys(ways, 0), 0
    before: np.ndarray | None = None
    for image in pictures(astronaut):
        truth = analyzer.embed(image)
        for name, embed in ways.items():
            wrong[name] += not np.array_equal(embed(image), truth)
        trials += before is not None and not np.array_equal(truth, before)
        before = truth
        del image
    assert trials >= TRIALS - 1, "pictures that give the face of the one before prove nothing"
    assert wrong["ours"] == 0
    if wrong_key is not None:  # whether an address is reused is up to the allocator
        assert wrong[wrong_key] >= TRIALS - 2
