"""Damaged adapters, identities and cache records."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from examples.tiny_adapter import write_tiny_adapter
from fast_instantid import Adapter, Cache, Identity
from fast_instantid.weights import read_tensors
from trials.bounded import only_our_errors, run_forked
from trials.conftest import Trial
from trials.mutations import damaged

EMBEDDING = np.random.default_rng(0).standard_normal(512).astype("f4")
SHAPES = ((), (0,), (1,), (64,), (64, 64), (1, 16, 64), (64, 0), (2**20,), (3, 512), (64, 512), (1, 1, 1, 1, 1))
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.complex64)
NAMES = (
    "ip_adapter." + "9" * 5000 + ".to_k_ip.weight",
    "ip_adapter.\N{ARABIC-INDIC DIGIT THREE}.to_k_ip.weight",
    "ip_adapter.0003.to_k_ip.weight",
    "image_proj.layers.x.0.to_q.weight",
    "image_proj.layers",
    "x" * 100_000,
    "",
    "..",
    "tokens",
    "7.key",
)


def changed(tensors: dict[str, torch.Tensor], source: Trial) -> dict[str, torch.Tensor]:
    """The same tensors with one to four changes of names, shapes and dtypes."""
    tensors = dict(tensors)
    for _ in range(source.choice((1, 1, 2, 4))):
        if not tensors:
            break
        name = source.choice([*tensors])
        kind = source.randrange(9)
        if kind == 0:
            del tensors[name]
        elif kind == 1:
            tensors[source.choice((*NAMES, *tensors))] = tensors.pop(name)
        elif kind == 2:
            tensors[name] = torch.ones(source.choice(SHAPES))
        elif kind == 3:
            tensors[name] = tensors[name].to(source.choice(DTYPES))
        elif kind == 4:
            tensors[name] = tensors[name].flatten()
        elif kind == 5:
            tensors[name] = tensors[name].unsqueeze(source.choice((0, -1)))
        elif kind == 6 and tensors[name].ndim:
            tensors[name] = tensors[name][: source.randrange(len(tensors[name]) + 1)]
        elif kind == 7 and tensors[name].numel():
            tensors[name] = torch.full_like(tensors[name], source.choice((0, 1)))
        else:
            names = (f"image_proj.layers.{i}.x" for i in range(source.choice((1, 100, 2_000))))
            tensors |= dict.fromkeys(names, torch.ones(1))
    return tensors


def strange(tensors: dict[str, torch.Tensor], source: Trial) -> Any:
    """What a pickle can hold in place of tensors by name."""
    name = source.choice([*tensors])
    tensor = tensors[name]
    shared: dict[str, Any] = {"a": tensor}
    for _ in range(40):
        shared = {"a": shared, "b": shared}
    circle: dict[str, Any] = {}
    circle["again"] = circle
    choices: list[Callable[[], Any]] = [
        lambda: [*tensors.values()],
        lambda: (*tensors.items(),),
        lambda: {**tensors, name: tensor.to("meta")},
        lambda: {**tensors, name: tensor.to_sparse()},
        lambda: {**tensors, name: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)},
        lambda: {**tensors, name: torch.nn.Parameter(tensor)},
        lambda: {**tensors, name: torch.ones(1).expand(2**30, 2**10)},
        lambda: {**tensors, name: tensor.flatten()[:1].expand(tensor.shape)},
        lambda: {**tensors, name: tensor.t() if tensor.ndim == 2 else tensor[..., ::2]},
        lambda: {**tensors, name: tensor.to(torch.complex64).conj()},
        lambda: {**tensors, name: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])},
        lambda: {**tensors, name: bytearray(b"x" * 100)},
        lambda: {**tensors, name: None, 7: tensor, (1, 2): tensor, 10**6000: tensor, 1.5: {}, None: {}},
        lambda: {**tensors, name: shared},
        lambda: {**tensors, name: circle},
        lambda: {name: {name: {name: tensors}}},
        lambda: dict.fromkeys(map(str, range(20_000)), tensor),
        lambda: {"image_proj": tensors, "ip_adapter": tensors},
        lambda: {"image_proj." + "x" * 10**6: dict.fromkeys(map(str, range(10_000)), tensor)},
        lambda: tensor,
        lambda: None,
        lambda: Path,
    ]
    return source.choice(choices)()


@pytest.fixture(params=[".safetensors", ".bin"])
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_tiny_adapter(tmp_path / f"adapter{request.param}", channels=[32, 64])


def test_damaged_adapters_work_or_are_refused(trials, adapter):
    whole, tensors = adapter.read_bytes(), read_tensors(adapter)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}

    def trial(source: Trial) -> None:
        kind = source.randrange(4)
        if kind == 0:
            adapter.write_bytes(damaged(whole, source))
        elif adapter.suffix == ".safetensors":
            save_file({name: tensor.contiguous().clone() for name, tensor in changed(tensors, source).items()}, adapter)
        elif kind == 1:
            torch.save(strange(tensors, source), adapter)
        elif kind == 2:
            torch.save(changed(tensors, source), adapter, _use_new_zipfile_serialization=source.random() < 0.5)
        else:
            adapter.write_bytes(damaged(pickle.dumps(strange(tensors, source), source.choice((2, 4))), source))
        with only_our_errors():
            Adapter.load(adapter, device="cpu", cache=Cache()).identity(EMBEDDING, noise=0.5)

    run_forked(trials, trial, 50)


def test_damaged_identities_load_or_are_refused(trials, tmp_path):
    adapter, path = write_tiny_adapter(tmp_path / "adapter.bin", channels=[32, 64]), tmp_path / "anna.safetensors"
    Adapter.load(adapter, device="cpu", cache=Cache()).identity(EMBEDDING).save(path)
    whole = path.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in read_tensors(path).items()}

    def trial(source: Trial) -> None:
        if source.random() < 0.5:
            path.write_bytes(damaged(whole, source))
        else:
            about = {"format": "fast-instantid identity", "version": source.choice(("2", "2", "2", "1", ""))}
            saved = {name: tensor.contiguous().clone() for name, tensor in changed(tensors, source).items()}
            save_file(saved, path, about)
        with only_our_errors():
            Identity.load(path)

    run_forked(trials, trial)


def test_damaged_cache_records_are_computed_again(trials, tmp_path):
    key, record = "0" * 32, {"a": torch.arange(10.0), "b": torch.ones(2, 3)}
    Cache(directory=tmp_path).get(key, lambda: record)
    (path,) = tmp_path.rglob(f"{key}*")
    whole = path.read_bytes()

    def trial(source: Trial) -> None:
        kind = source.random()
        path.write_bytes(damaged(whole, source) if kind < 0.7 else whole[: source.randrange(len(whole))])
        got = Cache(directory=tmp_path).get(key, lambda: record)
        assert {name: tensor.tolist() for name, tensor in got.items()} == {"a": [*range(10)], "b": [[1.0] * 3] * 2}

    run_forked(trials, trial)
