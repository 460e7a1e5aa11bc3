"""The face detector: an SCRFD (Guo et al. 2021, "Sample and Computation Redistribution for Efficient Face Detection")
small enough for drawn faces, trained on drawn crowds and written as ONNX in the layout of antelopev2's.

What production does to a picture decides what is learned: it scales every picture into 640 x 640 pixels, and into
smaller squares where it found nothing, so the network sees faces of 30 to 450 pixels, enlarged and without detail.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fast_instantid.faces.detector import DETECTION_SIZES
from training.crowds import Crowd, draw_crowd
from training.data import TRAINING
from training.detector_export import write_onnx
from training.half import store_half
from training.run import Run
from training.world import SIZE

FILE = "scrfd_10g_bnkps.onnx"
STRIDES = (8, 16, 32)
ANCHORS = (6.0, 9.0)
"""Of each cell: the size of face, the root of its box's area, that it stands for, in cells."""
_STEM, _WIDTHS, _BLOCKS, _NECK = (8, 16), (24, 32, 40), (1, 1, 2), 24
_SMALLEST = 24.0  # of the faces that are learned, their size in pixels of the canvas
_REACH = 1.4  # a face belongs to the anchors of up to so much another size, and to the nearest
_RADIUS = 1.5  # and to the cells so near to its middle
_RATE = 3e-3
_CAUTION = 2.0  # how much more a false face costs than a missed one
_CLOSE_UPS = 0.25  # of the steps, at the beginning: lone faces at half the size, where their features are learned
_CLOSE_UP_SIDE = 320
# An average face around the cell at its middle, in units of its size: left, top, right, bottom; five keypoints.
_BOX = (0.44, 0.56, 0.44, 0.56)
_KEYPOINTS = (-0.2, -0.04, 0.2, -0.04, 0.0, 0.17, -0.18, 0.33, 0.18, 0.33)

Maps = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""For each stride: logits of the scores ``(N, A, H, W)``, distances to the sides of the box ``(N, 4 A, H, W)`` and
offsets of the keypoints ``(N, 10 A, H, W)`` in cells, A for the anchors of a cell."""


class Scrfd(nn.Module):
    """Residual backbone, path aggregation neck, one head for all three levels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, _STEM[0], 2), _conv(_STEM[0], _STEM[1], 2))
        channels = (_STEM[1], *_WIDTHS)
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Block(channels[i + (n > 0)], channels[i + 1], 1 if n else 2) for n in range(_BLOCKS[i])))
            for i in range(3)
        )
        self.laterals = nn.ModuleList(_conv(width, _NECK, kernel=1, relu=False) for width in _WIDTHS)
        self.smooth = nn.ModuleList(_conv(_NECK, _NECK) for _ in range(3))
        self.downs = nn.ModuleList(_conv(_NECK, _NECK, 2, relu=False) for _ in range(2))
        self.head = nn.Sequential(_conv(_NECK, _NECK), _conv(_NECK, _NECK))
        self.score, self.box, self.keypoints = (nn.Conv2d(_NECK, len(ANCHORS) * k, 3, padding=1) for k in (1, 4, 10))
        # Begin with average faces, and none of them anywhere.
        nn.init.normal_(self.score.weight, 0, 0.01)
        self.score.bias = nn.Parameter(torch.full((len(ANCHORS),), -4.0))
        for layer, start in ((self.box, _BOX), (self.keypoints, _KEYPOINTS)):
            nn.init.normal_(layer.weight, 0, 0.01)
            layer.bias = nn.Parameter(torch.tensor([size * x for size in ANCHORS for x in start]))

    def forward(self, images: torch.Tensor) -> Maps:
        """``images``: ``(N, 3, H, W)`` RGB, ``(value - 127.5) / 128``; height and width multiples of 32."""
        x, levels = self.stem(images), []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        for i in (1, 0):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], scale_factor=2.0, mode="nearest")
        levels = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]
        for i in (0, 1):
            levels[i + 1] = levels[i + 1] + self.downs[i](levels[i])
        features = [self.head(level) for level in levels]
        return [(self.score(x), self.box(x), self.keypoints(x)) for x in features]


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(inputs, outputs, stride), _conv(outputs, outputs, relu=False))
        self.shortcut = _conv(inputs, outputs, stride, kernel=1, relu=False) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3, relu: bool = True) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs, momentum=0.03), nn.ReLU() if relu else nn.Identity())


