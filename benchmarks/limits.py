"""The limit: the networks that a job can't do without, with nothing around them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fast_instantid.faces import find_pack
from fast_instantid.faces.onnx.network import load_network

_DETECTOR_SIDE, _RECOGNISER_SIDE = 640, 112


class BareFaceNetworks:
    """Detector and recogniser, once for each picture, fed with 8-bit pictures of the sizes that they work at.

    Nobody looks at what they return. Where batches pay, which is on a GPU, all pictures are one batch.
    """

    def __init__(self, pack: Path, backend: str = "torch", device: str = "cpu") -> None:
        found = find_pack(pack)
        graphs = {_DETECTOR_SIDE: found.detector, _RECOGNISER_SIDE: found.recognizer}
        self._networks = {side: load_network(graph, backend, device) for side, graph in graphs.items()}
        self._noise = np.random.default_rng(0)

    def run(self, pictures: int = 1) -> None:
        for side, network in self._networks.items():
            batch = self._noise.integers(256, size=(pictures, side, side, 3), dtype=np.uint8)
            for part in np.split(batch, pictures) if network.on_cpu else [batch]:
                network.run(part, 127.5, 1 / 127.5)
