"""From the embeddings of a person's photographs to what the resampler sees.

The numbers are those of cubiq/ComfyUI_InstantID, InstantID.py, ``apply_instantid``, to the bit: its averaging and the
seed of its noise decide which picture comes out.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from ..errors import FastInstantIDError

EMBEDDING_DIM = 512
"""Length of an ArcFace embedding."""

Combine: TypeAlias = Literal["average", "norm average", "concat"]


def combine_embeddings(embeddings: Tensor, how: Combine = "average") -> Tensor:
    """Several photographs of one person as one input of the resampler.

    Args:
        embeddings: ``(N, 512)`` float32 on the CPU, as the recogniser gave them (not normalised).
        how: ``average``: their mean. ``norm average``: their mean after each of the 512 numbers was divided by its norm
            over the N photographs, which is what the reference does under that name. ``concat``: each of them
            contributes its own tokens.

    Returns:
        ``(M, 1, 512)``: M is N for ``concat`` and otherwise 1. A single embedding is left as it is.

    Raises:
        FastInstantIDError: ``how`` is none of these.
    """
    if how not in get_args(Combine):
        raise FastInstantIDError(f"embeddings cannot be combined by {how!r}: use one of {', '.join(get_args(Combine))}")
    stacked = embeddings.unsqueeze(1)
    if len(stacked) == 1 or how == "concat":
        return stacked
    if how == "norm average":
        stacked = stacked / torch.norm(stacked, dim=0, keepdim=True)
    return stacked.mean(dim=0, keepdim=True)


def unconditional_embedding(combined: Tensor, noise: float = 0.0) -> Tensor:
    """What classifier-free guidance moves away from: zeros, or uniform noise in 0..``noise``.

    The noise is seeded by the embedding, so that a face always gets the same. The global random state is not touched.

    Args:
        combined: ``(M, 1, 512)`` float32 on the CPU, finite.

    Returns:
        The same shape.
    """
    if noise <= 0:
        return torch.zeros_like(combined)
    seed = int(combined.sum().item()) % 1_000_000_007
    return noise * torch.rand(combined.shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