def train(folder: Path, steps: int = 10_000, pictures: int = 3000, seed: int = 9) -> None:
    """Train a detector and write ``folder/scrfd_10g_bnkps.onnx``; go on where an interrupted call stopped.

    Begun with crowds, it takes every mouth for one of average width: a mouth tells little among so many faces and
    sizes. So it begins with close-ups.

    Args:
        folder: also holds the checkpoint, ``detector.pt``; one of a finished training is only exported again.
        steps: with the default, some twenty minutes on one core.
        pictures: drawn first; each is varied and scaled anew whenever it comes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = Scrfd().to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-4)
    run = Run(folder / "detector.pt", steps, {"network": network, "optimizer": optimizer})
    drawn = [draw_crowd(np.random.default_rng([TRAINING, seed, i])) for i in range(pictures if run.done < 1 else 0)]
    alone = [crowd for crowd in drawn if len(crowd.boxes) == 1 and crowd.picture.shape[:2] == (SIZE, SIZE)] or drawn
    for step in run:
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min((step + 1) / 300, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        random = np.random.default_rng([TRAINING, seed, step, 1])
        images, crowds = _batch(alone, random, _CLOSE_UP_SIDE) if run.done < _CLOSE_UPS else _batch(drawn, random)
        with torch.autocast("cpu", torch.bfloat16):
            maps = network(images)
        score, box, keypoints = detection_losses([(a.float(), b.float(), c.float()) for a, b, c in maps], crowds)
        optimizer.zero_grad()
        (score + 2 * box + 8 * keypoints).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        run.log(score=score.detach(), box=box.detach(), keypoints=keypoints.detach())
    write_onnx(network, folder / FILE)
    store_half(folder / FILE)


def _batch(
    drawn: list[Crowd], random: np.random.Generator, side: int | None = None
) -> tuple[torch.Tensor, list[Crowd]]:
    """Pictures as the network sees them, and the faces in pixels of these canvases.

    All are of one size, without ``side`` one of production's, and the more of them the smaller they are: what teaches
    is faces, what costs is pixels.
    """
    if side is None:
        side = 640 if random.random() < 0.35 else DETECTION_SIZES[random.integers(len(DETECTION_SIZES))][0]
    count = min(12, 3 * 640**2 // side**2)
    crowds = [_fitted(_varied(drawn[i], random), side) for i in random.integers(len(drawn), size=count)]
    canvases = torch.from_numpy(np.stack([crowd.picture for crowd in crowds])).permute(0, 3, 1, 2)
    return (canvases.float() - 127.5) / 128, crowds


def _varied(crowd: Crowd, random: np.random.Generator) -> Crowd:
    """Randomly mirror, blur, add noise and change colours."""
    picture, boxes, keypoints = crowd.picture, crowd.boxes, crowd.keypoints
    if random.random() < 0.5:
        width = picture.shape[1]
        picture = picture[:, ::-1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
        keypoints = (keypoints * [-1, 1] + [width, 0])[:, [1, 0, 2, 4, 3]]  # left stays the viewer's left
    if random.random() < 0.25:
        picture = cv2.GaussianBlur(np.ascontiguousarray(picture), (0, 0), random.uniform(0.4, 1.3))
    values = picture.astype(np.float32)
    if random.random() < 0.5:
        values = (values - 127.5) * random.uniform(0.7, 1.2, 3) + 127.5 + random.normal(0, 12, 3)
    if random.random() < 0.25:
        values = values + random.normal(0, random.uniform(1, 10), values.shape)
    return Crowd(values.clip(0, 255).astype(np.uint8), boxes.astype(np.float32), keypoints.astype(np.float32))


def _fitted(crowd: Crowd, side: int) -> Crowd:
    """Scale a picture into the upper left of a black square, as the package's detector does."""
    height, width = crowd.picture.shape[:2]
    scale = side / max(height, width)
    canvas = np.zeros((side, side, 3), np.uint8)
    size = (int(width * scale), int(height * scale))
    canvas[: size[1], : size[0]] = cv2.resize(crowd.picture, size)
    return Crowd(canvas, crowd.boxes * np.float32(scale), crowd.keypoints * np.float32(scale))


