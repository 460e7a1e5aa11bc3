"""The counter of bytes that memory tests rely on."""

from __future__ import annotations

import torch

from tests.live_bytes import LiveBytes


def test_storages_count_once_and_until_their_last_view_is_gone() -> None:
    given = torch.ones(1000)
    with LiveBytes() as live:
        view = given[:10].view(2, 5)
        made = given + 1
        part = made[:10]
        assert sum(live.alive.values()) == 4000
        del made
        assert sum(live.alive.values()) == 4000, "a part keeps the whole alive"
        del part
    assert view.sum() == 10
    assert sum(live.alive.values()) == 0
    assert live.peak == 4000
    with LiveBytes() as live:
        halves = (given * 2).to(torch.float16).split(500)
    assert (live.conversions, sum(live.alive.values()), live.peak) == (1, 2000, 6000)
    assert len(halves) == 2
