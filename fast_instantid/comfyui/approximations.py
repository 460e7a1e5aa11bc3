"""The node InstantID Approximations: less work for another picture (docs/approximations.md)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher

from ..errors import FastInstantIDError
from . import sockets
from .held import KEY, Less, Sigmas
from .sampling import wrap


class InstantIDApproximations:
    """Less work for another picture. fast costs little likeness; custom takes the inputs below.

    Without this node nothing is left out.
    """

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "approximate"
    CATEGORY = "InstantID"
    SEARCH_ALIASES = ("faster", "speed", "skip steps", "less work", "cache")
    INPUT_TYPES = staticmethod(sockets.approximations)

    def approximate(
        self,
        model: ModelPatcher,
        preset: str,
        identity_net_every: int = 1,
        identity_net_start: float = 0.0,
        identity_net_end: float = 1.0,
        identity_start: float = 0.0,
        identity_end: float = 1.0,
        blocks: str = "input and middle and output",
    ) -> tuple[ModelPatcher]:
        if preset not in sockets.PRESETS or blocks not in sockets.BLOCKS:
            choices = f"{', '.join(sockets.PRESETS)}; blocks {', '.join(sockets.BLOCKS)}"
            raise FastInstantIDError(f"preset {preset!r} with blocks {blocks!r}: choose from {choices}")
        if preset == "off":
            return (model,)
        if preset == "fast":
            identity_net_every, blocks = sockets.FAST
            identity_start, identity_end, identity_net_start, identity_net_end = 0.0, 1.0, 0.0, 1.0
        sigma_of = model.get_model_object("model_sampling").percent_to_sigma
        ranges: list[Sigmas] = []
        for start, end in ((identity_start, identity_end), (identity_net_start, identity_net_end)):
            if not 0 <= start < end <= 1:
                raise FastInstantIDError(f"from {start:g} to {end:g}: expected 0 <= start < end <= 1")
            ranges.append((float(sigma_of(start)), float(sigma_of(end))))
        clone = model.clone()
        chosen = Less(sockets.BLOCKS[blocks], ranges[0], ranges[1], identity_net_every)
        clone.model_options["transformer_options"][KEY] = chosen
        wrap(clone)
        return (clone,)
