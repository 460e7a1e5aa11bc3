"""Where the attention patch asks for text and identity attention in one launch, and where it must not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from tests.comfyui import tiny
from tests.comfyui.test_composition import SAME, patches_of

LAYERS, STEPS = 70, 2


@pytest.fixture
def patch(ours, adapter, faces, portrait):
    """``patch(model)``: the model with a face."""

    def patch(model: Any, **inputs: Any) -> Any:
        inputs = {"weight": 0.8, "start_at": 0.0, "end_at": 1.0, "noise": 0.35, "image": portrait} | inputs
        node = ours["InstantIDAttentionPatch"]
        return tiny.call(node, instantid=adapter, insightface=faces, model=model, **inputs)[0]

    return patch


@pytest.fixture
def module(ours) -> Any:
    return sys.modules[ours["InstantIDAttentionPatch"].__module__.rpartition(".")[0] + ".patch"]


@pytest.fixture
def calls(module, monkeypatch) -> list[int]:
    """Of the kernel, here computed by torch, on a GPU that is faster with it."""
    calls: list[int] = []

    def fused(query: Tensor, key: Tensor, value: Tensor, entries: Sequence[Any]) -> Tensor:
        calls.append(query.shape[1])
        text = attention_pytorch(query, key, value, entries[0].key.shape[1])
        return module.identity_attention(query, entries, onto=text)

    monkeypatch.setattr(module, "is_available", lambda device: True)
    monkeypatch.setattr(module, "fused_attention", fused)
    monkeypatch.setattr(module, "optimized_attention", attention_pytorch)
    monkeypatch.setattr(module, "attention_pytorch", attention_pytorch)
    return calls


@pytest.mark.parametrize("mask", [None, torch.rand(2, 64, 64)], ids=["everywhere", "masked"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_layer_with_one_face_is_one_call_and_the_same_picture(
    patch, calls, module, monkeypatch, model, positive, negative, mask, batch
):
    patched = patch(model, mask=mask)
    picture = tiny.sample(patched, positive, negative, steps=STEPS, batch=batch)
    assert len(calls) == LAYERS * STEPS
    monkeypatch.setattr(module, "is_available", lambda device: False)
    assert tiny.distance(picture, tiny.sample(patched, positive, negative, steps=STEPS, batch=batch)) <= SAME
    assert len(calls) == LAYERS * STEPS


def test_two_faces_another_pack_or_another_attention_are_not(
    patch, calls, module, monkeypatch, model, positive, negative
):
    def evaluate(model: Any) -> None:
        tiny.sample(model, positive, negative, steps=1)

    evaluate(patch(patch(model)))

    beside = patch(model)
    for layer in patches_of(beside).values():
        layer.add(lambda out, q, *args, **kwargs: torch.zeros_like(q))
    evaluate(beside)

    before = model.clone()
    key = next(iter(patches_of(beside)))
    before.set_model_attn2_replace(
        lambda q, k, v, options: attention_pytorch(q, k, v, options["n_heads"]), *key[:2], *key[2:]
    )
    evaluate(patch(before))
    assert len(calls) == LAYERS - 1
    calls.clear()

    overridden = patch(model)
    overridden.model_options["transformer_options"]["optimized_attention_override"] = lambda func, *a, **k: func(
        *a, **k
    )
    evaluate(overridden)

    monkeypatch.setattr(module, "optimized_attention", lambda *args, **kwargs: attention_pytorch(*args, **kwargs))
    evaluate(patch(model))
    assert not calls


def test_outside_of_its_range_a_face_is_not_computed(patch, calls, model, positive, negative):
    tiny.sample(patch(model, start_at=0.0, end_at=0.4), positive, negative, steps=4)
    assert 0 < len(calls) < 4 * LAYERS
    assert len(calls) % LAYERS == 0


def test_an_attention_in_another_precision_is_the_hosts(patch, calls, model, module):
    layer = next(iter(patches_of(patch(model)).values()))
    width = layer.kwargs[0]["face"].key.shape[-1]
    query, text = torch.randn(2, 16, width), torch.randn(2, 77, width)
    options = {"n_heads": 1, "cond_or_uncond": [1, 0], "sigmas": torch.ones(1), "original_shape": (2, 4, 8, 8)}
    layer(query, text, text, options)
    assert len(calls) == 1
    layer(query, text, text, options | {"attn_precision": torch.float32})
    assert len(calls) == 1
