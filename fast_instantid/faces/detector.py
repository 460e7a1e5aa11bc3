"""SCRFD: pictures in, boxes and five keypoints out (Guo et al. 2021, "Sample and Computation Redistribution").

The numbers are insightface's, step by step in the same precision, so that a face found here lies where it lies there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from numbers import Integral, Real

import numpy as np
import torch

from ..errors import BackendError, ModelFileError
from ..images import RGBImage
from ..placement import in_batches
from ..recorder import stage
from .onnx.graph import Graph
from .onnx.network import Network
from .pixels import resize

_MEAN, _SCALE = 127.5, 1 / 128
_LARGEST = 4096  # side in pixels
_OVERLAP = 0.4  # intersection over union above which the weaker of two candidates is dropped
# A 640 x 640 picture keeps a CPU busy, and its caches hold one better than several.
_BATCH_ON_CPU, _BATCH_ON_GPU = 1, 8
_MOST_FROM_GPU = 1024  # candidates of a picture, 64 KB; a face has about ten
_LAYOUTS = {9: ((8, 16, 32), 2), 15: ((8, 16, 32, 64, 128), 1)}
"""Number of outputs -> strides of the feature maps, anchors per cell. First come all scores, then boxes, keypoints."""


DETECTION_SIZES = tuple((side, side) for side in range(640, 128, -64))
"""``(width, height)``: 640, then 576 ... 192 for pictures in which nothing was found. A face that fills the frame shows
up only when small (cubiq/ComfyUI_InstantID, InstantID.py, ``extractFeatures``)."""


@dataclass(frozen=True)
class Detections:
    """The faces of one picture, by falling score, in pixels of that picture, all float32."""

    boxes: np.ndarray
    """``(n, 4)``: left, top, right, bottom."""
    keypoints: np.ndarray
    """``(n, 5, 2)``: left eye, right eye, nose, left and right corner of the mouth, as the viewer sees them."""
    scores: np.ndarray
    """``(n,)`` in 0..1."""


class Detector:
    """An SCRFD network with five keypoints, in either layout of its outputs.

    Args:
        graph: the network's file, which gives the layout of the outputs.
        threshold: score from which a candidate counts, above 0 and below 1.
        sizes: sides of the squares to search at in turn, each only where nothing was found before.

    Raises:
        BackendError: sizes that the network cannot run, or a threshold out of range.
        ModelFileError: the file declares a size that no detector has.
    """

    def __init__(
        self, network: Network, graph: Graph, threshold: float = 0.5, sizes: Sequence[int] | None = None
    ) -> None:
        if isinstance(threshold, bool) or not isinstance(threshold, Real) or not 0 < threshold < 1:
            raise BackendError(f"detection threshold {threshold!r}: expected a number above 0 and below 1, such as 0.5")
        self.network = network
        self.threshold = float(threshold)
        self.strides, self.anchors = _LAYOUTS[len(graph.outputs)]
        height, width = graph.inputs[0].shape[2:4]
        self._fixed_size = (width, height) if width and height else None
        self._path = graph.path
        if any(side % self.strides[-1] or side > _LARGEST for side in self._fixed_size or ()):
            raise ModelFileError(f"{graph.path}: a detector for {width} x {height} pixels, which cannot be right")
        self.sizes = DETECTION_SIZES if self._fixed_size is None else (self._fixed_size,)
        """``(width, height)`` to try in turn; one only, if the network was exported for one."""
        if sizes is None:
            return
        sides, stride = [*sizes], self.strides[-1]
        if self._fixed_size is not None:
            raise BackendError(f"detection sizes {sides}: this detector was exported for {self._fixed_size} alone")
        whole = all(isinstance(side, Integral) and 0 < side <= _LARGEST and side % stride == 0 for side in sides)
        if not sides or not whole:
            raise BackendError(
                f"detection sizes {sides}: expected multiples of {stride} up to {_LARGEST}, such as [320, 640]"
            )
        self.sizes = tuple((int(side), int(side)) for side in sides)

    @property
    def backend(self) -> str:
        """Backend and device of the network."""
        return self.network.backend

    def result_id(self, lasting: bool = True) -> str:
        """Identifies the results at a given size, as :meth:`.TorchNetwork.result_id`, threshold and overlap."""
        return f"{self.network.result_id(lasting)}/{self.threshold}/{_OVERLAP}"

    def detect(self, images: Sequence[RGBImage], size: tuple[int, int] = (640, 640)) -> list[Detections]:
        """Find faces in pictures of any size, a batch at a time.

        Args:
            images: ``(H, W, 3)`` uint8 RGB each.
            size: ``(width, height)`` that each picture is scaled into, multiples of the largest stride.

        Raises:
            ValueError: a size that the network cannot run.
        """
        size = self._fixed_size or size
        if any(not 0 < side <= _LARGEST or side % self.strides[-1] for side in size):
            raise ValueError(
                f"detection size {size}: both sides must be positive multiples of {self.strides[-1]} up to {_LARGEST}"
            )

        def detect(part: slice) -> list[Detections]:
            with stage("resize"):
                batch = [_fit(image, size, self.network.pixel_device) for image in images[part]]
            canvases = torch.stack([canvas for canvas, _ in batch])
            most = None if self.network.on_cpu else _MOST_FROM_GPU
            [found] = self.network.run(canvases, _MEAN, _SCALE, partial(self._candidates, size, len(batch), most))
            if most is not None and (found[:, -1, 0] >= self.threshold).any():  # there may be more
                [found] = self.network.run(canvases, _MEAN, _SCALE, partial(self._candidates, size, len(batch), None))
            return [self._decode(rows, size, scale) for rows, (_, scale) in zip(found, batch, strict=True)]

        return in_batches(len(images), _BATCH_ON_CPU if self.network.on_cpu else _BATCH_ON_GPU, detect)

    def _candidates(
        self, size: tuple[int, int], batch: int, most: int | None, outputs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """``(N, anchors, 16)``: score, box and keypoints as the network gives them, and the anchor's number.

        Args:
            most: keep the anchors with the highest scores, and only so many.
        """
        levels = []
        for level, stride in enumerate(self.strides):
            parts = [self._by_image(output, batch) for output in outputs[level :: len(self.strides)]]
            cells = size[0] // stride * (size[1] // stride) * self.anchors
            if [part.shape[1:] for part in parts] != [(cells, 1), (cells, 4), (cells, 10)]:
                shapes = ", ".join(str(tuple(part.shape[1:])) for part in parts)
                raise ModelFileError(f"{self._path}: its outputs {shapes} are no faces")
            levels.append(torch.cat(parts, dim=2))
        rows = torch.cat(levels, dim=1)
        numbers = torch.arange(rows.shape[1], dtype=torch.float32, device=rows.device)  # exact below 2 ** 24
        rows = torch.cat([rows, numbers.expand(batch, -1).unsqueeze(2)], dim=2)
        if most is None or rows.shape[1] <= most:
            return [rows]
        best = rows[..., 0].topk(most).indices
        return [rows.gather(1, best.unsqueeze(2).expand(-1, -1, rows.shape[2]))]

    def _by_image(self, output: torch.Tensor, batch: int) -> torch.Tensor:
        """``(N, cells * anchors, k)`` from either layout.

        The export of 2021, which antelopev2 ships, interleaves the pictures of a batch: its row is
        ``(cell * N + image) * anchors + anchor``.
        """
        if (
            output.ndim not in (2, 3)
            or not output.numel()
            or output.numel() % (batch * self.anchors * output.shape[-1])
        ):
            raise ModelFileError(f"{self._path}: a detector whose output has the shape {tuple(output.shape)}")
        if output.ndim == 3:
            return output.reshape(batch, -1, output.shape[-1])
        rows = output.reshape(-1, batch, self.anchors, output.shape[-1])
        return rows.permute(1, 0, 2, 3).reshape(batch, -1, output.shape[-1])

    def _decode(self, rows: np.ndarray, size: tuple[int, int], scale: float) -> Detections:
        """Candidates ``(n, 16)`` above the threshold, from distances in cells to pixels, without overlaps."""
        rows = rows[rows[:, 0] >= self.threshold]
        rows = rows[np.lexsort((rows[:, 15], -rows[:, 0]))]
        anchors = _anchors(size, self.strides, self.anchors)[rows[:, 15].astype(int)]
        centers, stride = anchors[:, :2], anchors[:, 2:]
        distances = rows[:, 1:5] * stride
        boxes = np.concatenate([centers - distances[:, :2], centers + distances[:, 2:]], axis=1) / scale
        keypoints = (centers[:, None] + (rows[:, 5:15] * stride).reshape(-1, 5, 2)) / scale
        keep = _without_overlaps(boxes)
        return Detections(boxes[keep], keypoints[keep], rows[keep, 0])


def _fit(image: RGBImage, size: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, float]:
    """Scale a picture into the upper left of a black canvas; return the canvas and the factor."""
    (height, width), (canvas_width, canvas_height) = image.shape[:2], size
    if height / width > canvas_height / canvas_width:
        new_height, new_width = canvas_height, int(canvas_height / (height / width))
    else:
        new_width, new_height = canvas_width, int(canvas_width * (height / width))
    canvas = torch.zeros((canvas_height, canvas_width, 3), dtype=torch.uint8, device=device)
    if new_width and new_height:  # else the picture is too thin to hold a face
        canvas[:new_height, :new_width] = resize(image, (new_width, new_height), device)
    return canvas, max(new_height, 1) / height


@lru_cache(maxsize=16)
def _anchors(size: tuple[int, int], strides: tuple[int, ...], anchors: int) -> np.ndarray:
    """``(n, 3)`` float32: x and y of each anchor of all levels in pixels of the canvas, and its stride."""
    levels = []
    for stride in strides:
        y, x = np.mgrid[: size[1] // stride, : size[0] // stride].reshape(2, -1) * stride
        levels.append(np.repeat(np.stack([x, y, np.full_like(x, stride)], axis=1), anchors, axis=0))
    return np.concatenate(levels).astype(np.float32)


def _without_overlaps(boxes: np.ndarray) -> list[int]:
    """Greedy non-maximum suppression over boxes sorted by falling score; widths count both edge pixels."""
    left, top, right, bottom = boxes.T
    areas = (right - left + 1) * (bottom - top + 1)
    keep: list[int] = []
    rest = np.arange(len(boxes))
    while rest.size:
        best, rest = rest[0], rest[1:]
        keep.append(int(best))
        width = np.minimum(right[best], right[rest]) - np.maximum(left[best], left[rest]) + 1
        height = np.minimum(bottom[best], bottom[rest]) - np.maximum(top[best], top[rest]) + 1
        shared = np.maximum(0.0, width) * np.maximum(0.0, height)
        rest = rest[shared / (areas[best] + areas[rest] - shared) <= _OVERLAP]
    return keep
