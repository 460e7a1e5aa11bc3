"""The benchmark of diffusers pipelines, with tiny networks: both ways draw the same, and what each costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.pipelines import suite as pipelines

TINY = pipelines.PIPELINE_SIZES["tiny"]


@pytest.fixture(scope="module")
def bench():
    with torch.no_grad():
        return pipelines.Bench(TINY, torch.device("cpu"), torch.float32, steps=1)


@torch.no_grad()
def test_both_ways_draw_the_same_person(bench):
    found = bench.difference()
    assert found["effect_of_the_identity"] > 0.01
    assert found["ours"] <= 1e-4


@torch.no_grad()
def test_nothing_is_reported_where_they_differ(bench, monkeypatch):
    monkeypatch.setattr(pipelines, "WEIGHT", 0.5 * pipelines.WEIGHT)  # ours asks for it anew, InstantX's way has it
    with pytest.raises(SystemExit, match="nothing is reported"):
        bench.difference()


@torch.no_grad()
def test_the_reference_projects_at_every_step_and_ours_never(bench):
    person = torch.randn(1, 512)
    ways = {side: bench.in_its_pipeline(side) for side in pipelines.SIDES}
    calls = {side: linear_calls(lambda steps, draw=draw: draw(person, 0, steps)) for side, draw in ways.items()}
    held = bench.held(person)
    assert calls["reference"] - calls["limit"] == 2 * len(TINY.layer_channels)
    # Of the prompt's keys and values, and of those in the IdentityNet, one step more projects none.
    identity_net_layers = 34
    assert calls["limit"] - calls["ours"] == 2 * (len(TINY.layer_channels) + identity_net_layers)
    tokens, channels = 2 * 16, sum(TINY.layer_channels)
    assert held["ours"] == 4 * tokens * (2 * channels + TINY.token_width)
    assert held["reference"] > 4 * 2 * channels * TINY.token_width
    assert held["limit"] == 0


class _Linears(TorchFunctionMode):
    """Counts calls of linear layers."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is F.linear
        return func(*args, **(kwargs or {}))


def linear_calls(job: Callable[[int], object]) -> int:
    """Linear layers that run in one step more. ``job`` draws a picture of so many steps."""
    job(1)  # so that what is made once is there
    counts: list[int] = []
    for steps in (1, 2):
        with _Linears() as linears:
            job(steps)
        counts.append(linears.count)
    return counts[1] - counts[0]
