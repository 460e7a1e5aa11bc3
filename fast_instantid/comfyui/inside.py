"""A ControlNet that acts inside of masks only: the host has no masks for residuals."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from ..identity.layout import COND, Layout, residual_mask


def keep_inside(control_net: Any, masks: Tensor) -> None:
    """Make a ControlNet, and its copies, act inside of masks ``(M, H, W)`` only, in-place; image i has mask i."""
    if not hasattr(control_net, "masks"):
        control_net.__class__ = _inside(type(control_net))
    control_net.masks = masks


@cache
def _inside(kind: Any) -> Any:
    class Inside(kind):
        """Multiplies its residuals by masks, before the host merges them with those of other ControlNets."""

        masks: Tensor
        chunks = 1

        def get_control(
            self, x_noisy: Tensor, t: Tensor, cond: Any, batched_number: int, *rest: Any, **more: Any
        ) -> Any:
            self.chunks = batched_number
            return super().get_control(x_noisy, t, cond, batched_number, *rest, **more)

        def control_merge(self, control: dict[str, list[Tensor | None]], *rest: Any, **more: Any) -> Any:
            inside = {name: [self._masked(part) for part in parts] for name, parts in control.items()}
            return super().control_merge(inside, *rest, **more)

        def _masked(self, residual: Tensor | None) -> Tensor | None:
            if residual is None:
                return None
            height, width = residual.shape[-2:]
            layout = Layout((COND,) * self.chunks, (height, width))
            mask = residual_mask(self.masks, (height, width), layout, len(residual) // self.chunks)
            return residual * mask.to(residual.device, residual.dtype)

        def copy_to(self, copy: Any) -> None:
            super().copy_to(copy)
            keep_inside(copy, self.masks)

    return Inside
