"""What InstantID Approximations leaves out of an evaluation, and the IdentityNet's output between its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..reuse import ReplacedForward, replaced
from .observe.networks import identity_nets_of

KEY = "fast_instantid_approximations"
"""Key of a :class:`Less` in ``transformer_options``."""

Sigmas = tuple[float, float]
"""Noise levels between which a part acts: from the first down to the second."""


@dataclass(frozen=True)
class Less:
    """The parts of an evaluation that are left out.

    Args:
        blocks: the host's names of the blocks with an identity branch: "input", "middle", "output".
        identity, identity_net: noise levels at which the identity branch and the IdentityNet act.
        every: run the IdentityNet in each n-th step, and use its last output in the others.
    """

    blocks: tuple[str, ...]
    identity: Sigmas
    identity_net: Sigmas
    every: int

    def sees(self, layer: Sequence[Any], sigma: float) -> bool:
        """Whether a layer has the identity branch at a noise level."""
        return layer[0] in self.blocks and self.identity[1] <= sigma <= self.identity[0]


class HeldControl:
    """The IdentityNets' last outputs during one run."""

    def __init__(self) -> None:
        self._step, self._sigma = -1, -1.0
        self._outputs: dict[tuple[Any, ...], tuple[int, Any, dict[str, list[Tensor]]]] = {}
        """For each kind of call: the step, objects that keep their ids by that, and the output."""

    def active(
        self, less: Less, conds: Sequence[Sequence[Mapping[str, Any]] | None], sigma: float
    ) -> AbstractContextManager[None]:
        """Replace the IdentityNets of these conditionings for one evaluation. Other ControlNets stay as they are."""
        if sigma != self._sigma:
            self._step, self._sigma = self._step + 1, sigma
            self._outputs = {kind: one for kind, one in self._outputs.items() if self._step - one[0] < less.every}
        acting = [entry for cond in conds for entry in cond or () if _acts(entry, sigma)]
        calls: list[nn.Module] = []
        nets = identity_nets_of(conds)
        return replaced(ReplacedForward(net, partial(self._call, net, less, acting, calls)) for net in nets)

    def _call(
        self, net: nn.Module, less: Less, acting: list[Any], calls: list[nn.Module], run: Any, **inputs: Any
    ) -> dict[str, list[Tensor]]:
        if not less.identity_net[1] <= self._sigma <= less.identity_net[0]:
            return {"middle": [], "output": []}
        if less.every == 1:
            return run(**inputs)
        # The host holds one hint for each ControlNet, and may evaluate the conditionings in several calls.
        calls.append(net)
        x, kept = inputs["x"], (net, inputs["hint"], *acting)
        kind = (*map(id, kept), len(calls), x.shape, x.device, x.dtype, inputs["context"].shape)
        step, _, output = self._outputs.get(kind, (self._step, None, {}))
        if not 0 < self._step - step < less.every:
            output = run(**inputs)
            self._outputs[kind] = self._step, kept, output
        # The host multiplies it by the strength in-place.
        return {name: [tensor.clone() for tensor in tensors] for name, tensors in output.items()}


def _acts(entry: Mapping[str, Any], sigma: float) -> bool:
    """Whether the host evaluates a conditioning at this noise level (comfy/samplers.py, get_area_and_mult)."""
    start, end = entry.get("timestep_start"), entry.get("timestep_end")
    return (start is None or sigma <= start) and (end is None or sigma >= end)
