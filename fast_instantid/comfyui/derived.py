"""Nodes of other packs that are derived from ours."""

from __future__ import annotations

import inspect
from typing import Any

from .sockets import Inputs

OURS = ("layers", "person", "no_face", "det_threshold", "det_size")
"""Inputs of the reference's nodes that the reference lacks."""


class Derivable:
    """Base of the reference's nodes. A derived node has those of our inputs that its methods take.

    The front end sends each widget of ``INPUT_TYPES``, and a method of the reference's signature refuses ours.
    """

    FUNCTION: str

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if own := vars(cls).get("INPUT_TYPES"):  # however it is made: by a static method, super() or name
            taken = classmethod(lambda cls: _taken(own.__get__(None, cls)(), cls))
            cls.INPUT_TYPES = taken  # pyright: ignore[reportAttributeAccessIssue]


def _taken(inputs: Inputs, node: Any) -> Inputs:
    ours = next(base for base in reversed(node.__mro__) if "FUNCTION" in vars(base))
    for name in {vars(ours)["FUNCTION"], node.FUNCTION}:
        parameters = inspect.signature(getattr(node, name)).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for given in () if takes_any else OURS:
            for section in () if given in parameters else inputs.values():
                section.pop(given, None)
    return inputs
