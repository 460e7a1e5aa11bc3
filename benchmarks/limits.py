"""Rows of three: the reference, ours, and the limit, which is the same networks with nothing of either around them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common import Comparison, spread

SIDES = ("reference", "ours", "limit")


@dataclass
class LimitedComparison(Comparison):
    """Seconds of two ways to do one job, and of what neither can do without, run in turn."""

    limit: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts and bytes that belong to the row."""

    @property
    def over_limit(self) -> list[float]:
        """ours / limit, turn by turn."""
        return [ours / limit for ours, limit in zip(self.ours, self.limit, strict=True)]

    def to_json(self) -> dict[str, Any]:
        limit = {"limit_seconds": spread(self.limit), "ours_over_limit": spread(self.over_limit)}
        return super().to_json() | limit | self.facts


def compare_with_limit(
    name: str, sides: Mapping[str, Callable[[], object]], runs: int, wait: Callable[[], None], warm_up: int = 1
) -> LimitedComparison:
    """Time the sides in turn, A B C A B C.

    Args:
        sides: a job for each of SIDES.
        wait: until the device has done what it was told.
        warm_up: turns before those that count.
    """
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for run in range(-warm_up, runs):
        for side in SIDES:
            gc.collect()
            wait()
            start = time.perf_counter()
            sides[side]()
            wait()
            if run >= 0:
                times[side].append(time.perf_counter() - start)
    return LimitedComparison(name, **times)


def print_limited(comparisons: Sequence[Comparison]) -> None:
    """For people: medians, and the ratio with its spread. Rows without a limit leave its cells empty."""
    heads = ("reference", "ours", "limit", "ratio", "min..max", "ours/limit")
    print(f"{'':38}" + "".join(f"{head:>12}" for head in heads))
    for comparison in comparisons:
        row = comparison.to_json()
        cells = [f"{row[f'{side}_seconds']['median']:.3f} s" if f"{side}_seconds" in row else "" for side in SIDES]
        ratio = row["ratio"]
        cells += [f"{ratio['median']:.3g}x", f"{ratio['min']:.3g}..{ratio['max']:.3g}"]
        cells += [f"{row['ours_over_limit']['median']:.3g}x"] if "ours_over_limit" in row else []
        print(f"{comparison.name:38}" + "".join(f"{cell:>12}" for cell in cells))
    print()
