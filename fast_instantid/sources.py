"""Sources of model files: the published files, and the search for a given source."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import ModelFileError

DOWNLOAD_HINT = "'fast-instantid download' gets it"


@dataclass(frozen=True)
class ModelFiles:
    """Files of one repository on the Hugging Face hub."""

    repository: str
    files: Mapping[str, str]
    """Names, each with the SHA-256 of the published content; "" where none is pinned."""
    license: str
    revision: str | None = None

    def missing_from(self, folder: Path) -> list[str]:
        """Names of the files that ``folder`` lacks."""
        return [name for name in self.files if not (folder / name).is_file()]


_BASE_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.fp16.safetensors",
    *(f"tokenizer/{name}" for name in ("special_tokens_map.json", "tokenizer_config.json")),
    *(f"tokenizer_2/{name}" for name in ("special_tokens_map.json", "tokenizer_config.json")),
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
)
_SDXL, _SDXL_LICENSE = "stabilityai/stable-diffusion-xl-base-1.0", "CreativeML Open RAIL++-M"
_VOCABULARY = {
    "merges.txt": "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a",
    "vocab.json": "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349",
}
MODELS = {
    "antelopev2": ModelFiles(
        "DIAMONIK7777/antelopev2",
        {
            "scrfd_10g_bnkps.onnx": "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
            "glintr100.onnx": "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf",
        },
        "InsightFace models: non-commercial research only",
    ),
    "instantid": ModelFiles(
        "InstantX/InstantID",
        {
            "ip-adapter.bin": "02b3618e36d803784166660520098089a81388e61a93ef8002aa79a5b1c546e1",
            "ControlNetModel/config.json": "2480c42f363d712faae8d0e17cb850a5d1e4cafc232fbd022b1d43eee45234eb",
            "ControlNetModel/diffusion_pytorch_model.safetensors": (
                "c8127be9f174101ebdafee9964d856b49b634435cf6daa396d3f593cf0bbbb05"
            ),
        },
        "Apache-2.0; trained on antelopev2's embeddings",
        "57b32dfee076092ad2930c71fd6d439c2c3b1820",
    ),
    "base": ModelFiles(
        _SDXL,
        dict.fromkeys(_BASE_FILES, "")
        | {f"{part}/{name}": hash for part in ("tokenizer", "tokenizer_2") for name, hash in _VOCABULARY.items()},
        _SDXL_LICENSE,
    ),
    # For SDXL as a single file, which holds no tokenizer. Both of its tokenizers read this vocabulary.
    "tokenizer": ModelFiles(_SDXL, {f"tokenizer/{name}": hash for name, hash in _VOCABULARY.items()}, _SDXL_LICENSE),
}
"""All models, by the name of their folder."""


def no_telemetry() -> None:
    """Before an import of onnxruntime, which diffusers imports too: keep it from reporting to its makers.

    They read the variable once in a process, at that import. One that the user has set is respected.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def models_folder() -> Path:
    """The models folder: ``$FAST_INSTANTID_MODELS``, else ``~/.cache/fast-instantid``."""
    return Path(os.path.expanduser(os.environ.get("FAST_INSTANTID_MODELS", "~/.cache/fast-instantid")))


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


def tokenizer_folder(checkpoint: Path) -> Path:
    """CLIP's vocabulary for a single-file checkpoint: downloaded, of an SDXL folder, or of a ComfyUI around it or us.

    Raises:
        ModelFileError: there is none; says what to fetch.
    """
    folders = [models_folder() / "tokenizer" / "tokenizer"]
    with suppress(ModelFileError):
        folders.append(local_path(_SDXL, "SDXL") / "tokenizer")
    around = (*checkpoint.absolute().parents, *checkpoint.resolve().parents, *Path(__file__).resolve().parents)
    folders += [folder / "comfy" / "sd1_tokenizer" for folder in dict.fromkeys(around)]
    for folder in folders:
        if all((folder / name).is_file() for name in _VOCABULARY):
            return folder
    raise ModelFileError(
        f"{checkpoint}: a checkpoint holds no tokenizer, and there is none in {models_folder() / 'tokenizer'}, of "
        f"{_SDXL} or of a ComfyUI around it: 'fast-instantid download tokenizer' gets it (1.5 MB)"
    )
