"""Files that are written while the process is killed or the disk fills, and read while others change them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_faces import write_iresnet, write_scrfd
from fast_instantid import files
from fast_instantid.cache import Cache
from fast_instantid.cli.output import save_picture
from fast_instantid.errors import FastInstantIDError
from fast_instantid.faces import FaceAnalyzer
from fast_instantid.identity import Adapter, Identity
from tests.adversity import full_disk, needs_posix
from trials.forked import fork, kill_after, wait

pytestmark = needs_posix
SIZE = 200  # of the picture and, in floats, of the identity's embedding


def adapters(folder: Path) -> list[Path]:
    return [write_tiny_adapter(folder / f"{seed}.safetensors", channels=(64, 128), seed=seed) for seed in range(2)]


def embedding() -> torch.Tensor:
    return torch.linspace(-1, 1, 512)


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture
def identities(tmp_path: Path) -> list[Identity]:
    return [Adapter.load(path, "cpu", torch.float32, Cache()).identity(embedding()) for path in adapters(tmp_path)]


def save_either(source: random.Random, identities: list[Identity], folder: Path) -> None:
    identities[source.randrange(2)].save(folder / "identity.safetensors")
    save_picture(Image.new("RGB", (SIZE, SIZE), source.choice(("red", "blue"))), folder / "picture.png")


def check(identities: list[Identity], folder: Path) -> None:
    """Each file is one of the two, as a whole."""
    saved = Identity.load(folder / "identity.safetensors")
    assert any(torch.equal(saved.tokens, identity.tokens) for identity in identities)
    with Image.open(folder / "picture.png") as image:
        image.load()
        assert image.getcolors() in ([(SIZE * SIZE, (255, 0, 0))], [(SIZE * SIZE, (0, 0, 255))])
    assert (folder / "notes.txt").read_bytes() == b"mine"


@pytest.fixture
def outputs(tmp_path: Path, identities: list[Identity]) -> Path:
    folder = tmp_path / "outputs"
    folder.mkdir()
    (folder / "notes.txt").write_bytes(b"mine")
    save_either(random.Random(0), identities, folder)
    return folder


def test_kills_while_writing(trials: Iterator[random.Random], outputs: Path, identities: list[Identity]) -> None:
    for source in trials:

        def work(source: random.Random = source) -> None:
            while True:
                save_either(source, identities, outputs)

        assert kill_after(fork(work), source.uniform(0, 0.03)) == -signal.SIGKILL
        check(identities, outputs)
        for path in temporaries(outputs):
            os.utime(path, (time.time() - 4000,) * 2)
        files.sweep(outputs)
        assert not temporaries(outputs)


def test_a_disk_that_fills(trials: Iterator[random.Random], outputs: Path, identities: list[Identity]) -> None:
    for source in trials:
        with full_disk(source.randrange(60_000)), suppress(OSError):
            save_either(source, identities, outputs)
        check(identities, outputs)
        assert not temporaries(outputs)


def test_model_files_that_change_while_they_are_read(
    trials: Iterator[random.Random], tmp_path: Path, note: Callable[[str], None]
) -> None:
    """A process that reads them gets one of the two, or an error that says so; it is never killed."""
    pack, changing = tmp_path / "pack", tmp_path / "adapter.safetensors"
    pack.mkdir()
    one, two = adapters(tmp_path)
    networks = [write_scrfd(tmp_path / "scrfd.onnx"), write_iresnet(tmp_path / "iresnet.onnx")]
    expected = [Adapter.load(path, "cpu", None, Cache()).identity(embedding()).tokens for path in (one, two)]
    outcomes = {"right": 0, "refused": 0}
    for source in trials:
        for original in networks:
            shutil.copy(original, pack / original.name)
        shutil.copy(one, changing)
        reader, answers = os.pipe()

        def read(answers: int = answers) -> None:
            deadline, counts = time.monotonic() + 0.1, dict.fromkeys(outcomes, 0)
            while time.monotonic() < deadline:
                try:
                    tokens = Adapter.load(changing, "cpu", None, Cache()).identity(embedding()).tokens
                    FaceAnalyzer.load(pack, device="cpu", cache=Cache())
                except FastInstantIDError:
                    counts["refused"] += 1
                else:
                    assert any(torch.equal(tokens, one) for one in expected)
                    counts["right"] += 1
            os.write(answers, f"{counts['right']} {counts['refused']}\n".encode())

        child = fork(read)
        os.close(answers)
        deadline = time.monotonic() + 0.1
        while time.monotonic() < deadline:
            path, content = source.choice(
                [(changing, one), (changing, two), *((pack / file.name, file) for file in networks)]
            )
            if source.random() < 0.5:
                os.truncate(path, source.randrange(path.stat().st_size + 1))
            else:
                path.write_bytes(content.read_bytes())
            time.sleep(source.uniform(0, 0.01))
        assert wait(child) == 0
        with os.fdopen(reader) as file:
            for name, number in zip(outcomes, file.read().split(), strict=True):
                outcomes[name] += int(number)
    note(f"{outcomes['right']:,} right identities, {outcomes['refused']:,} refusals")
