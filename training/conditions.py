"""What the diffusion networks are told: captions as tokens, faces as embeddings, places as keypoint pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from fast_instantid.faces.keypoints import draw_keypoints
from training.data import Portraits
from training.networks import TEXT_LENGTH
from training.world import SIZE, Scene


@dataclass
class Batch:
    """``B`` pictures and what is said of them."""

    latents: Tensor
    """``(B, 4, 16, 16)``"""
    words: Tensor
    """``(B, TEXT_LENGTH)`` token ids."""
    embeddings: Tensor
    """``(B, 512)`` of the same person in another picture; zeros where the person is not told."""
    keypoints: Tensor
    """``(B, 3, SIZE, SIZE)`` keypoint pictures, 0..1."""
    weights: Tensor
    """``(B, 1, 16, 16)`` how much each place counts: more where the face is."""


class Conditions:
    """Batches for the diffusion training, drawn by a seeded generator.

    Args:
        latents: of all portraits, ``(N, 4, 16, 16)``.
        embeddings: of all portraits, ``(N, 512)``.
    """

    def __init__(
        self, portraits: Portraits, latents: Tensor, embeddings: Tensor, words: CLIPTokenizer, seed: list[int]
    ) -> None:
        self.portraits, self.latents, self.embeddings = portraits, latents, embeddings
        self.random = np.random.default_rng(seed)
        self._words = words

    def batch(self, size: int) -> Batch:
        random, each = self.random, self.portraits.each
        shown = random.integers(len(self.latents), size=size)
        other = shown // each * each + (shown + random.integers(1, each, size)) % each
        embeddings = self.embeddings[torch.from_numpy(np.where(random.random(size) < 0.1, shown, other))].clone()
        embeddings[torch.from_numpy(random.random(size) < 0.1)] = 0
        points = self.portraits.keypoints[shown]
        captions = [varied_caption(self.portraits.scenes[index], random) for index in shown]
        return Batch(
            latents=self.latents[torch.from_numpy(shown)],
            words=tokens(self._words, captions),
            embeddings=embeddings,
            keypoints=control_pictures(points),
            weights=_weights(points),
        )


def varied_caption(scene: Scene, random: np.random.Generator) -> str:
    """The caption, a part of it, its parts in another order, or nothing."""
    if random.random() < 0.1:
        return ""
    parts = [f"{scene.motif} {scene.background} background", f"{scene.clothes_color} {scene.clothes}"]
    if random.random() < 0.1:
        parts[0] = f"{scene.background} background"
    first = f"{scene.style} portrait" if random.random() < 0.9 else "portrait"
    if random.random() < 0.15:
        parts.reverse()
    return ", ".join([first, *parts])


def tokens(words: CLIPTokenizer, captions: list[str]) -> Tensor:
    return words(captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt").input_ids


def control_pictures(keypoints: np.ndarray) -> Tensor:
    """``(N, 5, 2)`` to ``(N, 3, SIZE, SIZE)`` float32 0..1, drawn as production draws them."""
    drawn = np.stack([draw_keypoints((SIZE, SIZE), points) for points in keypoints])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255  # channels last


def _weights(keypoints: np.ndarray) -> Tensor:
    """1 far from the face, 4 in its middle; their mean is 1."""
    cells = (np.arange(SIZE // 8) + 0.5) * 8
    middle = keypoints.mean(1)
    size = 1.6 * np.linalg.norm(keypoints[:, 0] - keypoints[:, 1], axis=1)[:, None, None]
    x, y = cells[None, None, :] - middle[:, 0, None, None], cells[None, :, None] - middle[:, 1, None, None]
    weights = 1 + 3 * np.exp(-((x**2 + (y + 0.2 * size) ** 2) / size**2))
    weights /= weights.mean((1, 2), keepdims=True)
    return torch.from_numpy(weights[:, None]).float()
