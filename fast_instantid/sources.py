"""Where model files are: the published ones, and the one rule for all sources."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import ModelFileError

DOWNLOAD_HINT = "'fast-instantid download' gets it"


@dataclass(frozen=True)
class ModelFiles:
    """Files of one repository on the Hugging Face hub."""

    repository: str
    files: tuple[str, ...]
    license: str

    def missing_from(self, folder: Path) -> list[str]:
        """Names of the files that ``folder`` lacks."""
        return [name for name in self.files if not (folder / name).is_file()]


MODELS = {
    "antelopev2": ModelFiles(
        "DIAMONIK7777/antelopev2",
        ("scrfd_10g_bnkps.onnx", "glintr100.onnx"),
        "InsightFace models: non-commercial research only",
    ),
    "instantid": ModelFiles(
        "InstantX/InstantID",
        ("ip-adapter.bin", "ControlNetModel/config.json", "ControlNetModel/diffusion_pytorch_model.safetensors"),
        "Apache-2.0; trained on antelopev2's embeddings",
    ),
    "base": ModelFiles(
        "stabilityai/stable-diffusion-xl-base-1.0",
        (
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.fp16.safetensors",
            "text_encoder_2/config.json",
            "text_encoder_2/model.fp16.safetensors",
            *(f"tokenizer/{name}" for name in ("merges.txt", "special_tokens_map.json", "tokenizer_config.json")),
            "tokenizer/vocab.json",
            *(f"tokenizer_2/{name}" for name in ("merges.txt", "special_tokens_map.json", "tokenizer_config.json")),
            "tokenizer_2/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors",
        ),
        "CreativeML Open RAIL++-M",
    ),
}
"""All models, by the name of their folder."""


def models_folder() -> Path:
    """The models folder: ``$FAST_INSTANTID_MODELS``, else ``~/.cache/fast-instantid``."""
    return Path(os.environ.get("FAST_INSTANTID_MODELS", "~/.cache/fast-instantid")).expanduser()


def local_path(source: str | os.PathLike[str], what: str) -> Path:
    """A file or folder of models, by the one rule for all sources.

    Args:
        source: a file or folder; else the name of a folder in :func:`models_folder`, or the id of a repository that was
            downloaded there; else an id in the hub's local cache.
        what: is expected there, for the error.

    Raises:
        ModelFileError: none of these.
    """
    path = Path(os.path.expanduser(source))  # Path's raises for a user who is not there
    if os.path.exists(path):  # and so does this one of Path's, for a name that is too long
        return path
    name = os.fspath(source)
    downloaded = models_folder() / next((key for key, files in MODELS.items() if name == files.repository), name)
    if os.path.exists(downloaded):
        return downloaded
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.utils import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        cache = "the hub's cache (huggingface_hub is not installed)"
    else:
        cache = f"the hub's cache ({constants.HF_HUB_CACHE})"
        with suppress(HFValidationError, LocalEntryNotFoundError, OSError, ValueError):  # of no possible name
            return Path(snapshot_download(name, local_files_only=True))
    raise ModelFileError(
        f"{source}: neither a file nor a folder, nor a name in {models_folder()}, nor a repository in {cache}; "
        f"expected {what} there; {DOWNLOAD_HINT}"
    )
