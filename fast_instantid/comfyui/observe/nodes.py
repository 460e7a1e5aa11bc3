"""The nodes InstantID Doctor and InstantID Profile."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from torch import Tensor

from ...errors import FastInstantIDError
from ..models import PROVIDERS, backend_of
from ..sockets import checked, entry, inputs

if TYPE_CHECKING:
    from .prompt import RecordedPrompt

logger = logging.getLogger("fast_instantid")


class InstantIDDoctor:
    """Checks this ComfyUI for InstantID: device, face analysis, model files, node packs, GPU memory.

    Shows each problem and its remedy.
    """

    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("text",)
    FUNCTION = "examine"
    CATEGORY = "InstantID"
    SEARCH_ALIASES = ("diagnose", "troubleshoot", "missing models")
    OUTPUT_NODE = True
    INPUT_TYPES = inputs(
        optional={
            "provider": entry(
                list(PROVIDERS),
                "The provider of InstantID Face Analysis in your workflow. The doctor checks it.",
                default="auto",
            )
        }
    )

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        """Return NaN, so that the node always runs."""
        return float("nan")

    def examine(self, provider: str = "auto") -> dict[str, Any]:
        from ...observe.doctor import Places, examine  # slow to import, and rarely used

        def folders(kind: str) -> tuple[Path, ...]:
            return tuple(map(Path, folder_paths.get_folder_paths(kind)))

        backend, device = backend_of(provider)
        dynamic = getattr(sys.modules.get("comfy.memory_management"), "aimdo_enabled", None)
        places = Places(
            "comfyui",
            Path(folder_paths.models_dir),
            faces=tuple(reversed(folders("insightface"))),  # the order of find_face_pack
            adapters=folders("instantid"),
            identitynets=folders("controlnet"),
            bases=folders("checkpoints"),
            custom_nodes=folders("custom_nodes"),
            backend=backend,
            device=str(device),
            dynamic_vram="" if dynamic is None else "on" if dynamic else "off",
        )
        report = examine(places)
        text = report.text(width=80)
        logger.log(logging.WARNING if report.broken else logging.INFO, "doctor:\n%s", text)
        return {"ui": {"text": [text]}, "result": (text,)}


class InstantIDProfile:
    """Records the prompt up to this node."""

    DESCRIPTION = (
        "Shows where the time of this workflow goes, from its first node to this one, and writes a trace for "
        "ui.perfetto.dev into ComfyUI's output folder. Put it between VAE Decode and Save Image, or at the end."
    )
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "text")
    FUNCTION = "profile"
    CATEGORY = "InstantID"
    SEARCH_ALIASES = ("timing", "speed", "trace")
    OUTPUT_NODE = True
    INPUT_TYPES = inputs(
        images=entry("IMAGE", "Passed on unchanged. The nodes before it are recorded.", lazy=True),
        enabled=entry("BOOLEAN", "Off: the images pass through and nothing is recorded.", default=True),
        filename_prefix=entry(
            "STRING", "Prefix of the trace's file name, in the output folder.", default="profile/instantid"
        ),
        hidden={"unique_id": "UNIQUE_ID", "dynprompt": "DYNPROMPT"},
    )

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None) -> bool | str:
        return checked(_check_prefix, filename_prefix)

    @classmethod
    def IS_CHANGED(cls, enabled: bool | None, **_: Any) -> float | str:
        """Return NaN, so that the node always runs, unless it is switched off."""
        return "off" if enabled is False else float("nan")

    def check_lazy_status(self, enabled: bool, filename_prefix: str, dynprompt: Any = None, **_: Any) -> list[str]:
        """Start recording. ComfyUI calls this before it runs the nodes behind the lazy input."""
        from .prompt import begin  # imports more of the host

        if enabled:
            why = "the workflow failed, was cancelled, or did not reach this node"
            begin(dynprompt, type(self).__name__, lambda lost: _show(lost, filename_prefix, why))
        return ["images"]

    def __init__(self) -> None:
        self._prompt: Any = None
        self._text = ""

    def profile(
        self, images: Tensor, enabled: bool, filename_prefix: str, dynprompt: Any = None, unique_id: str | None = None
    ) -> dict[str, Any]:
        from .prompt import end

        if dynprompt is not None and dynprompt is self._prompt:  # called once per picture of a list
            return {"ui": {"text": [], "trace": []}, "result": (images, self._text)}
        recorded = end(dynprompt)
        traces: list[dict[str, str]] = []
        if not enabled:
            text = "Switched off: nothing is recorded."
        elif recorded is None:
            text = "Another InstantID Profile of this workflow ended the recording. Keep one of them."
        else:
            text, traces = _show(recorded, filename_prefix)
        self._prompt, self._text = dynprompt, text
        return {"ui": {"text": [text], "trace": traces}, "result": (images, text)}


def _show(recorded: RecordedPrompt, prefix: str, ended_early: str = "") -> tuple[str, list[dict[str, str]]]:
    """Save the trace and log the profile; return the node's text, and the trace's arguments of ComfyUI's ``/view``."""
    from ...observe.profile import Profile

    profile = Profile.of(recorded.recorder, "ComfyUI workflow", ended_early)
    lines = [profile.tree(), "Nodes that are missing here did not run: ComfyUI still had their results."]
    traces: list[dict[str, str]] = []
    try:
        _check_prefix(prefix)
        output = folder_paths.get_output_directory()
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output)
        trace = Path(folder, f"{name}_{counter:05}_.json")
        profile.save(trace)
        traces = [{"filename": trace.name, "subfolder": subfolder, "type": "output"}]
        lines.append(f"Trace, for ui.perfetto.dev: {trace}")
    except (OSError, FastInstantIDError) as error:  # must not cost the picture
        lines.append(f"The trace could not be written: {error}")
        logger.warning("the trace of the profile could not be written: %s", error)
    text = "\n".join(lines)
    logger.info("profile:\n%s", text)
    return text, traces


def _check_prefix(prefix: str) -> None:
    output = os.path.abspath(folder_paths.get_output_directory())
    target = Path(os.path.abspath(os.path.join(output, prefix)))
    impossible = "\0" in prefix or prefix.encode("utf-8", "replace").decode() != prefix  # a lone surrogate
    if impossible or not os.path.basename(prefix) or not target.is_relative_to(output):
        raise FastInstantIDError(
            f"filename_prefix {prefix!r} names no file in ComfyUI's output folder: give a name, or subfolder/name"
        )
