"""The node InstantID Approximations: less work for another picture (docs/approximations.md)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher

from ..errors import FastInstantIDError
from .held import KEY, Less, Sigmas
from .sampling import wrap
from .sockets import MODEL, choice, decimal, entry, inputs

PRESETS = ("fast", "custom", "off")
BLOCKS = {name: tuple(name.split(" and ")) for name in ("input and middle and output", "input and output", "output")}
FAST = 4, "input and output"
"""Every n-th step of the IdentityNet, and the blocks, of the preset."""
_RANGES = {
    f"{name}_{end}": decimal(
        at, 0.0, 1.0, f"custom: when {what} {verb} acting; 0 is the first step, 1 the last.", 0.001, advanced=True
    )
    for name, what in (("identity_net", "the IdentityNet"), ("identity", "the identity in the attention"))
    for end, at, verb in (("start", 0.0, "starts"), ("end", 1.0, "stops"))
}


class InstantIDApproximations:
    """Less work for another picture. fast costs little likeness; custom takes the inputs below.

    Without this node nothing is left out.
    """

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "approximate"
    CATEGORY = "InstantID"
    SEARCH_ALIASES = ("faster", "speed", "skip steps", "less work", "cache")
    INPUT_TYPES = inputs(
        model=MODEL,
        preset=choice(PRESETS, "fast: the set that costs little likeness. custom: the inputs below."),
        optional={
            "identity_net_every": entry(
                "INT", "custom: run the IdentityNet in every n-th step.", default=1, min=1, max=1000, advanced=True
            ),
            **_RANGES,
            "blocks": choice(BLOCKS, "custom: the UNet's blocks with the identity.", advanced=True),
        },
    )

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
        if preset not in PRESETS or blocks not in BLOCKS:
            choices = f"{', '.join(PRESETS)}; blocks {', '.join(BLOCKS)}"
            raise FastInstantIDError(f"preset {preset!r} with blocks {blocks!r}: choose from {choices}")
        if preset == "off":
            return (model,)
        if preset == "fast":
            identity_net_every, blocks = FAST
            identity_start, identity_end, identity_net_start, identity_net_end = 0.0, 1.0, 0.0, 1.0
        sigma_of = model.get_model_object("model_sampling").percent_to_sigma
        ranges: list[Sigmas] = []
        for start, end in ((identity_start, identity_end), (identity_net_start, identity_net_end)):
            if not 0 <= start < end <= 1:
                raise FastInstantIDError(f"from {start:g} to {end:g}: expected 0 <= start < end <= 1")
            ranges.append((float(sigma_of(start)), float(sigma_of(end))))
        clone = model.clone()
        chosen = Less(BLOCKS[blocks], ranges[0], ranges[1], identity_net_every)
        clone.model_options["transformer_options"][KEY] = chosen
        wrap(clone)
        return (clone,)
