"""The wrong-face trial: what caches of faces return for pictures that are new and do not look it.

A trial is wrong where a cache returns another embedding than the networks do for the picture that it was shown. Three
kinds of pictures, all of which a workflow makes:

- reused address: a new picture, made after the one before it was let go of, so that it may lie where that one lay;
- edited in place: the same tensor with other content;
- one changed pixel: a copy, changed in one pixel of the face.

Four ways to remember:

- no cache: the networks run each time.
- pointer key: address, shape and device, the key of Honga1/ComfyUI_InstantID, pull request 1, and of the report.
- sampled key: a hash of 10,000 evenly spaced values, the key of that repository's branch "implement-run-caching".
- ours: a hash of all that there is, of each picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fast_instantid import Cache, FaceAnalyzer

SAMPLES = 10_000
Embed = Callable[[Tensor], np.ndarray]
"""``(1, H, W, 3)`` in 0..1 to ``(1, 512)``."""


def pointer_key(image: Tensor) -> Hashable:
    """Where the picture lies, and nothing of what it shows."""
    return image.data_ptr(), image.shape, image.device.type


def sampled_key(image: Tensor) -> Hashable:
    """Of a megapixel's three million values, one in three hundred."""
    values = image.flatten()
    if values.numel() > SAMPLES:
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


def wrong_faces(networks: Any, picture: np.ndarray, face: tuple[slice, slice], trials: int) -> Mapping[str, Any]:
    """How often each way to remember gives a wrong face.

    Args:
        networks: detector and recogniser, as :class:`FaceAnalyzer` takes them.
        picture: ``(H, W, 3)`` uint8 RGB with one face.
        face: where the face lies: rows and columns.
        trials: of each kind.

    Returns:
        kind of picture -> ``{"trials": n, "no cache": ..., "pointer key": ..., "sampled key": ..., "ours": ...}``
    """
    forgetful = FaceAnalyzer(*networks, Cache(max_bytes=0)).embed
    found: dict[str, dict[str, int]] = {}
    for kind, pictures in _KINDS.items():
        ways: dict[str, Embed] = {
            "no cache": forgetful,
            "pointer key": remembering(forgetful, pointer_key),
            "sampled key": remembering(forgetful, sampled_key),
            "ours": FaceAnalyzer(*networks, Cache()).embed,
        }
        count = found[kind] = {"trials": 0, **dict.fromkeys(ways, 0)}
        before: np.ndarray | None = None
        for image in pictures(picture, face, trials):
            truth = forgetful(image)
            answers = {name: embed(image) for name, embed in ways.items()}
            if before is not None and not np.array_equal(truth, before):  # otherwise it would prove nothing
                count["trials"] += 1
                for name, answer in answers.items():
                    count[name] += not np.array_equal(answer, truth)
            before = truth
            del image
    return found


def _reused_addresses(picture: np.ndarray, face: tuple[slice, slice], trials: int) -> Iterator[Tensor]:
    for trial in range(trials + 1):
        yield _darker(picture, trial)  # nobody keeps it, so that the next may lie in its place


def _edits_in_place(picture: np.ndarray, face: tuple[slice, slice], trials: int) -> Iterator[Tensor]:
    image = _darker(picture, 0)
    yield image
    for trial in range(1, trials + 1):
        image.copy_(_darker(picture, trial))
        yield image


def _changed_pixels(picture: np.ndarray, face: tuple[slice, slice], trials: int) -> Iterator[Tensor]:
    draw = np.random.default_rng(0)
    original = _darker(picture, 0)
    kept: list[Tensor] = [original]  # so that no picture lies in another's place: only its content is in question
    yield original
    for _ in range(trials):
        image = original.clone()
        row, column = (int(draw.integers(place.start, place.stop)) for place in face)
        image[0, row, column] = 1 - image[0, row, column]
        kept.append(image)
        yield image


_KINDS = {
    "reused address": _reused_addresses,
    "edited in place": _edits_in_place,
    "one changed pixel": _changed_pixels,
}


def _darker(picture: np.ndarray, trial: int) -> Tensor:
    """A picture of the same face in less light: other pixels everywhere."""
    return torch.from_numpy(picture)[None].float() * ((1 - 0.003 * trial) / 255)
