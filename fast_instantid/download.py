"""The only code that uses the network: it fetches the published model files."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import BackendError, FastInstantIDError, ModelFileError, OfflineError
from .files import sha256
from .sources import MODELS, ModelFiles

_ATTEMPTS = 3
_STAGING = ".incomplete"  # a folder beside the files


def download(
    names: Sequence[str], folder: Path, *, offline: bool = False, report: Callable[[str], None] = lambda _: None
) -> None:
    """Download missing files into ``folder/NAME``, and check all by their hashes.

    A file is there whole and checked, or not at all. Where a server hangs up, its file is asked for again.

    Args:
        names: keys of :data:`MODELS`.
        folder: the models folder.
        offline: raise instead of using the network.
        report: called with a description of each file before it is downloaded.

    Raises:
        OfflineError: files are missing and ``offline`` is set.
        ModelFileError: a file that was there has other content than the published one; it stays.
        BackendError: huggingface_hub is not installed.
        FastInstantIDError: the hub cannot be reached, refuses or sends other content; complete files stay.
        OSError: the folder is not writable.
    """
    missing = [(name, file) for name in names for file in MODELS[name].missing_from(folder / name)]
    if missing and offline:
        listed = "".join(f"\n  {name}/{file}" for name, file in missing)
        raise OfflineError(f"--offline forbids downloading the files that {folder} lacks:{listed}")
    present = [(name, file) for name in names for file in MODELS[name].files if (name, file) not in missing]
    for name, file in missing:
        (folder / name / file).parent.mkdir(parents=True, exist_ok=True)  # an OSError here is not the hub's
        report(f"{name}/{file} from {MODELS[name].repository} ({MODELS[name].license})")
        try:
            _fetch(MODELS[name], file, folder / name)
        except BackendError:
            raise
        except Exception as error:  # of huggingface_hub, or of the HTTP library that its version uses
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise FastInstantIDError(
                f"{name}/{file}: could not be fetched from {MODELS[name].repository} ({cause}); check the connection "
                f"(HTTPS_PROXY, HF_ENDPOINT), try again later, or put the file into {folder / name} yourself"
            ) from error
    for name in {name for name, _ in missing}:
        shutil.rmtree(folder / name / _STAGING, ignore_errors=True)
    for name, file in present:
        pinned, path = MODELS[name].files[file], folder / name / file
        if pinned and (found := sha256(path)) != pinned:
            raise ModelFileError(
                f"{path}: not the published file (its SHA-256 is {found}, not {pinned}); if you do not want this one, "
                "delete it and run the command again"
            )


def _fetch(model: ModelFiles, file: str, folder: Path) -> None:
    """Download a file beside its place, check it, and move it there."""
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    except ImportError as error:
        raise BackendError("downloading needs huggingface_hub: pip install 'fast-instantid[download]'") from error
    wanted, etag, fetched = (model.repository, file), "", Path()
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            etag = get_hf_file_metadata(hf_hub_url(*wanted, revision=model.revision)).etag or ""
            fetched = Path(hf_hub_download(*wanted, revision=model.revision, local_dir=folder / _STAGING))
            break
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", 500)
            if attempt == _ATTEMPTS or status < 500:  # a refusal, which would be the same again
                raise
            time.sleep(attempt)
    expected = model.files[file] or (etag if len(etag) == 64 else "")  # the hub's etag of a large file is its SHA-256
    if expected and (found := sha256(fetched)) != expected:
        fetched.unlink()
        raise ValueError(f"what came has the SHA-256 {found}, the published file {expected}")
    os.replace(fetched, folder / file)
