"""InstantID Approximations: off is the same picture to the bit, and each choice leaves out what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.comfyui import tiny

KEY = "fast_instantid_approximations"
STEPS = 4


@pytest.fixture
def applied(ours, adapter, faces, controlnet, portrait, model, positive, negative):
    inputs = {"instantid": adapter, "insightface": faces, "control_net": controlnet, "image": portrait}
    inputs |= {"model": model, "positive": positive, "negative": negative, "weight": 0.8}
    return tiny.call(ours["ApplyInstantID"], start_at=0.0, end_at=1.0, **inputs)


@pytest.fixture
def less(ours, applied):
    """``less(preset, **inputs)``: model and conditionings with the node."""

    def less(preset: str = "custom", **inputs: Any) -> tuple[Any, ...]:
        return tiny.call(ours["InstantIDApproximations"], model=applied[0], preset=preset, **inputs)[0], *applied[1:]

    return less


def drawn(patched: tuple[Any, ...], network: Any, **sampling: Any) -> tuple[torch.Tensor, int]:
    """The latent, and how often the network ran."""
    runs: list[int] = []
    handle = network.control_model.middle_block.register_forward_hook(lambda *_: runs.append(1))
    try:
        return tiny.sample(*patched, **{"steps": STEPS} | sampling), len(runs)
    finally:
        handle.remove()


def test_off_and_choices_of_everything_change_nothing(less, applied, controlnet):
    usual, runs = drawn(applied, controlnet)
    assert runs == STEPS
    assert less("off")[0] is applied[0]
    latent, runs = drawn(less(), controlnet)
    assert torch.equal(latent, usual)
    assert runs == STEPS


def test_a_model_without_a_person_stays_as_it_is(ours, model, positive, negative):
    (patched,) = tiny.call(ours["InstantIDApproximations"], model=model, preset="fast")
    usual = tiny.sample(model, positive, negative, steps=2)
    assert torch.equal(tiny.sample(patched, positive, negative, steps=2), usual)


def test_it_may_stand_before_the_person_too(
    ours, less, adapter, faces, portrait, controlnet, model, positive, negative
):
    (before,) = tiny.call(ours["InstantIDApproximations"], model=model, preset="fast")
    inputs = {"instantid": adapter, "insightface": faces, "control_net": controlnet, "image": portrait}
    inputs |= {"model": before, "positive": positive, "negative": negative, "weight": 0.8}
    applied = tiny.call(ours["ApplyInstantID"], start_at=0.0, end_at=1.0, **inputs)
    latent, runs = drawn(applied, controlnet)
    assert runs == 1
    assert torch.equal(latent, drawn(less("fast"), controlnet)[0])


@pytest.mark.parametrize(("every", "runs"), [(2, 2), (100, 1)])
def test_the_identity_net_runs_in_every_nth_step(less, applied, controlnet, every, runs):
    patched = less(identity_net_every=every)
    latent, counted = drawn(patched, controlnet)
    assert counted == runs
    again, counted = drawn(patched, controlnet)
    assert counted == runs, "nothing is held from one run for the next"
    assert torch.equal(again, latent)
    usual, counted = drawn(applied, controlnet)
    assert counted == STEPS, "the model before the node draws as before"
    assert not torch.equal(latent, usual)


def test_fast_is_its_choices(less, controlnet):
    latent, runs = drawn(less("fast"), controlnet)
    assert runs == STEPS / 4
    chosen = less(identity_net_every=4, blocks="input and output")
    assert torch.equal(latent, drawn(chosen, controlnet)[0])
    given = less("fast", identity_net_every=2, identity_end=0.5, blocks="output")[0].model_options
    assert given["transformer_options"][KEY] == chosen[0].model_options["transformer_options"][KEY]


def test_outside_of_its_range_the_identity_net_does_not_run(ours, less, applied, controlnet, model):
    latent, runs = drawn(less(identity_net_end=0.5), controlnet)
    assert 0 < runs < STEPS
    options = applied[1][0][1]
    control = options["control"].copy().set_cond_hint(options["control"].cond_hint_original, 0.8, (0.0, 0.5))
    both = [[[text, {**one, "control": control}] for text, one in cond] for cond in applied[1:]]
    assert torch.allclose(latent, drawn((applied[0], *both), controlnet)[0], atol=1e-5)


def test_outside_of_its_range_and_blocks_the_attention_has_no_identity(less, applied, model, controlnet):
    without = model, *applied[1:]
    never = less(identity_start=0.999)
    assert torch.allclose(drawn(never, controlnet, steps=1)[0], drawn(without, controlnet, steps=1)[0], atol=1e-5)
    some = [drawn(less(blocks=name), controlnet, steps=1)[0] for name in ("input and output", "output")]
    usual = drawn(applied, controlnet, steps=1)[0]
    assert torch.equal(some[0], usual), "the 60 layers of Apply InstantID are all of them"
    assert not torch.equal(some[1], usual)


def test_other_control_nets_always_run(less, applied, controlnet):
    other = tiny.tiny_controlnet(seed=7)
    hint = torch.rand(1, 3, 128, 128)
    stacked = [
        [
            [text, {**one, "control": other.copy().set_cond_hint(hint, 0.5).set_previous_controlnet(one["control"])}]
            for text, one in cond
        ]
        for cond in applied[1:]
    ]
    patched = less(identity_net_every=4)[0], *stacked
    runs: list[int] = []
    handle = other.control_model.middle_block.register_forward_hook(lambda *_: runs.append(1))
    try:
        assert drawn(patched, controlnet)[1] == STEPS / 4 * 2, "the conditionings hold two ControlNets, in two calls"
    finally:
        handle.remove()
    assert len(runs) == 2 * STEPS


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"preset": "fastest"}, "preset 'fastest'.*fast, custom, off"),
        ({"blocks": "all"}, "blocks 'all'.*input and output"),
        ({"identity_start": 0.5, "identity_end": 0.5}, "from 0.5 to 0.5: expected 0 <= start < end <= 1"),
        ({"identity_net_end": float("nan")}, "from 0 to nan"),
    ],
)
def test_a_wrong_choice_is_refused(less, inputs, said):
    with pytest.raises(Exception, match=said):
        less(**inputs)
