"""Which model files a command uses: named ones, downloaded ones, or the miniature."""

from __future__ import annotations

import argparse

from .. import miniature
from ..download import models_folder
from ..errors import FastInstantIDError

MINIATURE = "miniature"
"""In place of a path: the files that are shipped. A folder of that name is ``./miniature``."""

STEPS, GUIDANCE = 30, 5.0
"""Of SDXL; the miniature has its own."""


def choose_pack(options: argparse.Namespace) -> None:
    """Put a path into ``options.pack``.

    Raises:
        ModelFileError: the miniature is not complete.
    """
    if options.pack is None:
        options.pack = models_folder() / "antelopev2"
    elif options.pack == MINIATURE:
        options.pack = miniature.files().pack


def choose_models(options: argparse.Namespace) -> bool:
    """Put paths into ``pack``, ``base`` and ``instantid``, and what suits these models into ``size`` and so on.

    Returns:
        Whether they are the miniature: all three are, if one of them is.

    Raises:
        FastInstantIDError: the miniature beside files of another model.
        ModelFileError: the miniature is not complete.
    """
    given = {name: value for name in ("pack", "base", "instantid") if (value := getattr(options, name)) is not None}
    shipped = [name for name, value in given.items() if value == MINIATURE]
    others = [f"--{name} {value}" for name, value in given.items() if name not in shipped]
    if shipped and others:
        raise FastInstantIDError(
            f"--{shipped[0]} {MINIATURE} beside {' and '.join(others)}: the miniature's files fit each other and no "
            f"others; leave {' and '.join(others)} out, or name a folder of your own as ./{MINIATURE}"
        )
    if shipped:
        files = miniature.files()
        options.pack, options.base, options.instantid = files.pack, str(files.base), str(files.instantid)
        usual = {"size": miniature.SIZE, "steps": miniature.STEPS, "guidance": miniature.GUIDANCE}
    else:
        options.base = options.base or str(models_folder() / "base")
        options.instantid = options.instantid or str(models_folder() / "instantid")
        usual = {"size": None, "steps": STEPS, "guidance": GUIDANCE}
    choose_pack(options)
    for name, value in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return bool(shipped)
