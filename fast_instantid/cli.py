"""The command line: ``fast-instantid embed | keypoints | generate | download``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .download import MODELS, download, models_folder
from .errors import FastInstantIDError, ImageError

if TYPE_CHECKING:
    from .faces import Face, FaceAnalyzer

_EPILOG = """examples:
  fast-instantid download                                       # the model files, once; nothing else uses the network
  fast-instantid embed anna.jpg bob.jpg -o people.safetensors
  fast-instantid keypoints anna.jpg -o hint.png
  fast-instantid generate --photo anna.jpg --prompt "a watercolour portrait" -o anna.png
"""
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_PHOTOS_AT_ONCE = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0 done, 1 failed (why is on stderr), 2 wrong usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        return options.run(options)
    except FastInstantIDError as error:
        _say(f"error: {error}")
    except OSError as error:
        _say(f"error: {error.filename or 'output'}: {error.strerror or error}")
    except ModuleNotFoundError as error:
        _say(f"error: {error}; for this command: pip install 'fast-instantid[diffusers]'")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which need not be loaded to find out
            raise
        _say(f"error: out of memory ({error}); try --dtype float16, a smaller --size, or --device cpu")
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    return 1


def _embed(options: argparse.Namespace) -> int:
    import torch

    from .weights import write_safetensors

    if options.output:
        _check_output(options.output, (".safetensors",))
    analyzer = _analyzer(options)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(options.photos), _PHOTOS_AT_ONCE):
        _progress(f"{start}/{len(options.photos)} photos")
        rows += _embedded(analyzer, options.photos[start : start + _PHOTOS_AT_ONCE])
    _progress("")
    found = [row for row in rows if "error" not in row]
    if options.output and found:
        names = {"embeddings": "embedding", "keypoints": "kps", "boxes": "bbox"}
        tensors = {name: torch.tensor([row[field] for row in found]) for name, field in names.items()}
        write_safetensors(options.output, tensors, {"photos": json.dumps([row["photo"] for row in found])})
        _say(f"{len(found)} embeddings written to {options.output}")
    if options.json:
        print(json.dumps({"backend": analyzer.backend, "photos": rows}))
    elif not options.output:
        for row in found:
            left, top, right, bottom = row["bbox"]
            numbers = ", ".join(f"{value:.3f}" for value in row["embedding"][:4])
            box = f"{left:.0f},{top:.0f} to {right:.0f},{bottom:.0f}, score {row['det_score']:.2f}"
            print(f"{row['photo']}: {row['faces']} face(s), the largest at {box}: embedding {numbers}, ...")
    for row in rows:
        if "error" in row:
            _say(f"error: {row['error']}")
    return 0 if len(found) == len(rows) else 1


def _embedded(analyzer: FaceAnalyzer, paths: list[str]) -> list[dict[str, Any]]:
    """A row for each photo; one that fails gets an error and does not cost the others."""
    from .faces import largest
    from .images import Photo, photos

    rows: list[dict[str, Any]] = [{"photo": path} for path in paths]
    readable: list[tuple[dict[str, Any], Photo]] = []
    for row in rows:
        try:
            readable.append((row, photos(row["photo"])[0]))
        except ImageError as error:
            row["error"] = str(error)
    detected = analyzer.detect([photo for _, photo in readable]) if readable else []
    with_face: list[tuple[dict[str, Any], Photo, Face]] = []
    for (row, photo), faces in zip(readable, detected, strict=True):
        if not faces:
            row["error"] = f"{photo.name}: no face found"
            continue
        face = largest(faces)
        row |= {"faces": len(faces), "bbox": face.bbox.tolist(), "kps": face.kps.tolist(), "det_score": face.det_score}
        with_face.append((row, photo, face))
    if with_face:
        embeddings = analyzer.embed([photo for _, photo, _ in with_face], [face for _, _, face in with_face])
        for (row, _, _), embedding in zip(with_face, embeddings, strict=True):
            row["embedding"] = embedding.tolist()
    return rows


def _keypoints(options: argparse.Namespace) -> int:
    from PIL import Image

    from .faces import draw_keypoints, largest
    from .images import photos

    _check_output(options.output, _PICTURE_SUFFIXES)
    analyzer = _analyzer(options)
    photo = photos(options.photo)[0]
    faces = analyzer.detect(photo)[0]
    if not faces:
        _say(f"error: {options.photo}: no face found")
        return 1
    shown = faces if options.all else [largest(faces)]
    _save_picture(Image.fromarray(draw_keypoints(photo.size, *(face.kps for face in shown))), options.output)
    _say(f"keypoints of {len(shown)} of {len(faces)} face(s) drawn into {options.output}")
    return 0


def _generate(options: argparse.Namespace) -> int:
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it speaks of torchvision, which nothing here needs
    from PIL import Image

    from .faces import keypoint_picture, largest
    from .identity import Adapter
    from .images import photos
    from .pipelines.generate import InstantIDFiles, Sampling, generate, load_pipeline
    from .placement import Placement

    _check_output(options.output, _PICTURE_SUFFIXES)
    sampling = Sampling(
        negative_prompt=options.negative_prompt,
        weight=options.weight,
        controlnet_strength=options.controlnet_strength,
        steps=options.steps,
        guidance=options.guidance,
        seed=options.seed,
    )
    seconds: dict[str, float] = {}
    placement = Placement.resolve(options.device, options.dtype)
    files = InstantIDFiles.find(options.instantid)
    with _timed("face networks", seconds):
        analyzer = _analyzer(options)
    with _timed("faces", seconds):
        references = photos(options.photo)
        embeddings = analyzer.embed(references)
        face = largest(analyzer.detect(references[0])[0])
        keypoints = Image.fromarray(keypoint_picture(face.kps, references[0].size, options.size))
    with _timed("identity", seconds):
        adapter = Adapter.load(files.adapter, placement.device, placement.dtype)
        identity = adapter.identity(embeddings, noise=options.noise)
    with _timed("pipeline", seconds):
        pipe = load_pipeline(options.base, options.instantid, placement.device, placement.dtype)
    with _timed("sampling", seconds):
        image = generate(pipe, identity, keypoints, options.prompt, sampling, _report_step)[0]
    _save_picture(image, options.output)
    if options.json:
        print(json.dumps({"output": str(options.output), "size": image.size, "seconds": seconds}))
    else:
        times = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
        print(f"{options.output}: {image.width} x {image.height} on {placement.device} ({times})")
    return 0


def _download(options: argparse.Namespace) -> int:
    download(options.models or list(MODELS), options.to, offline=options.offline, report=_say)
    _say(f"all there, in {options.to}")
    return 0


def _analyzer(options: argparse.Namespace) -> FaceAnalyzer:
    from .faces import FaceAnalyzer

    return FaceAnalyzer.load(options.pack, options.backend, options.device)


def _check_output(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse, before any work is done, an output that could not be written after it."""
    if path.suffix.lower() not in suffixes:
        raise FastInstantIDError(f"{path}: the name of the output must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise FastInstantIDError(f"{path}: there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise FastInstantIDError(f"{path}: this is a folder; name a file")
    if not os.access(path.parent, os.W_OK):
        raise FastInstantIDError(f"{path}: the folder {path.parent} may not be written to; choose another")


def _save_picture(image: Any, path: Path) -> None:
    from .weights import atomic_write

    with atomic_write(path) as temporary:
        image.save(temporary)


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Generator[None]:
    _progress(f"{name} ...")
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 3)
    _progress("")


