"""ArcFace: aligned crops in, embeddings out (Deng et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..images import RGBImage
from .onnx.graph import Graph
from .onnx.network import Network

# One by one on the CPU: a batch is somewhat faster, but changes the last bits of an embedding with the other faces in
# the batch, so a picture would depend on earlier ones.
_BATCH_ON_CPU, _BATCH_ON_GPU = 1, 32


class Recognizer:
    """An ArcFace network of any family; ``graph`` is its file, which tells how to scale the pictures."""

    def __init__(self, network: Network, graph: Graph) -> None:
        self.network = network
        # Networks exported from MXNet start with a subtraction and a multiplication of their own.
        normalises_itself = {"Sub", "Mul"} <= {node.op for node in graph.nodes[:8]}
        self._mean, self._scale = (0.0, 1.0) if normalises_itself else (127.5, 1 / 127.5)

    @property
    def result_id(self) -> str:
        """Identifies the results of equal crops: network, backend and dtype."""
        return self.network.result_id

    def embed(self, crops: Sequence[RGBImage]) -> np.ndarray:
        """``(N, 512)`` float32 embeddings, not normalised, of N crops ``(112, 112, 3)`` uint8 RGB."""
        at_once = _BATCH_ON_CPU if self.network.on_cpu else _BATCH_ON_GPU
        batches = [np.stack(crops[start : start + at_once]) for start in range(0, len(crops), at_once)]
        return np.concatenate([self.network.run(batch, self._mean, self._scale)[0] for batch in batches])
