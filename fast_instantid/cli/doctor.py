"""``fast-instantid doctor``"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FastInstantIDError
from .models import MINIATURE

if TYPE_CHECKING:
    from ..observe.doctor import Places

_MAX_WIDTH = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print everything as one JSON document")
    parser.add_argument(
        "--comfyui",
        type=Path,
        metavar="DIR",
        help="examine this ComfyUI and its models (default: the one this package lies in, if it does)",
    )
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help="folder of the models (default: where the other commands look)"
    )
    parser.add_argument("--pack", type=Path, metavar="DIR", help="folder of the face models, as for the other commands")
    parser.add_argument("--instantid", type=Path, metavar="DIR", help="InstantID's files, as for generate")
    parser.add_argument("--base", type=Path, metavar="PATH", help="SDXL, as for generate")
    parser.add_argument("--backend", choices=("torch", "onnxruntime"), default="torch", help="runs the face models")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: the best one there is)")


def run(options: argparse.Namespace) -> int:
    """Print what was found; 1 if something is broken."""
    from ..observe.doctor import examine

    report = examine(_places(options))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold what a console cannot show
    if options.json:
        print(report.to_json())
    else:
        colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(report.text(min(shutil.get_terminal_size((100, 24)).columns, _MAX_WIDTH), colours))
    return 1 if report.broken else 0


def _places(options: argparse.Namespace) -> Places:
    from ..observe.doctor.places import Places, comfyui_around

    asked = [path for path in (options.pack, options.instantid, options.base) if path == Path(MINIATURE)]
    if asked and not asked[0].exists():
        raise FastInstantIDError(
            f"the doctor examines real models, and a folder ./{MINIATURE} is not there: whether the miniature works, "
            "'fast-instantid demo' shows"
        )
    comfyui = options.comfyui
    if comfyui is not None and not (comfyui / "custom_nodes").is_dir():
        raise FastInstantIDError(
            f"{comfyui}: this is no ComfyUI, which has a folder custom_nodes; name ComfyUI's folder"
        )
    shell = options.models or options.pack or options.instantid or options.base
    if comfyui is None and not shell:
        comfyui = comfyui_around()
    places = Places.of_shell(options.models) if comfyui is None else Places.of_comfyui(comfyui, options.models)
    if options.pack is not None:
        places = replace(places, faces=(options.pack,))
    if options.instantid is not None:
        places = replace(places, adapters=(options.instantid,), identitynets=(options.instantid,))
    if options.base is not None:
        places = replace(places, bases=(options.base,))
    named = {"--models": options.models, "--pack": options.pack}
    named |= {"--instantid": options.instantid, "--base": options.base}
    given = tuple((name, path) for name, path in named.items() if path is not None)
    places = replace(places, named=(*places.named, *given))
    return places.asking(options.backend, options.device)
