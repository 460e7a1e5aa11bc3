"""The networks beside the UNet, as stages of a recorded run."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import nn

from ..recorder import stage_of

_identity_nets: WeakSet[nn.Module] = WeakSet()


def note_identity_net(control_net: Any) -> None:
    """Remember that this ControlNet of the host's is one that sees a face."""
    if (network := _network(control_net)) is not None:
        _identity_nets.add(network)


@contextmanager
def control_net_stages(conds: Sequence[Sequence[Mapping[str, Any]] | None]) -> Generator[None]:
    """In the block, each call of a ControlNet that these conditionings hold is a stage."""
    handles = [
        handle
        for network in networks_of(conds)
        for handle in stage_of(network, "IdentityNet" if network in _identity_nets else "ControlNet")
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def networks_of(conds: Sequence[Sequence[Mapping[str, Any]] | None]) -> list[nn.Module]:
    """The networks of the ControlNets that these conditionings hold."""
    found: dict[nn.Module, None] = {}  # each once, in order: the copies of a ControlNet share its network
    for entry in (entry for cond in conds for entry in cond or ()):
        control = entry.get("control")
        while control is not None:
            if (network := _network(control)) is not None:
                found[network] = None
            control = getattr(control, "previous_controlnet", None)
    return list(found)


def _network(control: Any) -> nn.Module | None:
    """None for what steers without a network of this kind, such as a T2I adapter."""
    network = getattr(control, "control_model", None)
    return network if isinstance(network, nn.Module) else None
