"""Conditioning tensors that know whether and how they fit into one batch."""

from __future__ import annotations

import math
from typing import Any

import torch

import comfy.utils


class CONDRegular:
    def __init__(self, cond: torch.Tensor) -> None:
        self.cond = cond

    def process_cond(self, batch_size: int, **kwargs: Any) -> CONDRegular:
        return type(self)(comfy.utils.repeat_to_batch_size(self.cond, batch_size))

    def can_concat(self, other: CONDRegular) -> bool:
        return self.cond.shape == other.cond.shape and self.cond.device == other.cond.device

    def concat(self, others: list[CONDRegular]) -> torch.Tensor:
        return torch.cat([self.cond, *(other.cond for other in others)])


class CONDCrossAttn(CONDRegular):
    def can_concat(self, other: CONDRegular) -> bool:
        """Token counts may differ, if repeating the tokens up to a common multiple costs at most four times."""
        (batch, tokens, width), (other_batch, other_tokens, other_width) = self.cond.shape, other.cond.shape
        padding = math.lcm(tokens, other_tokens) // min(tokens, other_tokens)
        same_size = (batch, width) == (other_batch, other_width)
        return same_size and padding <= 4 and self.cond.device == other.cond.device

    def concat(self, others: list[CONDRegular]) -> torch.Tensor:
        conds = [self.cond, *(other.cond for other in others)]
        tokens = math.lcm(*(cond.shape[1] for cond in conds))
        return torch.cat([cond.repeat(1, tokens // cond.shape[1], 1) for cond in conds])
