"""The files that the example workflows read: photos in ComfyUI's input folder, and a drawn person."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import folder_paths

from .models import PEOPLE

logger = logging.getLogger("fast_instantid")

_EXAMPLES = Path(__file__).resolve().parents[2] / "example_workflows"
PHOTOS, PERSONS = _EXAMPLES / "input", _EXAMPLES / "people"


def provide_files() -> None:
    """Copy the photos and persons that ComfyUI's folders lack, so that the examples run as they are."""
    for source, folder in (
        (PHOTOS, folder_paths.get_input_directory()),
        (PERSONS, folder_paths.get_folder_paths(PEOPLE)[-1]),
    ):
        try:
            for file in source.glob("*"):
                target = Path(folder, file.name)
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
        except OSError as error:
            logger.warning("the examples' files could not be put into %s: %s", folder, error)
