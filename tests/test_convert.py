"""A converted adapter: what is in it, what it changes, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from examples.tiny_adapter import write_tiny_adapter
from fast_instantid import Adapter, Cache, Identity
from fast_instantid.cli import main
from fast_instantid.errors import FastInstantIDError, ModelFileError
from fast_instantid.identity.convert import convert_adapter, converted_path
from fast_instantid.weights import read_tensors
from tests.adversity import full_disk, needs_posix

CHANNELS = [32] * 4 + [64] * 20 + [64] * 30 + [32] * 6 + [64] * 10
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_tiny_adapter(tmp_path / "ip-adapter.bin", channels=CHANNELS)


def identity(path: Path, dtype: torch.dtype) -> Identity:
    embedding = torch.randn(1, 512, generator=torch.Generator().manual_seed(3))
    return Adapter.load(path, "cpu", dtype, Cache()).identity(embedding, noise=0.3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_weight_is_rounded_once_and_the_original_stays(adapter: Path, dtype: str, capsys) -> None:
    before = adapter.read_bytes()
    assert main(["convert", str(adapter), "--dtype", dtype, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    output = adapter.with_name({"float16": "ip-adapter.fp16.safetensors"}.get(dtype, "ip-adapter.bf16.safetensors"))
    assert told == {
        "output": str(output),
        "bytes": output.stat().st_size,
        "original_bytes": len(before),
        "dtype": dtype,
    }
    assert adapter.read_bytes() == before
    original, converted = read_tensors(adapter), load_file(output)  # the safetensors package's own reader
    assert converted.keys() == original.keys()
    for name, tensor in original.items():
        assert converted[name].dtype == DTYPES[dtype]
        assert torch.equal(converted[name], tensor.to(DTYPES[dtype])), name
    assert output.stat().st_size < 0.51 * len(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_identities_computed_in_its_dtype_are_the_same_to_the_bit(adapter: Path, dtype: str) -> None:
    output = converted_path(adapter, dtype)
    convert_adapter(adapter, output, dtype)
    ours, original = identity(output, DTYPES[dtype]), identity(adapter, DTYPES[dtype])
    assert torch.equal(ours.tokens, original.tokens)
    for one, other in ((ours.bank.keys, original.bank.keys), (ours.bank.values, original.bank.values)):
        assert all(map(torch.equal, one, other))


def test_identities_computed_in_float32_differ_by_the_rounding(adapter: Path) -> None:
    output = converted_path(adapter, "float16")
    convert_adapter(adapter, output)
    ours, original = identity(output, torch.float32), identity(adapter, torch.float32)
    largest = max(float(key.abs().max()) for key in original.bank.keys)
    difference = max(
        float((one - other).abs().max()) for one, other in zip(ours.bank.keys, original.bank.keys, strict=True)
    )
    assert 0 < difference < 2e-3 * largest


def test_a_safetensors_adapter_converts_too_and_progress_ends_at_the_whole(tmp_path: Path) -> None:
    adapter = write_tiny_adapter(tmp_path / "one.safetensors", channels=CHANNELS)
    reports: list[tuple[int, int]] = []
    convert_adapter(adapter, tmp_path / "two.safetensors", report=lambda done, total: reports.append((done, total)))
    assert len(reports) == len(read_tensors(adapter))
    assert reports == sorted(reports)
    assert reports[-1][0] == reports[-1][1] == sum(t.nbytes for t in read_tensors(adapter).values()) // 2


def test_a_file_that_is_there_is_never_replaced(adapter: Path, capsys) -> None:
    output = adapter.with_name("ip-adapter.fp16.safetensors")
    output.write_text("somebody's")
    assert main(["convert", str(adapter)]) == 1
    assert f"error: {output}: exists already; remove it first, or name another file with -o" in capsys.readouterr().err
    assert output.read_text() == "somebody's"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("missing.bin", (), "missing.bin: no such file; expected InstantID's adapter there"),
        ("folder", (), "folder: this is a folder"),
        ("text.bin", (), "text.bin: not a file of weights"),
        ("ip-adapter.bin", ("-o", "other.bin"), "the name of the output must end in one of .safetensors"),
        ("ip-adapter.bin", ("-o", "nowhere/out.safetensors"), "there is no folder"),
    ],
)
def test_what_cannot_be_converted_is_refused(adapter: Path, name, options, said, capsys, monkeypatch) -> None:
    monkeypatch.chdir(adapter.parent)
    Path("folder").mkdir()
    Path("text.bin").write_text("no weights at all")
    before = sorted(os.listdir())
    assert main(["convert", name, *options]) == 1
    assert said in capsys.readouterr().err
    assert sorted(os.listdir()) == before


def test_another_kind_of_file_is_named(tmp_path: Path, capsys) -> None:
    torch.save({"lora_up.weight": torch.zeros(2, 2)}, tmp_path / "style.bin")
    assert main(["convert", str(tmp_path / "style.bin")]) == 1
    assert "this is a LoRA; expected InstantID's adapter" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["style.bin"]


def test_values_beyond_the_dtype_are_refused(tmp_path: Path) -> None:
    tensors = read_tensors(write_tiny_adapter(tmp_path / "one.safetensors", channels=CHANNELS))
    large = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        large[part][rest] = tensor.clone()
    large["ip_adapter"]["3.to_v_ip.weight"][0, 0] = 70000.0
    torch.save(large, tmp_path / "large.bin")
    with pytest.raises(
        ModelFileError, match=r"ip_adapter\.3\.to_v_ip\.weight holds values that float16 cannot, up to 7e"
    ):
        convert_adapter(tmp_path / "large.bin", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    convert_adapter(tmp_path / "large.bin", tmp_path / "out.safetensors", "bfloat16")


@needs_posix
def test_a_disk_that_fills_up_leaves_nothing_behind(adapter: Path, capsys) -> None:
    with full_disk():
        assert main(["convert", str(adapter)]) == 1
    assert "error: " in capsys.readouterr().err
    assert os.listdir(adapter.parent) == [adapter.name]


def test_too_little_room_is_said_before_anything_is_written(adapter: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(FastInstantIDError, match=r"needs 1\.\d MB, and 0\.0 MB are free there; make room"):
        convert_adapter(adapter, adapter.with_name("out.safetensors"))
    assert os.listdir(adapter.parent) == [adapter.name]
