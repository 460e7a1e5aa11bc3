"""What the diffusion training begins with: the model pack, and latents and embeddings of all portraits."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fast_instantid import Cache, Face, FaceAnalyzer
from training import autoencoder, recognizer
from training.data import Portraits
from training.half import store_half
from training.recognizer_export import write_onnx

_PART = 500  # pictures


def make_pack(folder: Path) -> None:
    """Write ``antelopev2/`` from the trained detector and recogniser, weights at half precision."""
    pack = folder / "antelopev2"
    if not pack.exists():
        part = folder / "antelopev2.part"
        part.mkdir(exist_ok=True)
        shutil.copyfile(folder / "scrfd_10g_bnkps.onnx", part / "scrfd_10g_bnkps.onnx")
        write_onnx(recognizer.load(folder), part / "glintr100.onnx")
        for path in part.glob("*.onnx"):
            store_half(path)
        part.rename(pack)


def start_from(weights: Path, folder: Path) -> None:
    """Begin with the networks of a finished miniature, as if they had been trained in ``folder``."""
    for source, target in (("antelopev2", "antelopev2"), ("base/vae", "autoencoder"), ("base", "start/base"),
                           ("instantid", "start/instantid")):  # fmt: skip
        if not (folder / target).exists():
            shutil.copytree(weights / source, folder / target)


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
        analyzer = FaceAnalyzer.load(folder / "antelopev2", device="cpu", cache=Cache(max_bytes=0))
        where = [
            Face(np.zeros(4, np.float32), np.array(points), 1.0)
            for points in portraits.keypoints[start : start + _PART]
        ]
        return analyzer.embed(list(pictures), where)
    return autoencoder.encode(autoencoder.load(folder), pictures).numpy()
