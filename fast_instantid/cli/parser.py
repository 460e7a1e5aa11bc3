"""The parser of the command line."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from .. import __version__
from . import batch, convert, demo, detail, doctor, download, faces, generate, person, profile, serve, watch
from .output import printable_lines

_EPILOG = """examples:
  fast-instantid demo                       # an example, on small models that are included
  fast-instantid download                   # the model files, once; nothing else uses the network
  fast-instantid embed anna.jpg bob.jpg -o people.safetensors
  fast-instantid faces group.jpg -o numbered.png
  fast-instantid keypoints anna.jpg -o hint.png
  fast-instantid person make anna1.jpg anna2.jpg -o anna.safetensors
  fast-instantid generate --photo anna.jpg --prompt "a watercolour portrait" -o anna.png
  fast-instantid detail group.png --person anna.safetensors --prompt "people in a bar" -o better.png
  fast-instantid serve                      # all of it over HTTP, and a page for a browser
  fast-instantid doctor                     # if something does not work
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser. The module of each command adds it, with the function ``options.run``."""
    parser = _Parser(
        prog="fast-instantid",
        description="Put a real person's face into SDXL pictures, with InstantID.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    modules = (demo, faces, person, generate, batch, detail, serve, download, convert, doctor, watch, profile)
    for module in modules:
        module.add_command(subparsers)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that appends repeated options of lists and refuses repeated options of one value."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Help, **options)
        self.register("action", None, _Store)

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file, flush=True)  # argparse would pass over a full disk

    def error(self, message: str) -> NoReturn:
        super().error(printable_lines(message))


class _Store(argparse.Action):
    """The default action, which also remembers whether its option was given."""

    given = False

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        if self.given and self.nargs != "+":
            raise argparse.ArgumentError(self, "given twice; it takes one value")
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *values] if self.given else values)
        self.given = bool(self.option_strings)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with defaults, except empty ones."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.nargs == 0 or action.default is None or action.default in ("", [])  # nargs 0: a switch
        return action.help if nothing else super()._get_help_string(action)
