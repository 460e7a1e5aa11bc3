"""Options that several commands share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import miniature
from ..sources import models_folder
from .jobs import picture_size
from .models import GUIDANCE, MINIATURE, STEPS

_APPROXIMATIONS = "off by default; docs/approximations.md gives the cost of each in likeness"
_CACHED = "or a hub id in the hub's local cache"


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int] | None, text: str, example: str = ""
) -> argparse.ArgumentParser:
    """Add a command to the subparsers ``commands``, or an action to those of a command.

    Args:
        run: becomes ``options.run``; it returns the exit code. None for a command that has actions.
        text: its help.
        example: arguments that it may be called with.
    """
    added = commands.add_parser(name, help=text, description=text)
    added.set_defaults(run=run, parser=added)
    if example:
        added.epilog = f"example:\n  {added.prog} {example}"
    return added


def portable(options: argparse.Namespace) -> argparse.Namespace:
    """The options without parser and functions, which a process on another machine needs not."""
    return argparse.Namespace(**{name: x for name, x in vars(options).items() if name not in ("parser", "run")})


def positive(text: str, digits: int = 4) -> int:
    """Convert a whole number of 1 or more, of so many digits at most."""
    if not re.fullmatch(f"[0-9]{{1,{digits}}}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: expected a whole number from 1 to {10**digits - 1}")
    return int(text)


def cache_option(parser: argparse.ArgumentParser) -> None:
    text = "folder that keeps faces and identities between runs, also set by $FAST_INSTANTID_CACHE"
    parser.add_argument("--cache", type=_cache, metavar="DIR", help=text)


def face_options(parser: argparse.ArgumentParser, cached: bool = True) -> None:
    """Add those of the face models, and ``--cache`` where it is the same as everywhere."""
    text = f"folder of the face models, or {MINIATURE} (default: {_default('antelopev2')})"
    parser.add_argument("--pack", metavar="DIR", help=text)
    parser.add_argument("--backend", choices=("torch", "onnxruntime"), default="torch", help="runs the face models")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: the best one there is)")
    if cached:
        cache_option(parser)
    text = "score from which a face counts, above 0 and below 1; a lower one finds more, false ones too"
    parser.add_argument("--face-threshold", type=float, default=0.5, metavar="X", help=text)
    less = parser.add_argument_group("less work for another result", _APPROXIMATIONS)
    less.add_argument("--face-dtype", default="float32", help="float32, or with torch float16 or bfloat16")
    text = "sides to search at, in turn until a face is found, such as 320 640 (default: 640, 576 ... 192)"
    less.add_argument("--face-sizes", type=int, nargs="+", metavar="PX", help=text)


def model_options(parser: argparse.ArgumentParser) -> None:
    """Add those of SDXL and InstantID."""
    text = f"SDXL: folder, .safetensors, {_CACHED}; or {MINIATURE}, for the small models that are included, then "
    text += f"of --pack and --instantid too; for such a folder write ./{MINIATURE} (default: {_default('base')})"
    parser.add_argument("--base", metavar="PATH", help=text)
    text = f"InstantID: folder, {_CACHED}; or {MINIATURE} (default: {_default('instantid')})"
    parser.add_argument("--instantid", metavar="PATH", help=text)
    parser.add_argument("--dtype", help="float32, float16 or bfloat16 (default: float16 on CUDA, else float32)")


def drawing_options(parser: argparse.ArgumentParser) -> None:
    """Add those of a picture, with :func:`model_options` and :func:`face_options`."""
    parser.add_argument("--negative-prompt", default="", help="what not to draw")
    model_options(parser)
    for options, default, text in (
        (("--scale", "--weight"), 0.8, "scale of the identity branch, 0 to 5"),
        (("--controlnet-conditioning-scale", "--controlnet-strength"), 0.8, "scale of the IdentityNet, 0 to 10"),
        (("--noise",), 0.0, "noise in the unconditional embedding, 0 to 1"),
    ):
        parser.add_argument(*options, type=float, default=default, metavar="X", help=text)
    text = f"classifier-free guidance; 1 turns it off (default: {GUIDANCE}; {MINIATURE}: {miniature.GUIDANCE})"
    parser.add_argument("--guidance-scale", "--guidance", type=float, metavar="X", help=text)
    text = f"number of sampling steps (default: {STEPS}; {MINIATURE}: {miniature.STEPS})"
    parser.add_argument("--num-inference-steps", "--steps", type=int, metavar="N", help=text)
    text = "seed of the first noise; of several, each (default: 0)"
    parser.add_argument("--seed", type=int, nargs="+", metavar="N", help=text)
    text = "a LoRA's .safetensors file, and its scale, 1 by default; repeat it for several"
    parser.add_argument("--lora", nargs="+", action="append", metavar=("PATH", "SCALE"), help=text)
    text = "diffusers' name of another scheduler, such as EulerDiscreteScheduler; a wrong one lists what there is"
    parser.add_argument("--scheduler", default="", metavar="NAME", help=text)
    parser.add_argument("--json", action="store_true", help="print output and times as one JSON document")
    face_options(parser)
    less = parser.add_argument_group("less work for another picture", _APPROXIMATIONS)
    text = "the set that costs little likeness; options of this group that are given too win"
    less.add_argument("--fast", action="store_true", help=text)
    text = "modules of the UNet whose layers get the identity, such as down_blocks up_blocks.0 (default: all)"
    less.add_argument("--layers", nargs="+", metavar="MODULE", help=text)
    for name, what in (("identity", "the identity in the attention"), ("identity-net", "the IdentityNet")):
        text, whole = f"part of the steps with {what}, such as 0 0.8", (0.0, 1.0)
        less.add_argument(f"--{name}-range", type=float, nargs=2, default=whole, metavar=("START", "END"), help=text)
    text = "run the IdentityNet at each such step only"
    less.add_argument("--identity-net-every", type=int, default=1, metavar="N", help=text)


def person_option(parser: Any) -> None:
    text = "files of 'person make', photos, each of another person, or scenes (.json); also folders, and '*.jpg'"
    parser.add_argument("--person", nargs="+", metavar="FILE", help=text)


def generate_options(parser: argparse.ArgumentParser) -> None:
    """Add those of ``generate`` and ``batch generate``, with :func:`drawing_options`."""
    parser.add_argument("--prompt", nargs="+", help="what to draw; of several prompts, each")
    text = "take settings that are not given from this picture"
    parser.add_argument("--from", dest="settings", type=Path, metavar="PNG", help=text)
    parser.add_argument("--batch-size", type=positive, default=4, metavar="N", help="pictures drawn at once at most")
    text = "keep the identity inside of the faces' boxes, so that the prompt alone draws the rest"
    parser.add_argument("--enhance-non-face-region", action="store_true", help=text)
    text = "draw without the IdentityNet, which is not loaded then; the prompt sets the pose"
    parser.add_argument("--no-identity-net", dest="identity_net", action="store_false", help=text)
    drawing_options(parser)
    width, height = miniature.SIZE
    text = f"WIDTHxHEIGHT (default: a megapixel in the shape of the photo; {MINIATURE}: {width}x{height})"
    parser.add_argument("--size", type=picture_size, help=text)
    text = "for photos without a face: fail, leave the picture out, or draw it without a person"
    parser.add_argument("--no-face", choices=("error", "skip", "none"), default="error", help=text)
    text = "take the pose from a picture that 'keypoints' wrote (default: that of the photo)"
    parser.add_argument("--keypoints", default="", metavar="FILE", help=text)
    parser.add_argument("--image", default="", metavar="PICTURE", help="begin with this picture in place of noise")
    parser.add_argument("--strength", type=float, default=0.8, metavar="X", help="how much --image changes, 0 to 1")
    text = "another ControlNet, its picture, and its scale, 1 by default; repeat it for several"
    parser.add_argument("--controlnet", nargs="+", action="append", metavar=("PATH", "PICTURE"), help=text)
    text = "few steps without guidance: lcm, lightning, dmd2, hyper or turbo; see docs/guides/few_steps.md"
    parser.add_argument("--profile", default="", metavar="NAME", help=text)
    alike = parser.add_argument_group("likeness", "of the picture's face to the person; not computed by default")
    alike.add_argument("--likeness", action="store_true", help="tell it, as a cosine and a word")
    text = "draw again, from other seeds, until it is at least this; the most alike picture is kept"
    alike.add_argument("--at-least", type=float, metavar="X", help=text)
    alike.add_argument("--tries", type=int, default=4, metavar="K", help="for --at-least: draw so often at most")


def _default(name: str) -> str:
    """Return the folder of a model for a help text, in which argparse formats ``%``."""
    return str(models_folder() / name).replace("%", "%%")


def _cache(folder: str) -> Any:
    from ..cache import Cache

    return Cache(directory=folder)
