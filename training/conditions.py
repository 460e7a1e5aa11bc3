"""Conditions of the diffusion networks: captions as tokens, faces as embeddings, places as keypoint pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from training.data import Portraits
from training.networks import TEXT_LENGTH
from training.pairs import Pairs
from training.world import SIZE, Scene


@dataclass
class Batch:
    """``B`` pictures with ``F`` people in each, and their conditions."""

    latents: Tensor
    """``(B, 4, 16, 16 F)``"""
    words: Tensor
    """``(B, TEXT_LENGTH)`` token ids."""
    embeddings: Tensor
    """``(B, F, 512)`` of the same people in other pictures; zeros where they are not told."""
    keypoints: Tensor
    """``(B, 3, SIZE, SIZE F)`` keypoint pictures, 0..1."""
    weights: Tensor
    """``(B, 1, 16, 16 F)`` how much each place counts: more where faces are."""

    @property
    def tensors(self) -> list[Tensor]:
        return list(vars(self).values())


@dataclass
class Material:
    """``N`` pictures of one kind, with ``F`` people in each, as the training reads them."""

    latents: Tensor
    """``(N, 4, 16, 16 F)``"""
    controls: Tensor
    """``(N, SIZE, SIZE F, 3)`` uint8 keypoint pictures."""
    keypoints: Tensor
    """``(N, F, 5, 2)``"""
    people: np.ndarray
    """``(N, F)`` numbers of the people."""
    scenes: list[Scene]

    @classmethod
    def portraits(cls, folder: Path, device: torch.device) -> Material:
        """Of the folder in which :func:`training.prepare.prepare` has been."""
        drawn = Portraits.load(folder / "train")
        people = np.arange(len(drawn.pictures))[:, None] // drawn.each
        return cls._read(folder, "portrait", drawn.keypoints[:, None], people, drawn.scenes, device)

    @classmethod
    def pairs(cls, folder: Path, device: torch.device) -> Material:
        drawn = Pairs.load(folder / "pairs")
        return cls._read(folder, "pair", drawn.keypoints, drawn.people, drawn.scenes, device)

    @classmethod
    def _read(
        cls, folder: Path, kind: str, keypoints: np.ndarray, people: np.ndarray, scenes: list[Scene],
        device: torch.device,
    ) -> Material:  # fmt: skip
        # What stays on the CPU stays in the files, too; a GPU has room for all of it.
        latents = torch.load(folder / f"{kind}_latents.pt", mmap=True)
        controls = torch.from_numpy(np.load(folder / f"{kind}_controls.npy", mmap_mode="c"))
        return cls(latents.to(device), controls.to(device), torch.tensor(keypoints).to(device), people, scenes)


class Conditions:
    """Batches for the diffusion training, drawn by a seeded generator.

    Args:
        folder: in which :func:`training.prepare.prepare` has been.
        device: where the batches are wanted.
    """

    def __init__(self, folder: Path, words: CLIPTokenizer, seed: list[int], device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.embeddings = torch.load(folder / "portrait_embeddings.pt", mmap=True).to(self.device)
        self._portraits, self._pairs = (read(folder, self.device) for read in (Material.portraits, Material.pairs))
        self._each = len(self._portraits.latents) // (int(self._portraits.people.max()) + 1)
        self._words, self._tokens = words, dict[str, np.ndarray]()
        self.random = np.random.default_rng(seed)

    def batch(self, size: int) -> Batch:
        """Portraits."""
        return self._batch(self._portraits, size)

    def pairs(self, size: int) -> Batch:
        """Wide pictures of two people."""
        return self._batch(self._pairs, size)

    def _batch(self, material: Material, size: int) -> Batch:
        random, each = self.random, self._each
        shown = random.integers(len(material.latents), size=size)
        people = material.people[shown]
        # Mostly another picture, so that nothing of this one can be read off the embedding but who it is.
        step = np.where(random.random(people.shape) < 0.1, 0, random.integers(1, each, people.shape))
        rows = people * each + (shown[:, None] + step) % each
        embeddings = self.embeddings[self._on_device(rows)]
        embeddings = embeddings * self._on_device(random.random(size) >= 0.1)[:, None, None]
        index = self._on_device(shown)
        captions = [varied_caption(material.scenes[i], random) for i in shown]
        return Batch(
            latents=material.latents[index],
            words=self._on_device(np.stack([self._tokenised(caption) for caption in captions])),
            embeddings=embeddings,
            keypoints=material.controls[index].permute(0, 3, 1, 2).float() / 255,  # channels last
            weights=_weights(material.keypoints[index]),
        )

    def _on_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":  # without waiting for the step that runs
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _tokenised(self, caption: str) -> np.ndarray:
        """Return the token ids of a caption, cached: captions are few and the tokenizer is slow."""
        if caption not in self._tokens:
            self._tokens[caption] = tokens(self._words, [caption])[0].numpy()
        return self._tokens[caption]


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


def _weights(keypoints: Tensor) -> Tensor:
    """``(B, F, 5, 2)`` to ``(B, 1, 16, 16 F)``: 1 far from the faces, 4 in their middle, divided by the mean."""
    faces = keypoints.shape[1]
    cells = [(torch.arange(count * SIZE // 8, device=keypoints.device) + 0.5) * 8 for count in (1, faces)]
    middle = keypoints.mean(2)[..., None, None, :]  # (B, F, 1, 1, 2)
    size = 1.6 * (keypoints[:, :, 0] - keypoints[:, :, 1]).norm(dim=-1)[..., None, None]
    x, y = cells[1] - middle[..., 0], cells[0][:, None] - middle[..., 1]
    near = torch.exp(-(x.square() + (y + 0.2 * size).square()) / size.square()).amax(1, keepdim=True)
    weights = 1 + 3 * near
    return weights / weights.mean((1, 2, 3), keepdim=True)
