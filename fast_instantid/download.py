"""The only code that uses the network: it fetches the published model files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import BackendError, FastInstantIDError, OfflineError
from .sources import MODELS


def download(
    names: Sequence[str], folder: Path, *, offline: bool = False, report: Callable[[str], None] = lambda _: None
) -> None:
    """Download missing files into ``folder/NAME``; interrupted downloads resume.

    Args:
        names: keys of :data:`MODELS`.
        folder: the models folder.
        offline: raise instead of using the network.
        report: called with a description of each file before it is downloaded.

    Raises:
        OfflineError: files are missing and ``offline`` is set.
        BackendError: huggingface_hub is not installed.
        FastInstantIDError: the hub cannot be reached or refuses; complete files stay.
        OSError: the folder is not writable.
    """
    missing = [(name, file) for name in names for file in MODELS[name].missing_from(folder / name)]
    if not missing:
        return
    if offline:
        listed = "".join(f"\n  {name}/{file}" for name, file in missing)
        raise OfflineError(f"--offline forbids downloading the files that {folder} lacks:{listed}")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise BackendError("downloading needs huggingface_hub: pip install 'fast-instantid[download]'") from error
    for name, file in missing:
        (folder / name).mkdir(parents=True, exist_ok=True)  # outside the try: an OSError here is not the hub's
        report(f"{name}/{file} from {MODELS[name].repository} ({MODELS[name].license})")
        try:
            hf_hub_download(MODELS[name].repository, file, local_dir=folder / name)
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise FastInstantIDError(
                f"{name}/{file}: could not be fetched from {MODELS[name].repository} ({cause}); check the connection "
                f"(HTTPS_PROXY, HF_ENDPOINT), try again later, or put the file into {folder / name} yourself"
            ) from error
