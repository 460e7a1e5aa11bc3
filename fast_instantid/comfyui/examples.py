"""The photos of the example workflows, in ComfyUI's input folder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import folder_paths

logger = logging.getLogger("fast_instantid")

PHOTOS = Path(__file__).resolve().parents[2] / "example_workflows" / "input"


def provide_photos() -> None:
    """Copy the photos that the input folder lacks, so that the examples run as they are."""
    target = Path(folder_paths.get_input_directory())
    try:
        for photo in PHOTOS.glob("*"):
            if not (target / photo.name).exists():
                target.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(photo, target / photo.name)
    except OSError as error:
        logger.warning("the examples' photos could not be put into %s: %s", target, error)
