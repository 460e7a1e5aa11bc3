"""The hint block of a ControlNet runs once per run, and an IdentityNet at strength 0 not at all."""

from __future__ import annotations

import gc
import importlib
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from tests.comfyui import tiny
from tests.comfyui.test_composition import ACTS, SAME

STEPS, CONVOLUTIONS = 3, 8
SWITCH = "FAST_INSTANTID_REUSE"


@pytest.fixture
def apply(ours, adapter, faces, controlnet, portrait, model, positive, negative):
    """``apply(**inputs)``: model and conditionings of the advanced node."""

    def apply(**inputs: Any) -> tuple[Any, ...]:
        common = {
            "ip_weight": 0.8,
            "cn_strength": 0.8,
            "start_at": 0.0,
            "end_at": 1.0,
            "noise": 0.35,
            "image": portrait,
        }
        common |= {"model": model, "positive": positive, "negative": negative, "control_net": controlnet}
        node = ours["ApplyInstantIDAdvanced"]
        return tiny.call(node, instantid=adapter, insightface=faces, combine_embeds="average", **common | inputs)

    return apply


class Runs:
    """How often a ControlNet runs, and the first and the last of the convolutions over its picture."""

    def __init__(self, controlnet: Any) -> None:
        network = controlnet.control_model
        convolutions = [module for module in network.input_hint_block.modules() if isinstance(module, nn.Conv2d)]
        assert len(convolutions) == CONVOLUTIONS
        self.network, self.hint = 0, 0
        self._weights = [convolution.weight for convolution in convolutions]
        self._middle = network.middle_block
        self._conv2d = torch.nn.functional.conv2d

    def __enter__(self) -> Runs:
        self._handle = self._middle.register_forward_hook(self._add)
        torch.nn.functional.conv2d = self._count  # hooks on the convolutions would themselves forbid to skip them
        return self

    def __exit__(self, *_: Any) -> None:
        self._handle.remove()
        torch.nn.functional.conv2d = self._conv2d

    def _add(self, *_: Any) -> None:
        self.network += 1

    def _count(self, input: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.hint += any(weight is one or weight.data_ptr() == one.data_ptr() for one in self._weights)
        return self._conv2d(input, weight, *args, **kwargs)


@pytest.fixture
def both(monkeypatch, controlnet):
    """``both(patched, **sampling)``: the latents and the counts with and without reuse, which has to change neither."""

    def both(patched: tuple[Any, ...], **sampling: Any) -> tuple[Runs, Runs]:
        counted, pictures = [], []
        for switch in ("1", "0"):
            monkeypatch.setenv(SWITCH, switch)
            with Runs(controlnet) as runs:
                pictures.append(tiny.sample(*patched, **{"steps": STEPS} | sampling))
            counted.append(runs)
        assert torch.equal(*pictures)
        assert counted[0].network == counted[1].network
        return counted[0], counted[1]

    return both


@pytest.mark.parametrize("sampling", [{}, {"cfg": 1.0}, {"batch": 3}, {"height": 192}])
def test_the_picture_is_convolved_once_per_run(apply, both, sampling):
    reused, computed = both(apply(), **sampling)
    assert reused.hint == CONVOLUTIONS
    assert computed.hint == CONVOLUTIONS * computed.network
    assert computed.network == STEPS


def test_a_sampler_with_two_evaluations_to_a_step(real_host, apply, both):
    reused, computed = both(apply(), sampler="heun")
    assert reused.hint == CONVOLUTIONS
    assert computed.network == 2 * STEPS - 1


def test_pictures_of_a_batch(apply, both, portraits):
    reused, computed = both(apply(image_kps=portraits), batch=3)
    assert reused.hint <= 2 * CONVOLUTIONS  # hosts may put the batch together in the second step
    assert computed.hint == CONVOLUTIONS * STEPS


def test_two_people_have_a_picture_each(apply, both, portraits):
    model, *one = apply()
    patched, *other = apply(model=model, image=portraits[1:2])
    assert patched is not model
    both_people = [one[0] + other[0], one[1] + other[1]]
    reused, computed = both((patched, *both_people))
    assert reused.hint == 2 * CONVOLUTIONS
    assert computed.hint == CONVOLUTIONS * computed.network > reused.hint


def test_a_second_picture_of_one_network_in_a_chain(apply, both, portraits):
    model, positive, negative = apply()
    reused, _ = both(apply(model=model, positive=positive, negative=negative, image=portraits[1:2]))
    assert reused.hint == 2 * CONVOLUTIONS


def test_each_run_has_its_own(apply, both, controlnet, portraits):
    """A new picture, a network that was changed, and one at the same place in memory."""
    patched = apply()
    first = tiny.sample(*patched)
    assert torch.equal(tiny.sample(*patched), first)
    assert not torch.equal(tiny.sample(*apply(image=portraits[1:2])), first)
    picture = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    patched = apply(image_kps=picture)
    before = tiny.sample(*patched)
    picture.mul_(0.1)
    both(patched)
    assert not torch.equal(tiny.sample(*patched), before)
    weight = controlnet.control_model.input_hint_block[0].weight
    with torch.no_grad():
        weight.mul_(2)
        try:
            both(patched)
        finally:
            weight.div_(2)


def test_nothing_is_held_after_a_run(apply, our_pack, monkeypatch, controlnet):
    reuse = importlib.import_module(f"{our_pack.__name__}.fast_instantid.comfyui.reuse")
    held: list[weakref.ref[Any]] = []
    sizes: list[int] = []
    clear = reuse.HintCache.clear

    def look_and_clear(self: Any) -> None:
        sizes.append(self.nbytes)
        held.extend(weakref.ref(value) for _, reuse in self._entries for value, _ in reuse._results.values())
        clear(self)

    tiny.sample(*apply())  # the host notes in a network that it is loaded
    monkeypatch.setattr(reuse.HintCache, "clear", look_and_clear)
    state = dict(vars(controlnet.control_model)), dict(vars(controlnet.control_model.input_hint_block))
    patched = apply()
    options = repr(sorted(patched[0].model_options["transformer_options"]))
    tiny.sample(*patched)
    gc.collect()
    assert len(sizes) == 1
    assert sizes[0] in (0, 4 * tiny.CHANNELS * 16 * 16)  # hosts drop the picture, and with it this, before or after
    assert not [ref for ref in held if ref() is not None]
    assert state == (dict(vars(controlnet.control_model)), dict(vars(controlnet.control_model.input_hint_block)))
    assert options == repr(sorted(patched[0].model_options["transformer_options"]))


def test_an_exception_leaves_the_network_as_it_was(apply, controlnet):
    block = controlnet.control_model.input_hint_block

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    handle = controlnet.control_model.middle_block.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="no memory"):
            tiny.sample(*apply())
    finally:
        handle.remove()
    assert "forward" not in vars(block)


