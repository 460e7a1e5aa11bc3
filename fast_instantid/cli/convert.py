"""The command ``fast-instantid convert``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..recorder import stage
from .options import command
from .output import check_output, output, print_json, progress, say


def add_command(commands: Any) -> None:
    text, example = "convert the adapter to half precision", "models/instantid/ip-adapter.bin"
    parser = command(commands, "convert", run, text, example)
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="InstantID's adapter, ip-adapter.bin")
    text = "dtype of the converted weights; identities computed in it stay the same"
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16", help=text)
    text = "a new .safetensors file (default: NAME.fp16.safetensors beside the adapter)"
    parser.add_argument("-o", "--output", type=output, metavar="FILE", help=text)
    parser.add_argument("--json", action="store_true", help="print output and sizes as one JSON document")


def run(options: argparse.Namespace) -> int:
    """Write the converted adapter and say where it is used; the original stays as it is."""
    with stage("import"):
        from ..identity.convert import convert_adapter, converted_path, is_used
        from ..weights import existing_file

    def report(done: int, total: int) -> None:
        progress(f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB written")

    existing_file(options.adapter, "InstantID's adapter")
    output: Path = options.output or converted_path(options.adapter, options.dtype)
    check_output(output, (".safetensors",))
    with stage("convert"):
        convert_adapter(options.adapter, output, options.dtype, report)
    progress("")
    before, after = (path.stat().st_size for path in (options.adapter, output))
    if options.json:
        print_json({"output": str(output), "bytes": after, "original_bytes": before, "dtype": options.dtype})
    else:
        say(f"{output}: {after / 1e6:,.1f} MB in {options.dtype} ({options.adapter.name}: {before / 1e6:,.1f} MB)")
        used = f"used from now on where identities are computed in {options.dtype}"
        say(used if is_used(output, options.dtype) else "not found by its name: give this file to Adapter.load")
    return 0
