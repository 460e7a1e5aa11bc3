"""The parser of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import __version__, miniature
from ..sources import MODELS, models_folder
from . import convert, demo, detail, doctor, person, profile, scale, serve, watch
from .jobs import picture_size
from .models import GUIDANCE, MINIATURE, STEPS
from .output import output, printable_lines
from .scale import positive

if TYPE_CHECKING:
    from ..cache import Cache

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
_APPROXIMATIONS = "off by default; docs/approximations.md gives the cost of each in likeness"
_CACHED = "or a hub id in the hub's local cache"


def make_parser(commands: Mapping[str, Callable[[argparse.Namespace], int]]) -> argparse.ArgumentParser:
    """Return the parser. ``options.run`` becomes the function of the command."""
    parser = _Parser(
        prog="fast-instantid",
        description="Put a real person's face into SDXL pictures, with InstantID.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    models = models_folder()
    shown = {name: str(models / name).replace("%", "%%") for name in MODELS}  # argparse formats help by %

    def command(name: str, text: str, example: str) -> argparse.ArgumentParser:
        epilog = f"example:\n  fast-instantid {name} {example}"
        added = subparsers.add_parser(name, help=text, description=text, epilog=epilog)
        added.set_defaults(run=commands[name], parser=added)
        return added

    def cache_option(added: argparse.ArgumentParser) -> None:
        text = "folder that keeps faces and identities between runs, also set by $FAST_INSTANTID_CACHE"
        added.add_argument("--cache", type=_cache, metavar="DIR", help=text)

    def face_options(added: argparse.ArgumentParser, cached: bool = True) -> None:
        text = f"folder of the face models, or {MINIATURE} (default: {shown['antelopev2']})"
        added.add_argument("--pack", metavar="DIR", help=text)
        added.add_argument("--backend", choices=("torch", "onnxruntime"), default="torch", help="runs the face models")
        added.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: the best one there is)")
        if cached:
            cache_option(added)
        text = "score from which a face counts, above 0 and below 1; a lower one finds more, false ones too"
        added.add_argument("--face-threshold", type=float, default=0.5, metavar="X", help=text)
        less = added.add_argument_group("less work for another result", _APPROXIMATIONS)
        less.add_argument("--face-dtype", default="float32", help="float32, or with torch float16 or bfloat16")
        text = "sides to search at, in turn until a face is found, such as 320 640 (default: 640, 576 ... 192)"
        less.add_argument("--face-sizes", type=int, nargs="+", metavar="PX", help=text)

    def model_options(added: argparse.ArgumentParser) -> None:
        text = f"SDXL: folder, .safetensors, {_CACHED}; or {MINIATURE}, for the small models that are included, then "
        text += f"of --pack and --instantid too; for such a folder write ./{MINIATURE} (default: {shown['base']})"
        added.add_argument("--base", metavar="PATH", help=text)
        text = f"InstantID: folder, {_CACHED}; or {MINIATURE} (default: {shown['instantid']})"
        added.add_argument("--instantid", metavar="PATH", help=text)
        added.add_argument("--dtype", help="float32, float16 or bfloat16 (default: float16 on CUDA, else float32)")

    def drawing_options(added: argparse.ArgumentParser) -> None:
        added.add_argument("--negative-prompt", default="", help="what not to draw")
        model_options(added)
        for options, default, text in (
            (("--scale", "--weight"), 0.8, "scale of the identity branch, 0 to 5"),
            (("--controlnet-conditioning-scale", "--controlnet-strength"), 0.8, "scale of the IdentityNet, 0 to 10"),
            (("--noise",), 0.0, "noise in the unconditional embedding, 0 to 1"),
        ):
            added.add_argument(*options, type=float, default=default, metavar="X", help=text)
        text = f"classifier-free guidance; 1 turns it off (default: {GUIDANCE}; {MINIATURE}: {miniature.GUIDANCE})"
        added.add_argument("--guidance-scale", "--guidance", type=float, metavar="X", help=text)
        text = f"number of sampling steps (default: {STEPS}; {MINIATURE}: {miniature.STEPS})"
        added.add_argument("--num-inference-steps", "--steps", type=int, metavar="N", help=text)
        text = "seed of the first noise; of several, each (default: 0)"
        added.add_argument("--seed", type=int, nargs="+", metavar="N", help=text)
        text = "a LoRA's .safetensors file, and its scale, 1 by default; repeat it for several"
        added.add_argument("--lora", nargs="+", action="append", metavar=("PATH", "SCALE"), help=text)
        text = "diffusers' name of another scheduler, such as EulerDiscreteScheduler; a wrong one lists what there is"
        added.add_argument("--scheduler", default="", metavar="NAME", help=text)
        added.add_argument("--json", action="store_true", help="print output and times as one JSON document")
        face_options(added)
        less = added.add_argument_group("less work for another picture", _APPROXIMATIONS)
        text = "the set that costs little likeness; options of this group that are given too win"
        less.add_argument("--fast", action="store_true", help=text)
        text = "modules of the UNet whose layers get the identity, such as down_blocks up_blocks.0 (default: all)"
        less.add_argument("--layers", nargs="+", metavar="MODULE", help=text)
        for name, what in (("identity", "the identity in the attention"), ("identity-net", "the IdentityNet")):
            text = f"part of the steps with {what}, such as 0 0.8"
            less.add_argument(
                f"--{name}-range", type=float, nargs=2, default=(0.0, 1.0), metavar=("START", "END"), help=text
            )
        less.add_argument(
            "--identity-net-every", type=int, default=1, metavar="N", help="run the IdentityNet at each such step only"
        )

    def person_option(added: Any) -> None:
        text = "files of 'person make', photos, each of another person, or scenes (.json); also folders, and '*.jpg'"
        added.add_argument("--person", nargs="+", metavar="FILE", help=text)

    def generate_options(added: argparse.ArgumentParser) -> None:
        added.add_argument("--prompt", nargs="+", help="what to draw; of several prompts, each")
        text = "take settings that are not given from this picture"
        added.add_argument("--from", dest="settings", type=Path, metavar="PNG", help=text)
        added.add_argument("--batch-size", type=positive, default=4, metavar="N", help="pictures drawn at once at most")
        text = "keep the identity inside of the faces' boxes, so that the prompt alone draws the rest"
        added.add_argument("--enhance-non-face-region", action="store_true", help=text)
        text = "draw without the IdentityNet, which is not loaded then; the prompt sets the pose"
        added.add_argument("--no-identity-net", dest="identity_net", action="store_false", help=text)
        drawing_options(added)
        width, height = miniature.SIZE
        text = f"WIDTHxHEIGHT (default: a megapixel in the shape of the photo; {MINIATURE}: {width}x{height})"
        added.add_argument("--size", type=picture_size, help=text)
        text = "for photos without a face: fail, leave the picture out, or draw it without a person"
        added.add_argument("--no-face", choices=("error", "skip", "none"), default="error", help=text)
        text = "take the pose from a picture that 'keypoints' wrote (default: that of the photo)"
        added.add_argument("--keypoints", default="", metavar="FILE", help=text)
        added.add_argument("--image", default="", metavar="PICTURE", help="begin with this picture in place of noise")
        added.add_argument("--strength", type=float, default=0.8, metavar="X", help="how much --image changes, 0 to 1")
        text = "another ControlNet, its picture, and its scale, 1 by default; repeat it for several"
        added.add_argument("--controlnet", nargs="+", action="append", metavar=("PATH", "PICTURE"), help=text)
        text = "few steps without guidance: lcm, lightning, dmd2, hyper or turbo; see docs/guides/few_steps.md"
        added.add_argument("--profile", default="", metavar="NAME", help=text)
        alike = added.add_argument_group("likeness", "of the picture's face to the person; not computed by default")
        alike.add_argument("--likeness", action="store_true", help="tell it, as a cosine and a word")
        text = "draw again, from other seeds, until it is at least this; the most alike picture is kept"
        alike.add_argument("--at-least", type=float, metavar="X", help=text)
        alike.add_argument("--tries", type=int, default=4, metavar="K", help="for --at-least: draw so often at most")

    demos = command("demo", "draw the person of a portrait in four scenes, on the miniature", "--seed 7")
    demo.add_arguments(demos)
    cache_option(demos)

    embed = command(
        "embed", "print or save the embedding of the largest face of each photo", "*.jpg -o people.safetensors"
    )
    embed.add_argument("photos", nargs="+", metavar="PHOTO", help="picture files")
    embed.add_argument(
        "-o", "--output", type=output, help="write embeddings, boxes and keypoints to a .safetensors file"
    )
    embed.add_argument("--json", action="store_true", help="print everything as one JSON document")
    face_options(embed)

    faces = command("faces", "list the faces of a photo, by the numbers of --index", "group.jpg -o numbered.png")
    faces.add_argument("photo", metavar="PHOTO", help="a picture file")
    faces.add_argument("-o", "--output", type=output, help="write the photo with a numbered box around each face")
    faces.add_argument("--json", action="store_true", help="print one JSON document")
    face_options(faces)

    keypoints = command("keypoints", "draw the keypoint picture of a photo", "anna.jpg -o hint.png")
    keypoints.add_argument("photo", metavar="PHOTO", help="a picture file")
    keypoints.add_argument("-o", "--output", type=output, required=True, help="the picture to write")
    keypoints.add_argument("--all", action="store_true", help="all faces, not only the largest")
    face_options(keypoints)

    people = command(
        "person", "keep a person in a file, and compare persons", "make anna1.jpg anna2.jpg -o anna.safetensors"
    )
    person.add_arguments(people, face_options)

    generate = command(
        "generate", "draw the person of a photo", '--photo anna.jpg --prompt "a watercolour" --scale 0.7 -o anna.png'
    )
    who = generate.add_mutually_exclusive_group()
    who.add_argument("--photo", nargs="+", help="photos of one person; the first gives the pose")
    person_option(who)
    text = "a picture for each line; columns: person, prompt, seed, other options with _ for -; options give the rest"
    who.add_argument("--jobs", type=Path, metavar="CSV", help=text)
    generate_options(generate)
    text = "the picture to write; of several pictures, their folder"
    generate.add_argument("-o", "--output", type=output, required=True, help=text)

    batches = command(
        "batch", "work on many pictures, with several processes or machines", "embed photos -o embeddings"
    )
    scale.add_arguments(batches, face_options, person_option, generate_options)

    details = command(
        "detail",
        "draw the faces of a picture again, each at the resolution of the model",
        'group.png --person anna.safetensors bob.safetensors --prompt "two people in a bar" -o better.png',
    )
    detail.add_arguments(details)
    drawing_options(details)

    served = command("serve", "answer requests for faces, persons and pictures over HTTP", "--base miniature")
    model_options(served)
    face_options(served, cached=False)
    serve.add_arguments(served)

    fetch = command("download", "download the model files; no other command uses the network", "antelopev2 instantid")
    fetch.add_argument("models", nargs="*", type=_model, metavar="MODEL", help=f"{', '.join(MODELS)} (default: all)")
    fetch.add_argument("--to", type=Path, default=models, help="folder, also set by $FAST_INSTANTID_MODELS")
    fetch.add_argument("--offline", action="store_true", help="check only; download nothing")

    convert.add_arguments(
        command("convert", "convert the adapter to half precision", "models/instantid/ip-adapter.bin")
    )
    doctor.add_arguments(command("doctor", "check this machine and its model files", "--json"))
    watch.add_arguments(command("watch", "watch the GPUs and detect swapping of their memory", "-- python main.py"))
    profile.add_arguments(
        command(
            "profile", "show where the time of a command goes", '-- generate --photo anna.jpg --prompt "a" -o anna.png'
        )
    )
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


def _cache(folder: str) -> Cache:
    from ..cache import Cache

    return Cache(directory=folder)


def _model(name: str) -> str:
    if name not in MODELS:
        raise argparse.ArgumentTypeError(f"unknown model {name!r}: choose from {', '.join(MODELS)}")
    return name
