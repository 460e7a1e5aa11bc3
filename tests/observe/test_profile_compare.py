"""Two profiles side by side: each stage beside itself, and a warning where they cannot be compared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fast_instantid.observe.compare import Comparison
from fast_instantid.observe.profile import Profile
from fast_instantid.observe.stages import OUTSIDE
from fast_instantid.recorder import Span


def profile_of(*stages: tuple[str, int], **changes) -> Profile:
    spans, start = [], 0
    for name, duration in stages:
        spans.append(Span(name, -1, 0, start, duration, facts={"nbytes": duration, "hits": 1}))
        start += duration
    return replace(Profile("run", spans, start + 1, 0, ["MainThread"], about={"torch": "2.9"}), **changes)


def test_each_stage_is_compared_with_itself():
    comparison = Comparison(
        profile_of(("a", 10**9), ("gone", 5), ("same", 10**9), ("short", 10**5)),
        profile_of(("a", 10**9 // 2), ("same", 10**9 + 10**7), ("short", 10**6), ("new", 7)),
    )
    pairs = comparison.pairs().inner
    assert list(pairs) == ["a", "gone", "same", "short", "new", OUTSIDE]
    assert {name: pair.change() for name, pair in pairs.items()} == {
        "a": "2.00x faster",
        "gone": "gone",
        "same": "same",
        "short": "same",
        "new": "new",
        OUTSIDE: "same",
    }
    assert pairs["a"].after.time == 10**9 // 2
    assert Comparison(comparison.after, comparison.before).pairs().inner["a"].change() == "2.00x slower"
    text = comparison.tree()
    assert "1 → 1" not in text  # what did not change is said once
    assert "954 MiB → 477 MiB" in text
    assert comparison.warnings() == []


@pytest.mark.parametrize(("before", "change"), [(9, "9.00x"), (50, "50x"), (950.25, "950x"), (12345, "12,345x")])
def test_a_ratio_says_no_more_than_one_run_tells(before, change):
    comparison = Comparison(profile_of(("a", round(before * 1e9))), profile_of(("a", 10**9)))
    assert comparison.pairs().inner["a"].change() == f"{change} faster"


def test_inner_stages_are_compared_under_their_outer_ones():
    inner = [Span("outer", -1, 0, 0, 100), Span("x", 0, 0, 0, 50), Span("x", 0, 0, 50, 50)]
    before = Profile("run", inner, 100, 0, ["m"])
    after = Profile("run", [Span("x", -1, 0, 0, 100)], 100, 0, ["m"])
    pairs = Comparison(before, after).pairs().inner
    assert pairs["outer"].inner["x"].change() == "gone"
    assert pairs["x"].change() == "new"
    more = Profile("run", inner[:2], 100, 0, ["m"])
    assert "2 → 1" in Comparison(before, more).tree()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": "another"}, "The commands differ: 'run' and 'another'."),
        ({"about": {"torch": "2.8"}}, "The versions differ: torch 2.9 and 2.8."),
        ({"about": {"torch": "2.9", "GPU": "H200"}}, "The machines differ: GPU none and H200."),
        ({"ended_early": "interrupted"}, "The second did not end as it should (interrupted)."),
        ({"dropped": 5}, "5 stages of the second were not kept."),
    ],
)
def test_runs_that_cannot_be_compared_are_called_so(changes, message):
    comparison = Comparison(profile_of(("a", 1)), profile_of(("a", 1), **changes))
    assert comparison.warnings() == [message]
    assert f"warning: {message}" in comparison.tree()


def test_a_run_is_the_same_as_itself():
    profile = profile_of(("a", 1000), ("b", 1), ("b", 0))
    pairs = [Comparison(profile, profile).pairs()]
    pairs += pairs[0].inner.values()
    assert [pair.change() for pair in pairs] == ["same"] * 4
