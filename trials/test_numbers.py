"""Settings around a miss, and single numbers and bits that are wrong: a result is the plain one, or refused."""

from __future__ import annotations

import copy
import math
import shutil
from contextlib import ExitStack, suppress

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from fast_instantid import Cache, FaceAnalyzer, Identity
from fast_instantid.errors import ModelFileError
from fast_instantid.identity import Adapter
from tests.test_numbers import AROUND, EMBEDDING, file, made, saved, tiny_pack

__all__ = ["file", "saved", "tiny_pack"]


def test_no_settings_around_a_miss_reach_a_hit(trials, file, tiny_pack, astronaut):
    expected = made(file, tiny_pack, astronaut, Cache())
    for random in trials:
        cache = Cache()
        with ExitStack() as around:
            for name in random.sample(sorted(AROUND), random.randrange(1, 5)):
                around.enter_context(AROUND[name]())
            made(file, tiny_pack, astronaut, cache)
        assert all(map(torch.equal, made(file, tiny_pack, astronaut, cache), expected))


def test_no_wrong_number_in_an_adapter_makes_an_identity(trials, file, tmp_path):
    nested = torch.load(file)
    for random in trials:
        tensors = copy.deepcopy(nested)
        part = random.choice(["image_proj", "ip_adapter"])
        name = random.choice(sorted(tensors[part]))
        values = tensors[part][name].view(-1)
        values[random.randrange(len(values))] = random.choice([math.nan, math.inf, -math.inf])
        torch.save(tensors, tmp_path / "ip-adapter.bin")
        with pytest.raises(ModelFileError, match=rf"{part}.{name} holds NaN or infinity"):
            Adapter.load(tmp_path / "ip-adapter.bin", "cpu", cache=Cache()).identity(EMBEDDING)


def test_no_wrong_number_in_a_face_network_makes_an_embedding(trials, tiny_pack, astronaut, tmp_path):
    for random in trials:
        pack = shutil.copytree(tiny_pack, tmp_path / "antelopev2", dirs_exist_ok=True)
        which = random.choice(sorted(pack.glob("*.onnx")))
        model = onnx.load(str(which))
        tensors = [t for t in model.graph.initializer if numpy_helper.to_array(t).dtype == np.float32]
        tensor = random.choice(tensors)
        array = numpy_helper.to_array(tensor).copy()
        array.flat[random.randrange(array.size)] = random.choice([math.nan, math.inf, -math.inf])
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        onnx.save(model, str(which))
        with pytest.raises(ModelFileError, match="holds NaN or infinity"):
            FaceAnalyzer.load(pack, device="cpu", cache=Cache()).embed(astronaut)


def test_no_flipped_bit_of_an_identity_file_changes_an_identity(trials, saved, tmp_path):
    expected = [*Identity.load(saved).to_record().values()]
    content, path = saved.read_bytes(), tmp_path / "flipped.safetensors"
    for random in trials:
        flipped = bytearray(content)
        flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
        path.write_bytes(flipped)
        with suppress(ModelFileError):  # or else the bit was in the name of a field that files need not have
            assert all(map(torch.equal, Identity.load(path).to_record().values(), expected))
