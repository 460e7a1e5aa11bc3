"""Choice of a command's model files: named ones, downloaded ones, or the miniature."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import miniature
from ..errors import FastInstantIDError
from ..recorder import stage
from ..sources import models_folder

if TYPE_CHECKING:
    from ..faces import FaceAnalyzer

MINIATURE = "miniature"
"""Stands for the shipped files in place of a path. A folder of that name is ``./miniature``."""

STEPS, GUIDANCE = 30, 5.0
"""Defaults for SDXL; the miniature has its own."""


@dataclass(frozen=True)
class Models:
    """The files of ``generate``, with the size, steps and guidance that suit them."""

    pack: str | Path
    base: str | Path
    instantid: str | Path
    size: tuple[int, int] | None = None
    steps: int = STEPS
    guidance: float = GUIDANCE
    is_miniature: bool = False

    @classmethod
    def of(cls, options: argparse.Namespace) -> Models:
        """Return the models that the options name; all of the miniature if one option names it.

        Raises:
            FastInstantIDError: the miniature beside files of another model.
            ModelFileError: the miniature is not complete.
        """
        given = {name: value for name in ("pack", "base", "instantid") if (value := getattr(options, name)) is not None}
        shipped = [name for name, value in given.items() if value == MINIATURE]
        others = " and ".join(f"--{name} {value}" for name, value in given.items() if name not in shipped)
        if shipped and others:
            raise FastInstantIDError(
                f"--{shipped[0]} {MINIATURE} beside {others}: the miniature's files fit each other and no others; "
                f"leave {others} out, or name a folder of your own as ./{MINIATURE}"
            )
        if shipped:
            files = miniature.files()
            suited = (miniature.SIZE, miniature.STEPS, miniature.GUIDANCE, True)
            return cls(files.pack, files.base, files.instantid, *suited)
        folder = models_folder()
        return cls(given.get("pack", folder / "antelopev2"), *(given.get(x, folder / x) for x in ("base", "instantid")))


def face_pack(options: argparse.Namespace) -> str | Path:
    """The folder of the face models; a ModelFileError if it is the miniature's, and incomplete."""
    return miniature.files().pack if options.pack == MINIATURE else options.pack or models_folder() / "antelopev2"


def face_analyzer(options: argparse.Namespace, pack: str | Path) -> FaceAnalyzer:
    """Load a face pack as the options say."""
    with stage("import"):
        from ..faces import FaceAnalyzer

    how = {"dtype": options.face_dtype, "sizes": options.face_sizes, "threshold": options.face_threshold}
    return FaceAnalyzer.load(pack, options.backend, options.device, cache=options.cache, **how)
