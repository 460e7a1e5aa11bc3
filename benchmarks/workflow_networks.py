"""Networks of the real sizes with random weights, in the places where a user of ComfyUI has the published ones."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import compose, helper, numpy_helper

from benchmarks.workflow_host import ADAPTER, LAYERS, TOKEN_WIDTH
from examples.tiny_faces import (
    IRESNET_100,
    SCRFD_10G,
    write_iresnet,
    write_landmark_net,
    write_scrfd,
    write_skin_detector,
)
from fast_instantid.identity.resampler import Resampler


def write_models(base: Path, adapter: str = ADAPTER, channels: int = 320) -> None:
    """Fill ``base/models``. Files that are there already stay: they are always the same.

    Args:
        adapter: name of its file.
        channels: of the first level of the UNet that the adapter is for; 320 is SDXL's.
    """
    faces = base / "models" / "insightface" / "models" / "antelopev2"
    writers: dict[Path, Callable[[Path], object]] = {
        base / "models" / "instantid" / adapter: partial(write_adapter, channels=channels),
        faces / "scrfd_10g_bnkps.onnx": write_detector,
        faces / "glintr100.onnx": partial(write_iresnet, **IRESNET_100),
        faces / "1k3d68.onnx": partial(write_landmark_net, numbers=3309),
        faces / "2d106det.onnx": partial(write_landmark_net, numbers=212, width=12),
        faces / "genderage.onnx": partial(write_landmark_net, numbers=3, width=6, size=96),
    }
    for path, write in writers.items():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".unfinished")
            write(unfinished)
            unfinished.rename(path)


def write_adapter(path: Path, channels: int = 320) -> None:
    """InstantID's ``ip-adapter.bin``: 423 million numbers, fp32 as published, 1.69 GB; less for a narrower UNet."""
    torch.manual_seed(0)
    resampler = Resampler(
        dim=1280,
        depth=4,
        inner_dim=1280,
        feed_forward_dim=5120,
        num_queries=16,
        embedding_dim=512,
        output_dim=TOKEN_WIDTH,
    )
    projections = {
        f"{2 * i + 1}.to_{part}_ip.weight": torch.randn(width * channels // 320, TOKEN_WIDTH) / TOKEN_WIDTH**0.5
        for i, width in enumerate(LAYERS.values())
        for part in "kv"
    }
    torch.save({"image_proj": resampler.state_dict(), "ip_adapter": projections}, path)


def write_detector(path: Path) -> None:
    """A detector that does the work of SCRFD-10G and sees real faces.

    With random weights SCRFD sees faces anywhere. So it runs, and its outputs are added, too small to count, to those
    of a small detector that takes blobs of the colour of skin for faces.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = onnx.load(write_scrfd(Path(folder) / "work.onnx", **SCRFD_10G))
        answer = onnx.load(write_skin_detector(Path(folder) / "answer.onnx"))
    outputs = [output.name for output in answer.graph.output]
    [image] = [value.name for value in answer.graph.input]
    work, answer = (compose.add_prefix(model, prefix) for model, prefix in ((work, "work/"), (answer, "answer/")))
    for model, prefix in ((work, "work/"), (answer, "answer/")):
        for node in model.graph.node:
            node.input[:] = [image if name == prefix + image else name for name in node.input]
    join = [
        node
        for name in outputs
        for node in (
            helper.make_node("Mul", [f"work/{name}", "tiny"], [f"tiny/{name}"]),
            helper.make_node("Add", [f"answer/{name}", f"tiny/{name}"], [name]),
        )
    ]
    graph = answer.graph
    graph.node.extend([*work.graph.node, *join])
    graph.initializer.extend([*work.graph.initializer, numpy_helper.from_array(np.float32(1e-30), "tiny")])
    graph.input[0].name = image
    for output, name in zip(graph.output, outputs, strict=True):
        output.name = name
    onnx.checker.check_model(answer)
    onnx.save(answer, str(path))
