"""Networks of the published sizes with random weights, as files and in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.sizes import EMBEDDING_DIM, IDENTITY_TOKENS, SIZES, Size
from fast_instantid import Cache
from fast_instantid.faces import find_pack
from fast_instantid.faces.onnx.network import _exact_float32, load_network
from fast_instantid.identity import Adapter
from fast_instantid.identity.checkpoint import AdapterWeights
from fast_instantid.identity.resampler import Resampler
from fast_instantid.placement import Placement
from fast_instantid.weights import FileVersion

ADAPTER = "ip-adapter.bin"
FACES = Path("models", "insightface", "models", "antelopev2")
_DETECTOR_SIDE, _RECOGNISER_SIDE = 640, 112
_SCALING = 127.5, 1 / 127.5


def write_models(base: Path, adapter: str = ADAPTER, size: Size = SIZES["full"]) -> None:
    """Fill ``base/models`` as a user of ComfyUI has it. Files that are there stay: they are always the same.

    Args:
        adapter: name of its file; 1.69 GB for the full size.
    """
    _write_missing({base / "models" / "instantid" / adapter: partial(write_adapter, size=size)})
    from examples.seeing_detector import write_seeing_detector

    write_faces(base / FACES, write_seeing_detector)


def write_faces(folder: Path, detector: Callable[[Path], object]) -> None:
    """Write the five networks of antelopev2: detector, recogniser, and stand-ins of similar cost for the others."""
    from examples.tiny_faces import IRESNET_100, write_iresnet, write_landmark_net

    _write_missing(
        {
            folder / "scrfd_10g_bnkps.onnx": detector,
            folder / "glintr100.onnx": partial(write_iresnet, **IRESNET_100),
            folder / "1k3d68.onnx": partial(write_landmark_net, numbers=3309),
            folder / "2d106det.onnx": partial(write_landmark_net, numbers=212, width=12),
            folder / "genderage.onnx": partial(write_landmark_net, numbers=3, width=6, size=96),
        }
    )


def _write_missing(writers: dict[Path, Callable[[Path], object]]) -> None:
    for path, write in writers.items():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".unfinished")
            write(unfinished)
            unfinished.rename(path)


def write_adapter(path: Path, size: Size = SIZES["full"]) -> None:
    """InstantID's ``ip-adapter.bin`` in fp32: 423 million numbers at full size."""
    generator = torch.Generator().manual_seed(0)
    torch.save(
        random_adapter(size, lambda *shape, gain=1.0: torch.empty(shape).normal_(0, gain, generator=generator)), path
    )


def random_adapter(size: Size, random: Callable[..., Tensor]) -> dict[str, dict[str, Tensor]]:
    """The weights of an adapter, as ``ip-adapter.bin`` holds them.

    Args:
        random: ``random(*shape, gain=1.0)`` makes normal numbers.
    """
    with torch.device("meta"):
        resampler = Resampler(
            dim=size.resampler_dim,
            depth=4,
            inner_dim=1280,
            feed_forward_dim=4 * size.resampler_dim,
            num_queries=IDENTITY_TOKENS,
            embedding_dim=EMBEDDING_DIM,
            output_dim=size.token_width,
        )
    image_proj: dict[str, Tensor] = {}
    for name, tensor in resampler.state_dict().items():
        if tensor.ndim > 1:
            image_proj[name] = random(*tensor.shape, gain=tensor.shape[-1] ** -0.5)
        else:
            image_proj[name] = random(*tensor.shape, gain=0.1) + float(name.endswith("weight"))
    projections = {
        f"{2 * i + 1}.to_{part}_ip.weight": random(channels, size.token_width, gain=size.token_width**-0.5)
        for i, channels in enumerate(size.layer_channels)
        for part in "kv"
    }
    return {"image_proj": image_proj, "ip_adapter": projections}


def as_our_adapter(weights: dict[str, dict[str, Tensor]], device: torch.device, dtype: torch.dtype) -> Adapter:
    """Our Adapter on weights that lie in memory."""
    projections = [*weights["ip_adapter"].values()]
    layers = tuple(zip(projections[::2], projections[1::2], strict=True))
    resampler = Resampler.from_state_dict(weights["image_proj"])
    version = FileVersion("random", 0, 0, 0, 0, 0)
    found = AdapterWeights(Path("random"), weights["image_proj"], layers, version, resampler)
    return Adapter(found, Placement.resolve(device, dtype), Cache())


class BareFaceNetworks:
    """Detector and recogniser alone, once for each picture, on random 8-bit pictures of the size they work at.

    On a GPU, where batches pay, all pictures are one batch.
    """

    def __init__(
        self, pack: Path, backend: str = "torch", device: str = "cpu", dtype: str | torch.dtype = torch.float32
    ) -> None:
        found = find_pack(pack)
        graphs: dict[int, Any] = {_DETECTOR_SIDE: found.detector, _RECOGNISER_SIDE: found.recognizer}
        self._networks = {side: load_network(graph, backend, device, dtype) for side, graph in graphs.items()}
        self._noise = np.random.default_rng(0)

    def run(self, pictures: int = 1) -> None:
        for side, network in self._networks.items():
            batch = self._noise.integers(256, size=(pictures, side, side, 3), dtype=np.uint8)
            for part in np.split(batch, pictures) if network.on_cpu else [batch]:
                self._run(network, torch.from_numpy(part))

    def _run(self, network: Any, images: Tensor) -> None:
        network.run(images, *_SCALING)


class GraphedFaceNetworks(BareFaceNetworks):
    """The same as CUDA graphs, one for each network and number of pictures."""

    def _run(self, network: Any, images: Tensor) -> None:
        graphs = vars(self).setdefault("_graphs", {})
        if images.shape not in graphs:
            graphs[images.shape] = self._captured(network, images.shape)
        replay, given, made = graphs[images.shape]
        given.copy_(images)
        replay()
        made.cpu()

    def _captured(self, network: Any, shape: torch.Size) -> tuple[Callable[[], None], Tensor, Tensor]:
        given = torch.zeros(shape, dtype=torch.uint8, device=network.device)
        mean, scale = _SCALING

        def work() -> Tensor:
            batch = given.permute(0, 3, 1, 2).float().sub_(mean).mul_(scale).to(network.dtype)
            return torch.cat([output.float().reshape(-1) for output in network.module(batch)])

        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), _exact_float32(network.device):
            work()  # libraries choose their kernels before the capture
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                made = work()
        return graph.replay, given, made