def detection_losses(maps: Maps, crowds: list[Crowd]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the losses of scores, boxes and keypoints, each a mean over the anchors with a face.

    Scores learn how well their box lies (quality focal loss, Li et al. 2020), boxes the intersection over union,
    keypoints their distance in cells.
    """
    sums, count = [maps[0][0].new_zeros(()) for _ in range(3)], 0
    for stride, (score, box, keypoints) in zip(STRIDES, maps, strict=True):
        face, weight = _assigned(crowds, stride, score.shape[2:])
        target = torch.zeros_like(score)
        image, anchor, row, column = np.nonzero(face >= 0)
        if len(image):
            chosen = face[image, anchor, row, column]
            cell = np.stack([column, row], axis=1).astype(np.float32)
            boxes = np.concatenate([crowd.boxes for crowd in crowds])[chosen] / stride
            wanted = torch.from_numpy(np.concatenate([cell - boxes[:, :2], boxes[:, 2:] - cell], axis=1))
            points = np.concatenate([crowd.keypoints for crowd in crowds])[chosen] / stride - cell[:, None]
            grid = (len(crowds), len(ANCHORS), -1, *score.shape[2:])
            overlap = _overlap(box.reshape(grid)[image, anchor, :, row, column], wanted)
            error = keypoints.reshape(grid)[image, anchor, :, row, column] - torch.from_numpy(points).reshape(-1, 10)
            target[image, anchor, row, column] = overlap.detach().clamp(min=0)
            sums[1] = sums[1] + (1 - overlap).sum()
            sums[2] = sums[2] + F.smooth_l1_loss(error, torch.zeros_like(error), reduction="sum", beta=0.05) / 10
            count += len(image)
        focus = (target - score.sigmoid()).abs().square() * torch.from_numpy(weight)
        sums[0] = sums[0] + (focus * F.binary_cross_entropy_with_logits(score, target, reduction="none")).sum()
    score, box, keypoints = (part / max(count, len(crowds)) for part in sums)
    return score, box, keypoints


def _assigned(crowds: list[Crowd], stride: int, grid: torch.Size) -> tuple[np.ndarray, np.ndarray]:
    """``(N, A, H, W)`` each: the face, counted through all pictures, that an anchor stands for, or -1; and what the
    anchor's score weighs, which is nothing where a face is too small."""
    shape = (len(crowds), len(ANCHORS), *grid)
    face, weight = np.full(shape, -1, np.int64), np.full(shape, _CAUTION, np.float32)
    rows, columns = np.mgrid[: grid[0], : grid[1]]
    steps = np.log([size * s for s in STRIDES for size in ANCHORS])
    number = 0
    for image, crowd in enumerate(crowds):
        for left, top, right, bottom in crowd.boxes:
            size = math.sqrt((right - left) * (bottom - top))
            x, y = (left + right) / 2 / stride, (top + bottom) / 2 / stride
            near = (rows - y) ** 2 + (columns - x) ** 2 <= _RADIUS**2
            nearest = np.abs(steps - math.log(size)).argmin()
            for anchor, anchor_size in enumerate(ANCHORS):
                if size < _SMALLEST:
                    weight[image, anchor][near] = 0
                elif abs(math.log(anchor_size * stride / size)) <= math.log(_REACH) or nearest == (
                    STRIDES.index(stride) * len(ANCHORS) + anchor
                ):
                    face[image, anchor][near], weight[image, anchor][near] = number, 1
            number += 1
    return face, weight


def _overlap(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Generalised intersection over union (Rezatofighi et al. 2019) of boxes ``(n, 4)`` around the same points."""
    inside, outside = torch.minimum(found, wanted), torch.maximum(found, wanted)
    areas = [(box[:, 0] + box[:, 2]) * (box[:, 1] + box[:, 3]) for box in (found, wanted, inside, outside)]
    union = areas[0] + areas[1] - areas[2]
    return areas[2] / union - 1 + union / areas[3]
