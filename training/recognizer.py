"""The recogniser: an aligned face of 112 x 112 pixels to 512 numbers.

A small IResNet (Deng et al. 2019, "ArcFace"; insightface, arcface_torch/iresnet.py), with a stem of stride 2 and a neck
of 1 x 1, trained to tell people apart by contrast (InfoNCE, van den Oord et al. 2018) and to name what it sees.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast_instantid.faces.align import CROP_SIZE, TEMPLATE, similarity
from training.autoencoder import to_tensor
from training.data import Portraits, batches
from training.networks import EMBEDDING_DIM
from training.run import Run

WIDTHS, BLOCKS, NECK = (16, 32, 64, 128), (0, 2, 2, 2), 16
_PEOPLE, _TEMPERATURE = 48, 0.07


class Block(nn.Module):
    """``x + bn(conv(prelu(bn(conv(bn(x))))))``"""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = None
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + (x if self.shortcut is None else self.shortcut(x))


class Recognizer(nn.Module):
    """``(N, 3, 112, 112)`` RGB -1..1 to ``(N, 512)``, each number of about unit variance."""

    def __init__(self) -> None:
        super().__init__()
        stem = WIDTHS[0]
        layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.PReLU(stem)]
        channels = stem
        for width, count in zip(WIDTHS, BLOCKS, strict=True):
            for i in range(count):
                layers.append(Block(channels, width, 2 if i == 0 else 1))
                channels = width
        self.body = nn.Sequential(*layers)
        self.neck = nn.Sequential(
            nn.BatchNorm2d(channels), nn.Conv2d(channels, NECK, 1, bias=False), nn.BatchNorm2d(NECK)
        )
        side = CROP_SIZE // 16
        self.linear = nn.Linear(NECK * side * side, EMBEDDING_DIM)
        self.norm = nn.BatchNorm1d(EMBEDDING_DIM, affine=False)

    def forward(self, faces: Tensor) -> Tensor:
        return self.norm(self.linear(self.neck(self.body(faces)).flatten(1)))


def load(folder: Path) -> Recognizer:
    """Return the trained recogniser of :func:`train`."""
    model = Recognizer()
    model.load_state_dict(torch.load(folder / "recognizer.pt", weights_only=True)["model"])
    return model.eval()


def train(folder: Path, portraits: Portraits, steps: int = 300) -> None:
    """Train the recogniser. An interrupted training resumes."""
    torch.manual_seed(0)
    model = Recognizer().to(memory_format=torch.channels_last)
    naming = nn.Linear(EMBEDDING_DIM, portraits.attributes.shape[1])
    parameters = [*model.parameters(), *naming.parameters()]
    optimizer = torch.optim.AdamW(parameters, 2e-3, weight_decay=1e-3)
    parts = {"model": model, "naming": naming, "optimizer": optimizer}
    run = Run(folder / "recognizer.pt", steps, parts)
    random = np.random.default_rng([run.step, 7])
    people = batches(random, len(portraits.attributes), min(_PEOPLE, len(portraits.attributes)))
    for _ in run:
        who = next(people)
        views = np.stack([random.permutation(portraits.each)[:2] for _ in who])
        faces = [
            augmented_crop(portraits, index, random) for index in (who[:, None] * portraits.each + views).T.ravel()
        ]
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = model(to_tensor(np.stack(faces)).contiguous(memory_format=torch.channels_last)).float()
        one, other = F.normalize(embeddings).chunk(2)
        similar = one @ other.T / _TEMPERATURE
        target = torch.arange(len(who))
        contrast = (F.cross_entropy(similar, target) + F.cross_entropy(similar.T, target)) / 2
        attributes = torch.from_numpy(portraits.attributes[who]).repeat(2, 1)
        named = F.mse_loss(naming(embeddings), attributes)
        loss = contrast + 4 * named
        run.anneal(optimizer, 2e-3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(contrast=contrast.item(), named=named.item(), first=(similar.argmax(1) == target).float().mean().item())


def augmented_crop(portraits: Portraits, index: int, random: np.random.Generator) -> np.ndarray:
    """An aligned face as a detector would find it, sometimes as blurred as a generator would draw it."""
    points = portraits.keypoints[index]
    jitter = 0.03 * np.linalg.norm(points[0] - points[1])
    image = portraits.pictures[index]
    if random.random() < 0.6:
        side = int(random.uniform(36, 100))
        small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    noisy = (points + random.normal(0, jitter, points.shape)).astype(np.float32)
    face = cv2.warpAffine(image, similarity(noisy, TEMPLATE), (CROP_SIZE, CROP_SIZE)).astype(np.float32)
    face += random.normal(0, random.uniform(0, 8), face.shape) + random.normal(0, 5, 3)
    return face.clip(0, 255).astype(np.uint8)


@torch.inference_mode()
def embed(model: Recognizer, pictures: np.ndarray, keypoints: np.ndarray) -> Tensor:
    """``(N, 512)`` float32 of one face in each picture, at given keypoints ``(N, 5, 2)``."""
    crops = [
        cv2.warpAffine(picture, similarity(points, TEMPLATE), (CROP_SIZE, CROP_SIZE))
        for picture, points in zip(pictures, keypoints, strict=True)
    ]
    parts = [np.stack(crops[start : start + 250]) for start in range(0, len(crops), 250)]
    return torch.cat([model(to_tensor(part)) for part in parts])
