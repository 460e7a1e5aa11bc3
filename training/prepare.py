"""What the diffusion training begins with: the model pack, and latents, embeddings and keypoint pictures of all that
was drawn."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from fast_instantid import Cache, Face, FaceAnalyzer
from fast_instantid.faces import draw_keypoints
from training import autoencoder, recognizer
from training.data import Portraits
from training.half import store_half
from training.pairs import Pairs
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


def start_from(weights: Path, folder: Path, diffusion: bool = True) -> None:
    """Begin with the networks of a finished miniature, as if they had been trained in ``folder``.

    Args:
        diffusion: False leaves out the diffusion networks, which are then trained from nothing.
    """
    copies = {"antelopev2": "antelopev2", "base/vae": "autoencoder"}
    if diffusion:
        copies |= {"base": "start/base", "instantid": "start/instantid"}
    for source, target in copies.items():
        if not (folder / target).exists():
            shutil.copytree(weights / source, folder / target)


def prepare(folder: Path, processes: int = 2, device: str = "cpu") -> None:
    """Write what :class:`training.conditions.Conditions` reads, where it is missing: embeddings ``(N, 512)`` of all
    portraits, and latents and keypoint pictures of portraits and pairs.

    Args:
        device: of the VAE's encoder; on the CPU it works in ``processes``, as all the rest does.
    """
    with ExitStack() as stack:
        spread = map  # in this process
        if processes > 1:
            spread = stack.enter_context(multiprocessing.get_context("spawn").Pool(processes)).imap

        def in_processes(name: str, count: int) -> Iterator[np.ndarray]:
            return spread(_compute, [(folder, name, start) for start in range(0, count, _PART)])

        for kind in ("portrait", "pair"):
            path = folder / f"{kind}_controls.npy"
            if not path.exists():
                part, shape = path.with_suffix(".part"), _drawn(folder, kind).pictures.shape
                controls = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
                for i, pictures in enumerate(in_processes(path.stem, shape[0])):
                    controls[i * _PART : (i + 1) * _PART] = pictures
                controls.flush()
                part.rename(path)
                print(f"{path.stem}: {shape[0]}", flush=True)
        for name in ("portrait_embeddings", "portrait_latents", "pair_latents"):
            path = folder / f"{name}.pt"
            if not path.exists():
                count = len(_drawn(folder, name).pictures)
                if name.endswith("latents") and device != "cpu":
                    arrays = (_latents(folder, name, start, device) for start in range(0, count, _PART))
                else:
                    arrays = in_processes(name, count)
                torch.save(torch.from_numpy(np.concatenate(list(arrays))), path)
                print(f"{name}: {count}", flush=True)


def _drawn(folder: Path, name: str) -> Portraits | Pairs:
    return Pairs.load(folder / "pairs") if name.startswith("pair") else Portraits.load(folder / "train")


def _compute(job: tuple[Path, str, int]) -> np.ndarray:  # arrays cross processes by copy, tensors by file handle
    folder, name, start = job
    torch.set_num_threads(1)
    if name.endswith("latents"):
        return _latents(folder, name, start, "cpu")
    drawn = _drawn(folder, name)
    keypoints = drawn.keypoints[start : start + _PART]
    if name.endswith("controls"):
        size = drawn.pictures.shape[2:0:-1]
        return np.stack([draw_keypoints(size, *faces.reshape(-1, 5, 2)) for faces in keypoints])
    analyzer = FaceAnalyzer.load(folder / "antelopev2", device="cpu", cache=Cache(max_bytes=0))
    where = [Face(np.zeros(4, np.float32), np.array(points), 1.0) for points in keypoints]
    return analyzer.embed(list(drawn.pictures[start : start + _PART]), where)


def _latents(folder: Path, name: str, start: int, device: str) -> np.ndarray:
    vae = autoencoder.load(folder).to(device)
    return autoencoder.encode(vae, _drawn(folder, name).pictures[start : start + _PART]).cpu().numpy()
