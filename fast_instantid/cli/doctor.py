"""The command ``fast-instantid doctor``."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import FastInstantIDError
from .models import MINIATURE
from .options import command


def add_command(commands: Any) -> None:
    parser = command(commands, "doctor", run, "check this machine and its model files", "--json")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON document")
    for option, metavar, text in (
        ("--comfyui", "DIR", "a ComfyUI to examine (default: the one that this package is cloned into, if it is)"),
        ("--models", "DIR", "folder of the models (default: where the other commands look)"),
        ("--pack", "DIR", "folder of the face models, as for the other commands"),
        ("--instantid", "DIR", "InstantID's files, as for generate"),
        ("--base", "PATH", "SDXL, as for generate"),
    ):
        parser.add_argument(option, type=Path, metavar=metavar, help=text)
    parser.add_argument("--backend", choices=("torch", "onnxruntime"), default="torch", help="runs the face models")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: the best one there is)")


def run(options: argparse.Namespace) -> int:
    """Print the report; return 1 if something is broken."""
    from ..observe.doctor import Places, examine
    from ..observe.doctor.places import comfyui_around

    given = {name: path for name in ("models", "pack", "instantid", "base") if (path := getattr(options, name))}
    if Path(MINIATURE) in given.values() and not Path(MINIATURE).exists():
        raise FastInstantIDError(
            f"there is no folder ./{MINIATURE}; the doctor examines real models, and 'fast-instantid demo' shows "
            "whether the miniature works"
        )
    comfyui = options.comfyui
    if comfyui is not None and not (comfyui / "custom_nodes").is_dir():
        raise FastInstantIDError(f"{comfyui}: not a ComfyUI, which has a folder custom_nodes; name ComfyUI's folder")
    if comfyui is None and not given:
        comfyui = comfyui_around()
    places = Places.of_shell(options.models) if comfyui is None else Places.of_comfyui(comfyui, options.models)
    fields = {"pack": ("faces",), "instantid": ("adapters", "identitynets"), "base": ("bases",), "models": ()}
    chosen = {field: (path,) for name, path in given.items() for field in fields[name]}
    report = examine(replace(places, backend=options.backend, device=options.device, **chosen))
    if options.json:
        print(report.to_json())
    else:
        print(report.text(min(shutil.get_terminal_size((100, 24)).columns, 110)))
    return 1 if report.broken else 0
