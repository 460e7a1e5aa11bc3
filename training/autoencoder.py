"""The VAE: pictures of 128 x 128 pixels to latents of 4 x 16 x 16 and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from training.data import Portraits, batches
from training.networks import SCALING_FACTOR, autoencoder
from training.run import Run
from training.world import SIZE

_CROP, _BATCH = 64, 8
_KL_WEIGHT = 1e-4


def load(folder: Path) -> AutoencoderKL:
    """Return the VAE of :func:`train`, with the decoder of :func:`refine` if there is one."""
    return AutoencoderKL.from_pretrained(folder / "autoencoder").to(memory_format=torch.channels_last).eval()


def train(folder: Path, portraits: Portraits, steps: int = 3600) -> None:
    """Train on crops around faces, then normalise the latents. An interrupted training resumes."""
    if (folder / "autoencoder" / "config.json").exists():
        return
    torch.manual_seed(0)
    vae = autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), 2e-3, (0.9, 0.98), weight_decay=1e-4)
    run = Run(folder / "autoencoder.pt", steps, {"vae": vae, "optimizer": optimizer})
    random = np.random.default_rng(run.step)
    indices = batches(random, len(portraits.pictures), _BATCH)
    for _ in run:
        pictures = _crops(portraits, next(indices), random)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pictures).latent_dist
            drawn = vae.decode(posterior.sample()).sample
        pixels, kl = reconstruction_loss(drawn.float(), pictures), posterior.kl().mean() / posterior.mean[0].numel()
        loss = pixels + _KL_WEIGHT * kl
        run.anneal(optimizer, 2e-3)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        run.log(loss=pixels, kl=kl, psnr=psnr(drawn.float(), pictures))
    normalise_latents(vae, portraits)
    vae.save_pretrained(folder / "autoencoder")


def refine(folder: Path, portraits: Portraits, steps: int = 2000, device: str = "cpu") -> None:
    """Train the decoder alone on whole pictures; networks that were trained on the latents stay valid.

    The latents get some noise, since those that a UNet draws are not those of any picture.
    """
    vae = load(folder).to(device)
    latents = torch.load(folder / "portrait_latents.pt", mmap=True)
    batch = 3 if device == "cpu" else 64
    decoder = torch.nn.ModuleList([vae.decoder, vae.post_quant_conv]).train()
    optimizer = torch.optim.AdamW(decoder.parameters(), 1e-3, (0.9, 0.98), weight_decay=1e-4)
    run = Run(folder / "decoder.pt", steps, {"decoder": decoder, "optimizer": optimizer})
    indices = batches(np.random.default_rng([run.step, 3]), len(latents), min(batch, len(latents)))
    for _ in run:
        rows = np.sort(next(indices))
        pictures = to_tensor(portraits.pictures[rows], device).contiguous(memory_format=torch.channels_last)
        given = latents[torch.from_numpy(rows)].to(device)
        given = given + 0.1 * torch.rand(len(given), 1, 1, 1, device=device) * torch.randn_like(given)
        with torch.autocast(device, torch.bfloat16):
            drawn = vae.decode(given / SCALING_FACTOR).sample.float()
        loss = reconstruction_loss(drawn, pictures)
        run.anneal(optimizer, 1e-3, decay=0.7)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        run.log(loss=loss, psnr=psnr(drawn, pictures))
    vae.cpu().save_pretrained(folder / "autoencoder")


def reconstruction_loss(drawn: Tensor, pictures: Tensor) -> Tensor:
    """Return the error of pictures in -1..1: of the pixels, and of their differences to the right and below."""
    difference = drawn - pictures
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return difference.abs().mean() + 0.5 * edges + 0.5 * difference.square().mean()


def psnr(drawn: Tensor, pictures: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures -1..1."""
    return -10 * torch.log10((drawn.detach() - pictures).square().mean() / 4)


def to_tensor(pictures: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """``(N, H, W, 3)`` uint8 to ``(N, 3, H, W)`` -1..1."""
    return torch.tensor(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def encode(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 100) -> Tensor:
    """Return the UNet's latents, ``(N, 4, H / 8, W / 8)`` float32, on the VAE's device."""
    parts = [pictures[start : start + batch] for start in range(0, len(pictures), batch)]
    latents = [vae.encode(to_tensor(part, vae.device)).latent_dist.mean for part in parts]
    return torch.cat(latents) * SCALING_FACTOR


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, portraits: Portraits) -> None:
    """Normalise each channel of the latents to mean 0 and deviation 1, without changing any reconstruction.

    The factor goes into the 1 x 1 convolutions at the ends of the latent, since SDXL's one scaling factor is fixed.
    """
    latents = encode(vae, portraits.pictures[:: max(1, len(portraits.pictures) // 1000)])
    mean = latents.mean((0, 2, 3)) / SCALING_FACTOR
    scale = 1 / latents.std((0, 2, 3))  # new = (old - mean) * scale
    before, after = vae.quant_conv, vae.post_quant_conv
    before.weight[:4] *= scale[:, None, None, None]
    before.bias[:4] = (before.bias[:4] - mean) * scale
    before.bias[4:] += 2 * scale.log()
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight /= scale[None, :, None, None]


def _crops(portraits: Portraits, indices: np.ndarray, random: np.random.Generator) -> Tensor:
    """Squares of ``_CROP`` pixels, three of four near the face."""
    crops = np.empty((len(indices), _CROP, _CROP, 3), np.uint8)
    for row, index in enumerate(indices):
        middle = portraits.keypoints[index].mean(0) if random.random() < 0.75 else random.uniform(0, SIZE, 2)
        x, y = (middle + random.uniform(-14, 14, 2) - _CROP / 2).clip(0, SIZE - _CROP).astype(int)
        crops[row] = portraits.pictures[index, y : y + _CROP, x : x + _CROP]
    return to_tensor(crops).contiguous(memory_format=torch.channels_last)
