"""Face networks to test, demonstrate and time with, as ONNX files in the layouts that insightface's packs have.

They know no person: the recognisers and :func:`write_scrfd` have random weights, and :func:`write_skin_detector`
reacts to skin-coloured blobs. They are written node by node with the onnx package, independently of the code that reads
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.onnx_writer import OnnxWriter

STRIDES = (8, 16, 32)
SCRFD_10G = {"stem": 28, "widths": (56, 88, 88, 224), "blocks": (3, 4, 2, 3), "neck": 56, "head": 80}
"""Arguments of :func:`write_scrfd` for the size of antelopev2's detector (insightface, detection/scrfd/configs)."""
IRESNET_100 = {"widths": (64, 128, 256, 512), "blocks": (3, 13, 30, 3)}
"""Arguments of :func:`write_iresnet` for the size of antelopev2's recogniser, 65 million parameters."""


def write_tiny_pack(folder: str | Path, seed: int = 0) -> Path:
    """A pack of the blob detector and a small random recogniser, under antelopev2's file names; return the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_skin_detector(folder / "scrfd_10g_bnkps.onnx")
    write_iresnet(folder / "glintr100.onnx", seed=seed)
    return folder


def write_iresnet(
    path: str | Path, widths: Sequence[int] = (8, 16, 24, 32), blocks: Sequence[int] = (1, 2, 2, 1), seed: int = 0
) -> Path:
    """A random ArcFace recogniser of the IResNet family (Deng et al. 2019; insightface, arcface_torch/iresnet.py)."""
    net = OnnxWriter(seed)
    x = net.prelu(net.norm(net.conv("images", 3, widths[0]), widths[0]), widths[0])
    channels = widths[0]
    for width, count in zip(widths, blocks, strict=True):
        for i in range(count):
            stride = 2 if i == 0 else 1
            y = net.norm(net.conv(net.norm(x, channels), channels, width), width)
            y = net.norm(net.conv(net.prelu(y, width), width, width, stride=stride), width, gain=0.2)
            if i == 0:
                x = net.norm(net.conv(x, channels, width, kernel=1, stride=stride), width)
            x = net.op("Add", [x, y])
            channels = width
    flat = net.op("Flatten", [net.norm(x, channels)], axis=1)
    net.norm(net.linear(flat, channels * 7 * 7, 512), 512, output="embedding")
    return net.save(path, [None, 3, 112, 112], {"embedding": [None, 512]})


def write_mobile_face_net(path: str | Path, seed: int = 0) -> Path:
    """A random recogniser of the MobileFaceNet family (Chen et al. 2018): depthwise convolutions in bottlenecks."""
    net = OnnxWriter(seed)
    x = net.prelu(net.norm(net.conv("images", 3, 8, stride=2), 8), 8)
    x, channels = net.prelu(net.norm(net.conv(x, 8, 8, groups=8), 8), 8), 8
    for width, repeats in ((8, 2), (16, 2), (16, 1)):
        for i in range(repeats):
            inner = 2 * width
            y = net.prelu(net.norm(net.conv(x, channels, inner, kernel=1), inner), inner)
            y = net.prelu(net.norm(net.conv(y, inner, inner, stride=2 if i == 0 else 1, groups=inner), inner), inner)
            y = net.norm(net.conv(y, inner, width, kernel=1), width)
            x, channels = y if i == 0 else net.op("Add", [x, y]), width
    x = net.conv(x, 16, 16, kernel=7, groups=16, padding=0)
    net.linear(net.op("Flatten", [x], axis=1), 16, 512, output="embedding")
    return net.save(path, [None, 3, 112, 112], {"embedding": [1, 512]})


def write_scrfd(
    path: str | Path,
    *,
    stem: int = 4,
    widths: Sequence[int] = (8, 8, 12, 16),
    blocks: Sequence[int] = (1, 1, 1, 1),
    neck: int = 8,
    head: int = 8,
    batched: bool = False,
    seed: int = 0,
) -> Path:
    """A random SCRFD: residual backbone, path aggregation neck, one head for three levels (Guo et al. 2021).

    Args:
        batched: False for the export of 2021, ``[rows, k]`` with the pictures of a batch interleaved, as in antelopev2;
            True for the later one, ``[batch, rows, k]``.
    """
    net = OnnxWriter(seed)
    x = net.relu(net.conv("images", 3, stem, stride=2))
    x = net.relu(net.conv(net.relu(net.conv(x, stem, stem)), stem, 2 * stem))
    x = net.op("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    channels, levels = 2 * stem, []
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for i in range(count):
            stride = 2 if i == 0 and stage > 0 else 1
            y = net.conv(net.relu(net.conv(x, channels, width, stride=stride)), width, width, gain=0.3)
            if stride == 2:
                x = net.op("AveragePool", [x], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
            if channels != width:
                x = net.conv(x, channels, width, kernel=1, gain=0.7)
            x, channels = net.relu(net.op("Add", [x, y])), width
        levels.append(x)
    sizes = zip(levels[1:], widths[1:], strict=True)
    laterals = [net.conv(level, width, neck, kernel=1, gain=0.5) for level, width in sizes]
    for i in (2, 1):  # top down
        laterals[i - 1] = net.op("Add", [laterals[i - 1], net.upsample_to(laterals[i], laterals[i - 1])])
    laterals = [net.conv(lateral, neck, neck, gain=0.7) for lateral in laterals]
    for i in (1, 2):  # bottom up
        laterals[i] = net.op("Add", [laterals[i], net.conv(laterals[i - 1], neck, neck, stride=2, gain=0.5)])
    features = [net.conv(lateral, neck, neck, gain=0.7) if i else lateral for i, lateral in enumerate(laterals)]
    for level, feature in enumerate(features):
        for i in range(3):
            feature = net.relu(net.conv(feature, neck if i == 0 else head, head))
        _add_output(net, net.conv(feature, head, 2, gain=6.0, bias=-3.0), level, 0, batched)  # few candidates
        _add_output(net, net.conv(feature, head, 8, gain=0.3, bias=2.5), level, 1, batched)  # boxes of positive size
        _add_output(net, net.conv(feature, head, 20, gain=1.0), level, 2, batched)
    return net.save(path, [1, 3, None, None], _detector_outputs(batched))


def write_skin_detector(path: str | Path, batched: bool = False) -> Path:
    """A detector made by hand, with SCRFD's inputs and outputs: it takes upright blobs of the colour of skin for faces.

    Colour turns into a map of skin, the map is averaged down to strides 8, 16 and 32, and a cell scores by how much
    more skin there is in a face-sized ellipse around it than just outside. The box and the keypoints are those of an
    average face of that size.
    """
    net = OnnxWriter(seed=0)
    # Pixels arrive as (value - 127.5) / 128. Skin is red over green over blue by so much and no more, and not dark.
    violations = [
        [[-1, 1, 0], 0.14],
        [[1, -1, 0], -0.45],
        [[0, -1, 1], 0.06],
        [[0, 1, -1], -0.40],
        [[-1, 0, 0], 0.0],
    ]
    skin = net.relu(net.fixed_conv(net.relu(net.fixed_conv("images", violations)), [[[-8] * 5, 1]]))  # 0..1
    for _ in range(3):
        skin = net.op("AveragePool", [skin], kernel_shape=[2, 2], strides=[2, 2])
    for level in range(3):
        _add_output(net, _blob_scores(net, skin), level, 0, batched)
        for part, values in ((1, _AVERAGE_BOX), (2, _AVERAGE_KEYPOINTS)):
            constant = _constant_map(net, skin, np.concatenate([values, 1.3 * values]))
            _add_output(net, constant, level, part, batched)
        skin = net.op("AveragePool", [skin], kernel_shape=[2, 2], strides=[2, 2])
    return net.save(path, [1, 3, None, None], _detector_outputs(batched))


# An average face around the cell at its middle, in cells: distances to left, top, right, bottom; five keypoints.
_AVERAGE_BOX = np.array([2.2, 2.9, 2.2, 2.9], np.float32)
_AVERAGE_KEYPOINTS = np.array([-0.95, -0.6, 0.95, -0.6, 0, 0.5, -0.8, 1.45, 0.8, 1.45], np.float32)


def _detector_outputs(batched: bool) -> dict[str, list[int | str | None]]:
    lead: list[int | str | None] = [1, "rows"] if batched else ["rows"]
    return {f"out{part}_{level}": [*lead, k] for part, k in enumerate((1, 4, 10)) for level in range(len(STRIDES))}


def _add_output(net: OnnxWriter, x: str, level: int, part: int, batched: bool) -> None:
    k = (1, 4, 10)[part]
    rows = net.op("Transpose", [x], perm=[0, 2, 3, 1] if batched else [2, 3, 0, 1])
    output = f"out{part}_{level}"
    if batched:
        batch = net.op("Gather", [net.op("Shape", [x]), net.const(np.int64(0))], axis=0)
        rest = net.const(np.array([-1, k], np.int64))
        shape = net.op("Concat", [net.op("Unsqueeze", [batch], axes=[0]), rest], axis=0)
    else:
        shape = net.const(np.array([-1, k], np.int64))
    flat = net.op("Reshape", [rows, shape], output=None if part == 0 else output)
    if part == 0:
        net.op("Sigmoid", [flat], output=output)


def _blob_scores(net: OnnxWriter, skin: str) -> str:
    """Two anchors, for faces about five and six cells high: mean inside an ellipse minus mean around it."""
    y, x = np.mgrid[-5:6, -5:6].astype(np.float32)
    kernels = []
    for size in (1.0, 1.3):
        radius = np.hypot(x / (2.3 * size), y / (2.9 * size))
        inside, around = radius <= 1, (radius > 1.15) & (radius <= 1.6)
        kernels.append(inside / inside.sum() - 0.7 * around / around.sum())
    weight = net.const(20 * np.stack(kernels)[:, None].astype(np.float32))
    bias = net.const(np.full(2, -13.6, np.float32))
    return net.op("Conv", [skin, weight, bias], kernel_shape=[11, 11], pads=[5] * 4)


def _constant_map(net: OnnxWriter, like: str, values: np.ndarray) -> str:
    """The same values in every cell."""
    zeros = net.const(np.zeros((len(values), 1, 1, 1), np.float32))
    return net.op("Conv", [like, zeros, net.const(values.astype(np.float32))])


def write_landmark_net(path: str | Path, numbers: int, width: int = 64, size: int = 192, seed: int = 0) -> Path:
    """A residual network of bottlenecks (He et al. 2015, ResNet-50) that reads a crop and returns ``numbers`` values.

    It stands in for the networks of a pack that this project never opens: with its defaults for the 3D landmarks, with
    less width for the 2D landmarks and the gender net.
    """
    net = OnnxWriter(seed)
    x = net.relu(net.norm(net.conv("data", 3, width, kernel=7, stride=2), width))
    x = net.op("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = width
    for stage, count in enumerate((3, 4, 6, 3)):
        inner, outer = width << stage, 4 * width << stage
        for i in range(count):
            stride = 2 if i == 0 and stage > 0 else 1
            y = net.relu(net.norm(net.conv(x, channels, inner, kernel=1), inner))
            y = net.relu(net.norm(net.conv(y, inner, inner, stride=stride), inner))
            y = net.norm(net.conv(y, inner, outer, kernel=1), outer, gain=0.2)
            if i == 0:
                x = net.norm(net.conv(x, channels, outer, kernel=1, stride=stride), outer)
            x, channels = net.relu(net.op("Add", [x, y])), outer
    net.linear(net.op("Flatten", [net.op("GlobalAveragePool", [x])], axis=1), channels, numbers, output="fc1")
    return net.save(path, [None, 3, size, size], {"fc1": [1, numbers]}, name="data")
