"""The resampler's input, computed from the embeddings of a person's photographs.

The results equal those of cubiq/ComfyUI_InstantID (InstantID.py, ``apply_instantid``) to the bit: averaging and the
seed of the noise change the picture.
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
    """Combine the embeddings of several photographs of one person.

    Args:
        embeddings: ``(N, 512)`` float32 on the CPU, not normalised.
        how: ``average``: the mean. ``norm average``: the mean after dividing each of the 512 numbers by its norm over
            the N photographs, as in the reference. ``concat``: each photograph contributes its own tokens.

    Returns:
        ``(M, 1, 512)``: M is N for ``concat`` and otherwise 1. A single embedding is unchanged.

    Raises:
        FastInstantIDError: unknown ``how``.
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
    """Return the unconditional embedding for classifier-free guidance: zeros, or uniform noise in 0..``noise``.

    The embedding seeds the noise, so a face always gets the same. The global random state is unchanged.

    Args:
        combined: ``(M, 1, 512)`` float32 on the CPU, finite.

    Returns:
        a tensor of the same shape.
    """
    if noise <= 0:
        return torch.zeros_like(combined)
    seed = int(combined.sum().item()) % 1_000_000_007
    generator = torch.Generator("cpu").manual_seed(seed)
    return float(noise) * torch.rand(combined.shape, generator=generator, device="cpu", dtype=torch.float32)
