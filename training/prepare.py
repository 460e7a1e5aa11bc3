"""What the diffusion networks read in place of pictures: latents and embeddings of all portraits."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch
from torch import Tensor

from training import autoencoder, recognizer
from training.data import Portraits

_PART = 500  # pictures


def prepare(folder: Path, processes: int = 2) -> None:
    """Write ``latents.pt``, ``(N, 4, 16, 16)``, and ``embeddings.pt``, ``(N, 512)``, where they are missing."""
    for name in ("embeddings", "latents"):
        path = folder / f"{name}.pt"
        if path.exists():
            continue
        count = len(Portraits.load(folder / "train").pictures)
        parts: list[Tensor] = []
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            jobs = [(folder, name, start) for start in range(0, count, _PART)]
            for part in pool.imap(_compute, jobs):
                parts.append(torch.from_numpy(part))
                if len(parts) % 10 == 0:
                    print(f"{name}: {len(parts) * _PART} of {count} pictures", flush=True)
        torch.save(torch.cat(parts), path)


def _compute(job: tuple[Path, str, int]):  # arrays cross processes by copy, tensors by file handle
    folder, name, start = job
    torch.set_num_threads(1)
    portraits = Portraits.load(folder / "train")
    pictures = portraits.pictures[start : start + _PART]
    if name == "embeddings":
        return recognizer.embed(recognizer.load(folder), pictures, portraits.keypoints[start : start + _PART]).numpy()
    return autoencoder.encode(autoencoder.load(folder), pictures).numpy()
