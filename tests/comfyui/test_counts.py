"""InstantID's additions to an evaluation of the model, counted against the same model without it."""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fast_instantid.attention import region_mask
from tests.comfyui import tiny
from tests.comfyui.operations import Counts
from tests.comfyui.test_composition import bytes_held, patches_of

LAYERS = 60
WIDTHS = [640] * 4 + [1280] * 20 + [1280] * 30 + [640] * 6 + [1280] * 10
"""Channels of SDXL's own 70 cross-attention layers."""
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear")


def counts(model: Any, positive: Any, negative: Any, steps: int = 2, **options: Any) -> Counter[str]:
    """Of ``steps`` evaluations, after a run that makes whatever is kept."""
    tiny.sample(model, positive, negative, steps=1, **options)
    with Counts() as counted:
        tiny.sample(model, positive, negative, steps=steps, **options)
    return counted.calls


@pytest.fixture(scope="module")
def plain(positive, negative):
    """``plain(**options)``: counts of the model without a face."""
    return cache(lambda **options: counts(tiny.tiny_model(), positive, negative, **options))


@pytest.fixture
def patch(ours, adapter, faces, portrait):
    """``patch(model)``: the model with a face, the conditionings left alone."""

    def patch(model: Any, **inputs: Any) -> Any:
        inputs = {"weight": 0.8, "start_at": 0.0, "end_at": 1.0, "noise": 0.35, "image": portrait} | inputs
        node = ours["InstantIDAttentionPatch"]
        return tiny.call(node, instantid=adapter, insightface=faces, model=model, **inputs)[0]

    return patch


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mask", [None, torch.rand(2, 64, 64)], ids=["everywhere", "masked"])
@pytest.mark.parametrize("faces_applied", [1, 2])
def test_a_layer_costs_an_attention_and_a_weighted_sum(
    patch, model, plain, positive, negative, batch, mask, faces_applied
):
    patched = model
    for _ in range(faces_applied):
        patched = patch(patched, mask=mask)
    added = counts(patched, positive, negative, batch=batch) - plain(batch=batch)

    attentions = {name: calls for name, calls in added.items() if "scaled_dot_product" in name}
    times = 2 * 70 * faces_applied
    assert sum(attentions.values()) == times
    assert added["add" if mask is None else "addcmul"] == times
    for name in ("_local_scalar_dense", "repeat", "cat", "stack", "copy_", *PRODUCTS):
        assert added[name] == 0, name
    views = {"view", "_unsafe_view", "transpose", "slice", "alias", "detach", "unsqueeze", "expand", "permute"}
    assert set(added) - set(attentions) - views <= {"add", "addcmul"}


def test_prompts_that_were_combined_cost_no_copy(patch, model, positive, negative):
    """Two people are two positive and two negative prompts, which the host evaluates in one batch of four chunks."""
    two = positive + tiny.conditioning(7), negative + tiny.conditioning(8)
    added = counts(patch(model), *two) - counts(model, *two)
    assert sum(calls for name, calls in added.items() if "scaled_dot_product" in name) == 2 * 70
    for name in ("_local_scalar_dense", "repeat", "cat", "stack", "copy_", *PRODUCTS):
        assert added[name] == 0, name


@pytest.mark.parametrize(("start", "end", "reads"), [(0.0, 1.0, 0), (0.2, 0.8, 1), (0.0, 0.5, 1)])
def test_the_noise_level_is_read_once_per_evaluation_and_only_if_it_matters(
    patch, model, plain, positive, negative, start, end, reads
):
    patched = patch(patch(model, start_at=start, end_at=end), start_at=start, end_at=end)
    added = counts(patched, positive, negative, steps=4) - plain(steps=4)
    assert added["_local_scalar_dense"] == 4 * reads


def test_outside_of_its_range_a_face_costs_nothing(patch, model, plain, positive, negative):
    never = counts(patch(model, start_at=0.0, end_at=0.0), positive, negative) - plain()
    assert set(never) <= {"_local_scalar_dense", "select", "alias", "detach"}, never


