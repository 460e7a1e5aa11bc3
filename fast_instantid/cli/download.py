"""The command ``fast-instantid download``: the only one that uses the network."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ..download import download
from ..sources import MODELS, models_folder
from .options import command
from .output import say


def add_command(commands: Any) -> None:
    text, example = "download the model files; no other command uses the network", "antelopev2 instantid"
    parser = command(commands, "download", run, text, example)
    parser.add_argument("models", nargs="*", type=_model, metavar="MODEL", help=f"{', '.join(MODELS)} (default: all)")
    text = "folder, also set by $FAST_INSTANTID_MODELS"
    parser.add_argument("--to", type=Path, default=models_folder(), help=text)
    parser.add_argument("--offline", action="store_true", help="check only; download nothing")


def run(options: argparse.Namespace) -> int:
    """Fetch what is missing, and check all of it."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it warns of each retry; our error says all of it once
    download(options.models or list(MODELS), options.to, offline=options.offline, report=say)
    say(f"all there, in {options.to}")
    return 0


def _model(name: str) -> str:
    if name not in MODELS:
        raise argparse.ArgumentTypeError(f"unknown model {name!r}: choose from {', '.join(MODELS)}")
    return name
