"""Long runs hold no more than short ones: tensors alive are counted, and the cache stays within its bound."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from PIL import Image

from fast_instantid import Cache, FaceAnalyzer, InstantID, miniature
from fast_instantid.identity import Adapter
from fast_instantid.people import find_person
from tests.tiny_pipelines import sample, state_of

pytest_plugins = ["tests.tiny_pipelines"]


def alive() -> tuple[int, int]:
    """How many tensors are alive, and their bytes."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    return len(tensors), sum(tensor.nbytes for tensor in tensors)


def embedding(seed: int) -> torch.Tensor:
    return torch.randn(1, 512, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("keep", [False, True], ids=["in a block", "attached until detached"])
def test_pictures_of_ever_new_persons(pipe, files, keep):
    once = Adapter.load(files.adapter, "cpu", torch.float32, Cache()).identity(embedding(0)).nbytes
    cache = Cache(max_bytes=3 * once)
    adapter, instantid = Adapter.load(files.adapter, "cpu", torch.float32, cache), InstantID(pipe, identity_net=0)
    held: list[tuple[int, int]] = []
    for number in range(12):
        identity = adapter.identity(embedding(number))
        if keep:
            instantid.attach(identity)
            sample(pipe, steps=1)
            instantid.detach()
        else:
            with instantid.attached(identity):
                sample(pipe, steps=1)
        held.append(alive())
        state = state_of(pipe)[1:]
    assert held[4:] == [held[4]] * 8, "after two, each new identity takes the place of an old one"
    assert 0 < cache.stats.bytes <= cache.max_bytes
    assert cache.stats.entries == 2, "a record counts 1 KB for each of its tensors too"
    assert state == state_of(pipe)[1:]


def test_100_attachments(pipe, identity, someone_else):
    """Each with an edit of its weights, and without drawing."""
    instantid = InstantID(pipe, identity_net=0)
    held: list[int] = []
    for number in range(100):
        with instantid.attached([identity, someone_else], scale=[0.8, number / 100]):
            instantid.scale = number / 100
        if number % 10 == 9:
            gc.collect()
            held.append(len(gc.get_objects()))
    assert max(held[2:]) - min(held[2:]) < 50, "fewer than one object an attachment"


def test_60_photographs_that_were_never_seen():
    cache = Cache(max_bytes=20_000)
    analyzer = FaceAnalyzer.load(miniature.files().pack, device="cpu", cache=cache)
    portrait = np.asarray(Image.open(miniature.files().portraits[0]).convert("RGB").resize((96, 96)))
    held: list[tuple[int, int]] = []
    for number in range(60):
        photo = portrait.copy()
        photo[0, 0] = number, 0, 0
        find_person(analyzer, photo)
        assert cache.stats.bytes <= cache.max_bytes
        if number % 15 == 14:
            held.append(alive())
    assert cache.stats.misses == 120
    assert held[1:] == [held[1]] * 3


def test_hundreds_of_photographs_of_one_person_are_compared_at_once(monkeypatch, caplog):
    """Each pair was once compared alone, which for 256 photographs took most of a second."""
    analyzer = FaceAnalyzer.load(miniature.files().pack, device="cpu", cache=Cache())
    rows = np.random.default_rng(0).normal(size=(1, 512)) + 0.1 * np.random.default_rng(1).normal(size=(256, 512))
    rows[7], rows[40] = -rows[7], np.eye(1, 512, 3)
    photos = [Image.new("RGB", (64, 64), (number, 0, 0)) for number in range(256)]
    [face] = analyzer.detect(Image.open(miniature.files().portraits[0]).convert("RGB"))[0][:1]
    monkeypatch.setattr(analyzer.networks, "embed", lambda *_: rows.astype(np.float32))
    products = []
    monkeypatch.setattr(np.linalg, "norm", lambda *a, norm=np.linalg.norm, **k: (products.append(a), norm(*a, **k))[1])
    person = find_person(analyzer, photos, faces=[[face]] * 256)
    assert len(person.embeddings) == 256
    assert len(products) < 10
    cosines = rows @ rows.T / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows, axis=1)[:, None]
    i, j = sorted(np.unravel_index(np.argmin(cosines), cosines.shape))
    strange = int((np.triu(cosines < 0.25, 1)).sum())
    [message] = [record.getMessage() for record in caplog.records if "two people" in record.getMessage()]
    assert f"(likeness {cosines[i, j]:.2f}, and {strange - 1} more pairs)" in message
    assert strange == 255 + 254