@pytest.mark.parametrize("masked", [False, True])
def test_nothing_crosses_between_host_and_gpu(patch, model, masked):
    """With fake tensors on a GPU, which have no data: reading one raises."""
    patches = patches_of(patch(model, mask=torch.rand(1, 64, 64) if masked else None))
    one = patches[("input", 4, 0)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_gpu = copy.deepcopy(one)
        mask = torch.empty(1, 64, 64, device="cuda") if masked else None
        face = one.kwargs[0]["face"]
        strength = type(face.strength)(0.8, mask, torch.device("cuda:0"))
        key, value = (torch.empty(2, 16, 64, device="cuda") for _ in range(2))
        on_gpu.kwargs[0]["face"] = type(face)(key, value, strength)
        q = torch.empty(2, 256, 64, device="cuda")
        k = torch.empty(2, 77, 64, device="cuda")
        options = {"n_heads": 4, "cond_or_uncond": [1, 0], "original_shape": [2, 4, 32, 32], "attn_precision": None}
        on_gpu.base = lambda q, k, v, options: q
        with Counts() as counted:
            out = on_gpu(q, k, k, options)
    assert out.device.type == "cuda"
    assert out.shape == q.shape
    moves = {"_to_copy", "copy_", "_local_scalar_dense", "item", "nonzero", "lift_fresh"}
    assert not moves & set(counted.calls), counted.calls


def test_a_model_holds_the_bank_and_no_more(ours, our_pack, patch, model):
    """At SDXL's real size in fp16: 10.65 MB for a face in all 70 layers, however often the model is cloned."""
    import importlib

    name = our_pack.__name__
    identity = importlib.import_module(f"{name}.fast_instantid.identity.identity")
    apply = importlib.import_module(f"{name}.fast_instantid.comfyui.apply")
    bank = identity.IdentityBank(
        *(tuple(torch.zeros(2, 16, width, dtype=torch.float16) for width in WIDTHS) for _ in range(2))
    )
    face = identity.Identity(torch.zeros(2, 16, tiny.TOKEN_WIDTH, dtype=torch.float16), bank)
    for layers, expected in (("paper", sum(WIDTHS)), ("reference", sum(WIDTHS[:60]))):
        patched = apply.apply_to_model(model, face, 0.8, 0.0, 1.0, layers=layers)
        weight_of_the_face = 4
        held = bytes_held(patched)
        assert held == 2 * 2 * 16 * 2 * expected + weight_of_the_face
        assert bytes_held(patched, patched.clone().clone().clone()) == held
    assert 2 * 2 * 16 * 2 * sum(WIDTHS) / 1e6 == pytest.approx(10.65, abs=0.01)


def test_masks_are_made_once_for_each_size_of_a_layer(patch, model, positive, negative, monkeypatch):
    import sys

    made: list[int] = []
    patched = patch(model, mask=torch.rand(1, 64, 64))
    strength = patches_of(patched)[("input", 4, 0)].kwargs[0]["face"].strength
    module = sys.modules[type(strength).__module__]

    def counted(mask: torch.Tensor, size: tuple[int, int], num_tokens: int, batch: int) -> torch.Tensor:
        made.append(num_tokens)
        return region_mask(mask, size, num_tokens, batch)

    monkeypatch.setattr(module, "region_mask", counted)
    tiny.sample(patched, positive, negative, steps=3)
    assert len(made) == len(set(made)) == 2


ORDERS = ([1, 0], [0], [1], [0, 1], [1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0])
"""COND is 0 and UNCOND 1 in the host's numbers."""


def layer_inputs(order: list[int], dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Of a layer of 64 channels."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, tokens, 64, generator=generator).to(dtype) for tokens in (256, 77))
    q, k = q.expand(len(order), -1, -1), k.expand(len(order), -1, -1)
    options = {"n_heads": 4, "cond_or_uncond": order, "original_shape": [len(order), 4, 32, 32]}
    return q, k, k, options | {"attn_precision": None, "sigmas": torch.ones(1)}


@pytest.mark.parametrize("mask", [None, torch.rand(1, 64, 64)], ids=["everywhere", "masked"])
def test_a_face_is_laid_out_once_for_each_kind_of_batch(patch, model, mask):
    """A host short of memory evaluates cond and uncond in turn, which must neither mix them up nor start over."""
    layer = patches_of(patch(model, mask=mask))[("input", 4, 0)]
    assert layer.kwargs[0]["face"].key.shape[-1] == 64
    cond, uncond = (layer(*layer_inputs([number]))[0] for number in (0, 1))
    assert not torch.equal(cond, uncond)
    for _ in range(2):
        for order in ORDERS:
            wanted = torch.stack([(cond, uncond)[number] for number in order])
            torch.testing.assert_close(layer(*layer_inputs(order)), wanted, rtol=0, atol=1e-5)
            with Counts() as again:
                layer(*layer_inputs(order))
            assert not {"slice", "select", "stack"} & set(again.calls), again.calls
    for order in ([0], [1]):
        layer(*layer_inputs(order))
    with Counts() as in_turn:
        for order in ([0], [1]) * 3:
            layer(*layer_inputs(order))
    assert not {"slice", "select"} & set(in_turn.calls), in_turn.calls
    assert layer(*layer_inputs([0], torch.float16)).dtype == torch.float16


def test_our_callback_returns_what_the_patch_adds(patch, model):
    """As callbacks of other packs do, which may be called by patches of other packs."""
    layer = patches_of(patch(model))[("input", 4, 0)]
    q, k, v, options = layer_inputs([1, 0])
    text = copy.deepcopy(layer)
    text.callback, text.kwargs = [], []
    out = text(q, k, v, options)
    added = layer.callback[0](out, q, k, v, options, **layer.kwargs[0])
    torch.testing.assert_close(layer(q, k, v, options), out + added, rtol=0, atol=1e-6)


def test_what_is_laid_out_is_no_copy_and_bounded(patch, model, positive, negative):
    patched = patch(model)
    held = bytes_held(patched)
    tiny.sample(patched, positive, negative, steps=2)
    assert bytes_held(patched) == held
    layer = patches_of(patched)[("input", 4, 0)]
    for chunks in range(1, 40):
        layer(*layer_inputs([1, 0] * chunks))
    assert bytes_held(patched) <= held + 2 * 4 * 80 * layer.kwargs[0]["face"].key[0].nbytes
