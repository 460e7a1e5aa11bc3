"""ArcFace: aligned crops in, embeddings out (Deng et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import BackendError
from ..placement import in_batches
from .onnx.graph import Graph
from .onnx.network import Network

# One by one on the CPU: a batch is somewhat faster, but changes the last bits of an embedding with the other faces in
# the batch, so a picture would depend on earlier ones.
_BATCH_ON_CPU, BATCH_ON_GPU = 1, 32

EMBEDDING_DIM = 512
"""Length of an embedding of ArcFace; InstantID reads no other."""


class Recognizer:
    """An ArcFace network of any family; ``graph`` is its file, which tells how to scale the pictures."""

    def __init__(self, network: Network, graph: Graph) -> None:
        self.network = network
        self.graph = graph
        self.file: Path | None = graph.path
        self._mean, self._scale = (0.0, 1.0) if graph.scales_itself else (127.5, 1 / 127.5)

    def result_id(self, lasting: bool = True) -> str:
        """Identifies the results of equal crops, as :meth:`.TorchNetwork.result_id`."""
        return self.network.result_id(lasting)

    def embed(self, crops: Sequence[torch.Tensor]) -> np.ndarray:
        """``(N, 512)`` float32 embeddings, not normalised, of N crops ``(112, 112, 3)`` uint8 RGB of one device."""
        at_once = _BATCH_ON_CPU if self.network.on_cpu else BATCH_ON_GPU
        run = self.network.run
        rows = in_batches(
            len(crops), at_once, lambda part: [*run(torch.stack([*crops[part]]), self._mean, self._scale)[0]]
        )
        return checked_embeddings(rows, len(crops), self.network.backend)


def checked_embeddings(rows: Sequence[np.ndarray], count: int, source: str) -> np.ndarray:
    """``(count, 512)`` float32 of one row for each face; a BackendError for others, and for NaN or infinity."""
    widths = {row.size for row in rows}
    if len(rows) != count or widths - {EMBEDDING_DIM}:
        raise BackendError(
            f"the recogniser of {source} made {len(rows)} embeddings of {sorted(widths)} numbers for {count} faces: "
            f"InstantID needs {EMBEDDING_DIM} for each, as antelopev2's glintr100.onnx makes them"
        )
    embeddings = np.stack([np.asarray(row, np.float32).reshape(-1) for row in rows])
    if not np.isfinite(embeddings).all():
        raise BackendError(f"the recogniser of {source} made an embedding with NaN or infinity: use another file of it")
    return embeddings
