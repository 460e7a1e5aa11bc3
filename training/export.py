"""Export of the trained networks to the files of the package."""

from __future__ import annotations

import shutil
from pathlib import Path

from training.autoencoder import load as load_autoencoder
from training.networks import save_base, save_instantid, tokenizer
from training.portraits import write_portraits
from training.together import averaged


def export(folder: Path, weights: Path) -> None:
    """Write a complete miniature from the checkpoints in ``folder``: model pack, base model, InstantID, portraits."""
    shutil.copytree(folder / "antelopev2", weights / "antelopev2", dirs_exist_ok=True)
    stack = averaged(folder)
    save_base(
        weights / "base",
        stack.unet,
        load_autoencoder(folder),
        tokenizer(folder / "tokenizer"),
        (stack.text, stack.text_2),
    )
    save_instantid(weights / "instantid", stack.identitynet, stack.adapter)
    write_portraits(weights / "portraits")
    for path in weights.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
