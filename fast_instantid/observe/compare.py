"""Two profiles side by side: what became faster, what slower, what is new, what is gone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..files import atomic_write
from .stages import OUTSIDE, StageTotal
from .table import align, branches, cache_words, format_bytes, format_time, printable

if TYPE_CHECKING:
    from .profile import Profile

_SAME = 0.02  # two runs of the same work differ by more than this
_TOO_SHORT = 1_000_000  # nanoseconds, of which a difference is chance and of no interest
_MACHINE = ("", "processor", "GPU")


@dataclass
class StagePair:
    """One stage, before and after; None where it was not met."""

    name: str
    before: StageTotal | None = None
    after: StageTotal | None = None
    inner: dict[str, StagePair] = field(default_factory=dict[str, "StagePair"])

    def change(self) -> str:
        """In words: ``2.00x faster``, ``1.30x slower``, ``same`` within 2 % or 1 ms, ``new`` or ``gone``."""
        if self.before is None:
            return "new"
        if self.after is None:
            return "gone"
        before, after = self.before.time, self.after.time
        if abs(after - before) <= max(_SAME * before, _TOO_SHORT):
            return "same"
        if not before or not after:
            return ""
        return f"{_times(before / after)} faster" if after < before else f"{_times(after / before)} slower"

    def both(self, text: Callable[[StageTotal], str]) -> str:
        """A text of each, ``before → after``, or only one where they are equal."""
        before, after = (text(total) if total is not None else "" for total in (self.before, self.after))
        return before if before == after else f"{before or '-'} → {after or '-'}"


@dataclass(frozen=True)
class Comparison:
    """Before and after."""

    before: Profile
    after: Profile

    def pairs(self) -> StagePair:
        """The whole runs, with the stages of either inside: those of before in their order, then the new ones."""
        root = StagePair("whole run", self.before.totals.whole, self.after.totals.whole)
        todo = [root]
        while todo:
            pair = todo.pop()
            for total in pair.before.inner.values() if pair.before else ():
                pair.inner[total.name] = StagePair(total.name, before=total)
            for total in pair.after.inner.values() if pair.after else ():
                pair.inner.setdefault(total.name, StagePair(total.name)).after = total
            if OUTSIDE in pair.inner:
                pair.inner[OUTSIDE] = pair.inner.pop(OUTSIDE)  # to the end
            todo += pair.inner.values()
        return root

    def warnings(self) -> list[str]:
        """Why the times may differ for other reasons than the one of interest."""
        before, after, found = self.before, self.after, []
        if before.title != after.title:
            found.append(f"The commands differ: {printable(before.title)!r} and {printable(after.title)!r}.")
        for name in [*before.about, *(name for name in after.about if name not in before.about)]:
            values = [printable(profile.about.get(name, "none")) for profile in (before, after)]
            if values[0] != values[1]:
                what = "The machines differ" if name in _MACHINE else "The versions differ"
                found.append(f"{what}: {f'{name} {values[0]}'.strip()} and {values[1]}.")
        for which, profile in (("first", before), ("second", after)):
            if profile.ended_early:
                found.append(f"The {which} did not end as it should ({printable(profile.ended_early)}).")
            if profile.dropped:
                found.append(f"{profile.dropped:,} stages of the {which} were not kept.")
        return found

    def tree(self) -> str:
        """The table of the stages for a terminal, with the warnings above it."""
        lines = [
            f"{which} {printable(run.title)}" for which, run in (("before:", self.before), ("after: ", self.after))
        ]
        lines += [f"warning: {warning}" for warning in self.warnings()]
        rows = [["stage", "before", "after", "change", "calls", "on GPU", "bytes", "in cache"]]
        rows += [[name, *pair_cells(pair)] for name, pair in branches(self.pairs())]
        return "\n".join([*lines, "", align(rows), "One run of each: what is done for the first time takes longer."])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page of both, whole or not at all.

        Raises:
            OSError: as the system says.
        """
        from .page import comparison_page

        text = comparison_page(self)
        with atomic_write(path) as temporary:
            temporary.write_text(text, "utf-8", errors="backslashreplace")


def _times(ratio: float) -> str:
    """With three digits that count: one run of each says no more."""
    return f"{ratio:.2f}x" if ratio < 9.995 else f"{ratio:.3g}x" if ratio < 999.5 else f"{ratio:,.0f}x"


def pair_cells(pair: StagePair) -> list[str]:
    """Time before, time after, change, calls, time on the GPU, bytes and cache hits."""
    times = [format_time(total.time) if total is not None else "" for total in (pair.before, pair.after)]
    return [
        *times,
        pair.change(),
        pair.both(lambda total: f"{total.calls:,}"),
        pair.both(lambda total: "" if total.device_time is None else format_time(total.device_time)),
        pair.both(lambda total: format_bytes(total.facts["nbytes"]) if "nbytes" in total.facts else ""),
        pair.both(lambda total: cache_words(total.facts)),
    ]