def _report_step(done: int, total: int) -> None:
    _progress(f"sampling: step {done}/{total}")


def _progress(text: str) -> None:
    """One line that is overwritten, for people; nothing where stderr is a file."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _size(text: str) -> tuple[int, int]:
    """``1024x768`` (width x height) as height and width."""
    sides = [int(side) if side.isdecimal() else 0 for side in text.lower().split("x")]
    if len(sides) != 2 or any(side == 0 or side % 8 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}: expected WIDTHxHEIGHT in multiples of 8, such as 1024x1024")
    return sides[1], sides[0]


def _model(name: str) -> str:
    if name not in MODELS:
        raise argparse.ArgumentTypeError(f"{name!r}: choose from {', '.join(MODELS)}")
    return name


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fast-instantid", description="InstantID that pays for a face once.", epilog=_EPILOG, formatter_class=_Help
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    models = models_folder()

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, example: str
    ) -> argparse.ArgumentParser:
        epilog = f"example:\n  fast-instantid {name} {example}"
        added = commands.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=_Help)
        added.set_defaults(run=run)
        return added

    def face_options(added: argparse.ArgumentParser) -> None:
        added.add_argument("--pack", type=Path, default=models / "antelopev2", help="folder of the face models")
        added.add_argument("--backend", choices=("torch", "onnxruntime"), default="torch", help="what runs them")
        added.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: the best one there is)")

    embed = command(
        "embed", _embed, "print or save the embedding of the largest face of each photo", "*.jpg -o people.safetensors"
    )
    embed.add_argument("photos", nargs="+", metavar="PHOTO")
    embed.add_argument("-o", "--output", type=Path, help="write embeddings, boxes and keypoints to a .safetensors file")
    embed.add_argument("--json", action="store_true", help="print everything as one JSON document")
    face_options(embed)

    keypoints = command(
        "keypoints", _keypoints, "draw the keypoint picture that steers the IdentityNet", "anna.jpg -o hint.png"
    )
    keypoints.add_argument("photo", metavar="PHOTO")
    keypoints.add_argument("-o", "--output", type=Path, required=True, help="the picture to write")
    keypoints.add_argument("--all", action="store_true", help="all faces, not only the largest")
    face_options(keypoints)

    generate = command(
        "generate",
        _generate,
        "draw the person of a photo",
        '--photo anna.jpg --prompt "a watercolour portrait" --weight 0.7 -o anna.png',
    )
    generate.add_argument("--photo", nargs="+", required=True, help="one person; keypoints come from the first photo")
    generate.add_argument("--prompt", required=True, help="what to draw")
    generate.add_argument("--negative-prompt", default="", help="what not to draw")
    generate.add_argument(
        "--base", default=str(models / "base"), help="SDXL: diffusers folder, .safetensors, or hub id"
    )
    generate.add_argument("--instantid", default=str(models / "instantid"), help="InstantID: folder or hub id")
    generate.add_argument("--weight", type=float, default=0.8, help="of the identity in the attention")
    generate.add_argument("--controlnet-strength", type=float, default=0.8, help="of the IdentityNet")
    generate.add_argument("--noise", type=float, default=0.0, help="0..1, of the negative identity")
    generate.add_argument("--steps", type=int, default=30, help="of sampling")
    generate.add_argument("--guidance", type=float, default=5.0, help="classifier-free guidance; 1 turns it off")
    generate.add_argument("--seed", type=int, default=0, help="of the noise that sampling starts from")
    generate.add_argument("--size", type=_size, help="WIDTHxHEIGHT (default: a megapixel in the shape of the photo)")
    generate.add_argument("--dtype", help="float32, float16 or bfloat16 (default: float16 on CUDA, else float32)")
    generate.add_argument("-o", "--output", type=Path, required=True, help="the picture to write")
    generate.add_argument("--json", action="store_true", help="print output and times as one JSON document")
    face_options(generate)

    fetch = command(
        "download", _download, "fetch the model files; the only command that uses the network", "antelopev2 instantid"
    )
    fetch.add_argument(
        "models", nargs="*", type=_model, metavar="MODEL", help=f"{', '.join(MODELS)}; all if none is named"
    )
    fetch.add_argument("--to", type=Path, default=models, help="folder, also set by $FAST_INSTANTID_MODELS")
    fetch.add_argument("--offline", action="store_true", help="only check; refuse to fetch")
    return parser


if __name__ == "__main__":
    sys.exit(main())
