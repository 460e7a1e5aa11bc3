"""Stages for the calls of ControlNets."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import nn

from ...recorder import stage_of

_identity_nets: WeakSet[nn.Module] = WeakSet()


def mark_identity_net(control_net: Any) -> None:
    """Show this ControlNet as IdentityNet in recordings."""
    if (network := _network(control_net)) is not None:
        _identity_nets.add(network)


def identity_nets_of(conds: Sequence[Sequence[Mapping[str, Any]] | None]) -> list[nn.Module]:
    """Return the networks of the ControlNets that our nodes applied as IdentityNet."""
    return [network for network in networks_of(conds) if network in _identity_nets]


@contextmanager
def control_net_stages(conds: Sequence[Sequence[Mapping[str, Any]] | None]) -> Generator[None]:
    """Make each call of these conditionings' ControlNets a stage while the context is open."""
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
    """Return the networks of the ControlNets in these conditionings; copies of a ControlNet share one network."""
    found: dict[nn.Module, None] = {}
    for entry in (entry for cond in conds for entry in cond or ()):
        control = entry.get("control")
        while control is not None:
            if (network := _network(control)) is not None:
                found[network] = None
            control = getattr(control, "previous_controlnet", None)
    return list(found)


def _network(control: Any) -> nn.Module | None:
    """Return the network of a ControlNet, or None for another control such as a T2I adapter."""
    network = getattr(control, "control_model", None)
    return network if isinstance(network, nn.Module) else None