def test_where_weights_may_change_everything_is_computed(apply, both, controlnet):
    """Where someone hooks the layers, or the host streams patched weights into them."""
    layer = controlnet.control_model.input_hint_block[0]
    handle = layer.register_forward_hook(lambda *_: None)
    try:
        reused, computed = both(apply())
    finally:
        handle.remove()
    assert reused.hint == computed.hint
    before = getattr(layer, "weight_function", None)
    layer.weight_function = [lambda weight: weight]
    try:
        reused, computed = both(apply())
    finally:
        if before is None:
            del layer.weight_function
        else:
            layer.weight_function = before
    assert reused.hint == computed.hint


@pytest.mark.parametrize(
    ("inputs", "runs"),
    [({"cn_strength": 0.0}, 0), ({"start_at": 0.4, "end_at": 0.8}, 1), ({"end_at": 0.0}, 0), ({}, STEPS)],
)
def test_the_identitynet_runs_only_where_it_says_something(apply, both, inputs, runs):
    reused, _ = both(apply(**inputs))
    assert reused.network == runs


def test_at_strength_0_it_is_not_even_loaded_and_the_picture_is_the_same(apply, controlnet, positive, negative):
    """As with one that says 0 everywhere, alone and behind another ControlNet."""
    other = tiny.tiny_controlnet(seed=5)
    hint = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    behind = other.copy().set_cond_hint(hint, 0.7)
    chained = {
        "positive": [[text, {**options, "control": behind}] for text, options in positive],
        "negative": [[text, {**options, "control": behind}] for text, options in negative],
    }
    for inputs in ({}, chained):
        model, *without = apply(cn_strength=0.0, **inputs)
        _, *silent = apply(cn_strength=1e-30, **inputs)
        for [[_, options]] in silent:
            options["control"].strength = 0.0
        assert tiny.distance(tiny.sample(model, *without), tiny.sample(model, *silent)) <= SAME
        loud = apply(**inputs)
        assert tiny.distance(tiny.sample(*loud), tiny.sample(model, *silent)) > ACTS
        for [[_, options]] in without:
            assert options.get("control") is (behind if inputs else None)
