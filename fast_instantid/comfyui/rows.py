"""ComfyUI's description of a batch as a :class:`~..identity.layout.Layout`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..identity.layout import COND, UNCOND, Layout

ROLES = "fast_instantid_roles"
"""Key in ``transformer_options``, set by :mod:`.sampling`: COND or UNCOND for each conditioning, in the guider's order.
The last one applies to all further conditionings."""


def layout_of(extra_options: Mapping[str, Any]) -> Layout:
    """Return the layout of the batch in one call of an attention patch."""
    height, width = extra_options["original_shape"][-2:]
    return Layout(tuple(chunks_of(extra_options)), (height, width), frames_of(extra_options))


def chunks_of(extra_options: Mapping[str, Any]) -> list[int]:
    """Return COND or UNCOND for each chunk of the batch. The host numbers chunks by the guider's order."""
    roles = extra_options.get(ROLES, (COND, UNCOND))
    return [roles[min(index, len(roles) - 1)] for index in extra_options["cond_or_uncond"]]


def frames_of(extra_options: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the frames in AnimateDiff's sliding window; None without one."""
    frames = (extra_options.get("ad_params") or {}).get("sub_idxs")
    return None if frames is None else tuple(int(frame) for frame in frames)
