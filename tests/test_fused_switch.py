"""When text and identity attention run in one launch: what asks for the kernel, and what happens where it can't run."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from fast_instantid import fused
from fast_instantid.attention import IdentityEntry, identity_attention
from fast_instantid.fused import MEASURED_FASTER, SWITCH, fused_attention, is_available
from fast_instantid.identity.layout import COND, UNCOND, LayerFace, Layout, Strength
from fast_instantid.pipelines.cross_attention import CrossAttention, Evaluation
from fast_instantid.recorder import Recorder

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
KERNEL = "fast_instantid.fused.kernel"
HEADS, CHANNELS = 2, 64
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clear the cached answers before and after each test."""
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(fused, "_broken", False)
    enabled = fused._is_enabled  # a test may put another in its place
    enabled.cache_clear()
    yield
    enabled.cache_clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``gpu((9, 0))``: a machine with Triton and such a GPU."""

    def gpu(capability: tuple[int, int], triton: bool = True, hip: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(fused, "find_spec", lambda name: object() if triton else None)

    return gpu


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of the kernel, here computed by torch, on the CPU as if it were a GPU that has been measured."""
    calls: list[int] = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, entry: IdentityEntry, out: Tensor) -> None:
        calls.append(query.shape[1])
        out.copy_(apart(query, key, value, [entry]))

    monkeypatch.setattr(fused, "_is_enabled", lambda device: True)
    monkeypatch.setitem(sys.modules, KERNEL, SimpleNamespace(text_and_identity=kernel))
    return calls


def apart(query: Tensor, key: Tensor, value: Tensor, entries: list[IdentityEntry]) -> Tensor:
    heads = (tensor.unflatten(-1, (HEADS, -1)).transpose(1, 2) for tensor in (query, key, value))
    text = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    return identity_attention(query, entries, onto=text)


def layer(dtype: torch.dtype = torch.float16, channels: int = CHANNELS) -> tuple[Any, ...]:
    """Arguments of :func:`fused_attention`."""
    query, key, value = (torch.randn(4, length, channels).to(dtype) for length in (20, 77, 77))
    face = torch.randn(2, 2, 16, channels).to(dtype)
    return query, key, value, [IdentityEntry.split(face[0], face[1], HEADS, 0.8)]


@pytest.mark.parametrize("asked", [None, "0", "1", "yes"])
def test_never_on_a_cpu(monkeypatch, asked):
    if asked:
        monkeypatch.setenv(SWITCH, asked)
    assert not is_available(CPU)
    assert fused_attention(*layer()) is None


@pytest.mark.parametrize(
    ("asked", "measured", "expected"),
    [("", True, True), ("", False, False), ("1", False, True), ("0", True, False), ("maybe", False, False)],
)
def test_on_where_it_was_measured_or_asked_for(monkeypatch, gpu, asked, measured, expected):
    monkeypatch.setattr(fused, "MEASURED_FASTER", {(9, 0): "a result"} if measured else {})
    monkeypatch.setenv(SWITCH, asked)
    gpu((9, 0))
    assert is_available(GPU) is expected


@pytest.mark.parametrize("machine", [{"triton": False}, {"hip": "6.4"}, {"capability": (7, 5)}], ids=str)
def test_off_where_it_cannot_run_well_whatever_is_asked(monkeypatch, gpu, machine):
    monkeypatch.setenv(SWITCH, "1")
    gpu(**{"capability": (9, 0), **machine})
    assert not is_available(GPU)


def test_each_gpu_that_is_said_to_be_faster_has_a_result_that_says_so():
    for capability, path in MEASURED_FASTER.items():
        document = json.loads((RESULTS / path).read_text())
        assert tuple(document["about"]["capability"]) == capability
        for row in document["results"]:
            ours, apart = row["ways"]["fused"], row["ways"]["unfused"]
            for times in ("gpu_us_per_layer", "both_us_per_layer"):
                assert ours[times]["median"] < apart[times]["median"], (path, row["name"], times)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_call_equals_the_two_apart(calls, dtype):
    arguments = layer(dtype)
    assert torch.equal(fused_attention(*arguments), apart(*arguments))
    assert calls == [20]


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v, entries: (q, k, v, entries * 2),
        lambda q, k, v, entries: (q.float(), k.float(), v.float(), entries),
        lambda q, k, v, entries: (q, k.float(), v, entries),
        lambda q, k, v, entries: (q, k, v, [IdentityEntry.split(*torch.randn(2, 2, 16, CHANNELS).half(), 8)]),
        lambda q, k, v, entries: (q, k[:1], v[:1], entries),
        lambda q, k, v, entries: (q.mT.contiguous().mT, k, v, entries),
        lambda q, k, v, entries: (q.requires_grad_(), k, v, entries),
        lambda q, k, v, entries: (q, k, v, [entries[0]._replace(value=entries[0].value.mT.contiguous().mT)]),
    ],
    ids=[
        "two faces",
        "float32",
        "mixed types",
        "narrow heads",
        "shared text",
        "strided channels",
        "gradients",
        "strided face",
    ],
)
def test_what_the_kernel_does_not_do_is_left_to_the_caller(calls, change):
    assert fused_attention(*change(*layer())) is None
    assert not calls


def test_a_kernel_that_fails_is_reported_once_and_not_tried_again(calls, monkeypatch, caplog):
    def broken(*args: Any) -> None:
        calls.append(0)
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setitem(sys.modules, KERNEL, SimpleNamespace(text_and_identity=broken))
    with caplog.at_level(logging.WARNING, "fast_instantid"):
        assert [fused_attention(*layer()) for _ in range(3)] == [None] * 3
    assert len(calls) == len(caplog.records) == 1
    assert "Failed to find C compiler" in caplog.text


def test_a_compiled_graph_has_the_two_apart_and_no_break(calls):
    def attend(*arguments: Any) -> Tensor:
        out = fused_attention(*arguments)
        return apart(*arguments) if out is None else out

    arguments = layer(torch.float16)
    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), apart(*arguments), rtol=0, atol=2e-3)  # other roundings
    assert not calls


def test_a_recording_says_that_it_ran(calls):
    with Recorder() as recorder:
        fused_attention(*layer())
    assert "text and identity attention" in [span.name for span in recorder.spans]


@pytest.mark.parametrize("masked", [False, True])
def test_in_a_layer_of_diffusers(calls, masked):
    """Once, where nothing masks the text; the same result either way."""
    attn = Attention(CHANNELS, 48, heads=HEADS, dim_head=CHANNELS // HEADS).half()
    face = torch.randn(2, 2, 16, CHANNELS).half()
    faces = [[LayerFace(face[0], face[1], Strength(0.8, None, CPU))]]
    seen = Evaluation(faces, Layout((UNCOND, COND), (4, 5)), threading.get_ident())
    entries = [IdentityEntry.split(face[0], face[1], HEADS, 0.8)]
    hidden, text = torch.randn(4, 20, CHANNELS).half(), torch.randn(4, 77, 48).half()
    mask = torch.zeros(4, 1, 77).half() if masked else None
    with torch.inference_mode():
        out = CrossAttention(attn, 0, seen).forward(attn.forward, hidden, text, mask)
        query, key, value = attn.to_q(hidden), attn.to_k(text), attn.to_v(text)
        expected = attn.to_out[0](apart(query, key, value, entries))
    torch.testing.assert_close(out, expected)
    assert len(calls) == (0 if masked else 1)
