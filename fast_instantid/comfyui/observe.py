"""The nodes that show what goes on: InstantID Doctor and InstantID Profile."""

from __future__ import annotations

import logging
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from torch import Tensor

from ..errors import FastInstantIDError
from . import recording, sockets
from .models import backend_of

if TYPE_CHECKING:
    from ..observe.doctor import Places
    from ..observe.profile import Profile

logger = logging.getLogger("fast_instantid")

_WIDTH = 80  # in characters, of text in a node


class InstantIDDoctor:
    """What ``fast-instantid doctor`` says, about the ComfyUI that it runs in."""

    DESCRIPTION = (
        "Looks at this ComfyUI as InstantID meets it (device, face analysis, model files, other packs, PCIe, VRAM) and "
        "says what is wrong and what to do."
    )
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("text",)
    FUNCTION = "examine"
    CATEGORY = "InstantID"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> sockets.Inputs:
        return sockets.doctor()

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        """Anything may have changed since."""
        return float("nan")

    def examine(self, provider: str = "auto") -> dict[str, Any]:
        from ..observe.doctor import examine  # not at the start of ComfyUI, which most often goes on without a doctor

        report = examine(_places(provider))
        text = report.text(width=_WIDTH)
        logger.log(logging.WARNING if report.broken else logging.INFO, "doctor:\n%s", text)
        return {"ui": {"text": [text]}, "result": (text,)}


class InstantIDProfile:
    """Records the prompt in which it stands."""

    DESCRIPTION = (
        "Shows what the time of this workflow goes into, from its first node to this one, and writes a page with the "
        "timeline into ComfyUI's output folder. Put it between VAE Decode and Save Image, or at the end."
    )
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "text")
    FUNCTION = "profile"
    CATEGORY = "InstantID"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> sockets.Inputs:
        return sockets.profile()

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None) -> bool | str:
        try:
            if filename_prefix is not None:  # a link, whose value is not known yet
                _check_prefix(filename_prefix)
        except FastInstantIDError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, enabled: bool | None, **_: Any) -> float | str:
        """Each run is another one to record. Switched off, this node is a wire."""
        return "off" if enabled is False else float("nan")

    def check_lazy_status(self, enabled: bool, filename_prefix: str, dynprompt: Any = None, **_: Any) -> list[str]:
        """The host asks this before it runs what this node waits for."""
        if enabled:
            recording.begin(dynprompt, type(self).__name__, lambda lost: _keep(lost, filename_prefix))
        return ["images"]

    def __init__(self) -> None:
        self._prompt: Any = None
        self._text = ""

    def profile(
        self, images: Tensor, enabled: bool, filename_prefix: str, dynprompt: Any = None, unique_id: str | None = None
    ) -> dict[str, Any]:
        if dynprompt is not None and dynprompt is self._prompt:  # of a list of pictures, the host calls it with each
            return {"ui": {"text": [], "page": []}, "result": (images, self._text)}
        recorded = recording.end(dynprompt)
        pages: list[dict[str, str]] = []
        if not enabled:
            text = "Switched off: nothing is recorded."
        elif recorded is None:
            text = "Another InstantID Profile of this workflow ended the recording. Keep one of them."
        else:
            text, pages = _show(recorded, filename_prefix, unique_id)
            logger.info("profile:\n%s", text)
        self._prompt, self._text = dynprompt, text
        return {"ui": {"text": [text], "page": pages}, "result": (images, text)}


def _places(provider: str) -> Places:
    """Where this ComfyUI looks for models, its command line and extra_model_paths.yaml included."""
    from ..observe.doctor import Places

    def folders(kind: str) -> tuple[Path, ...]:
        return tuple(map(Path, folder_paths.get_folder_paths(kind)))

    backend, device = backend_of(provider)
    return Places(
        "comfyui",
        Path(folder_paths.models_dir),
        faces=tuple(reversed(folders("insightface"))),  # as find_face_pack does
        adapters=folders("instantid"),
        identitynets=folders("controlnet"),
        bases=folders("checkpoints"),
        custom_nodes=folders("custom_nodes"),
        backend=backend,
        device=str(device),
    )


def _show(recorded: recording.Recording, prefix: str, node_id: str | None) -> tuple[str, list[dict[str, str]]]:
    """What the node says, and where the host's ``/view`` finds the page."""
    from ..observe.profile import Profile

    profile = Profile.of(recorded.recorder, "ComfyUI workflow")
    lines = [profile.tree()]
    kept = None if node_id is None else recorded.kept(node_id)
    if kept is None:
        lines.append("This ComfyUI, from before July 2025, does not tell which node runs: update it to see the nodes.")
    elif kept:
        names = f"Not run, because ComfyUI still had the results: {', '.join(kept)}. Another seed makes it draw."
        lines += textwrap.wrap(names, _WIDTH, break_long_words=False)
    pages: list[dict[str, str]] = []
    try:
        page, subfolder = _save(profile, prefix)
        pages = [{"filename": page.name, "subfolder": subfolder, "type": "output"}]
        lines.append(f"Timeline: {page}")
        lines.append(f"The same for ui.perfetto.dev: {page.with_suffix('.json').name}")
    except (OSError, FastInstantIDError) as error:  # no reason to lose the picture
        lines.append(f"The timeline could not be written: {error}")
        logger.warning("the profile's timeline could not be written: %s", error)
    return "\n".join(lines), pages


def _keep(lost: recording.Recording, prefix: str) -> None:
    """The prompt failed or was cancelled, or something kept the pictures from arriving here."""
    from ..observe.profile import Profile

    try:
        page, _ = _save(Profile.of(lost.recorder, "ComfyUI workflow", "the workflow ended before this node"), prefix)
    except (OSError, FastInstantIDError) as error:
        logger.warning("the profile of a workflow that ended early could not be written: %s", error)
    else:
        logger.info("the workflow ended before InstantID Profile; what was recorded until then is in %s", page)


def _save(profile: Profile, prefix: str) -> tuple[Path, str]:
    """Trace and page in the host's output folder; returns the page and its subfolder there."""
    _check_prefix(prefix)
    output = folder_paths.get_output_directory()
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output)
    page = Path(folder, f"{name}_{counter:05}_.html")
    profile.save(page.with_suffix(".json"))
    profile.save(page)
    return page, subfolder


def _check_prefix(prefix: str) -> None:
    output = os.path.abspath(folder_paths.get_output_directory())
    target = Path(os.path.abspath(os.path.join(output, prefix)))
    if not os.path.basename(prefix) or not target.is_relative_to(output):
        raise FastInstantIDError(
            f"filename_prefix {prefix!r} names no file in ComfyUI's output folder: give a name, or subfolder/name"
        )
