"""The command line: ``fast-instantid demo | embed | faces | keypoints | person | generate | batch | detail | serve |
download | convert | doctor | watch | profile``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..download import download
from ..errors import BackendError, FastInstantIDError, ImageError, ModelFileError, NoFaceError
from ..observe.table import printable
from ..recorder import stage
from ..sources import MODELS, no_telemetry
from . import convert, demo, detail, doctor, generate, person, profile, scale, serve, watch
from .models import face_analyzer, face_pack
from .output import (
    PICTURE_SUFFIXES,
    Remaining,
    check_output,
    encodable_output,
    no_memory,
    print_json,
    progress,
    report_os_error,
    save_picture,
    say,
)
from .parser import make_parser

if TYPE_CHECKING:
    from ..faces import Face, FaceAnalyzer

_PHOTOS_AT_ONCE = 8
_NO_FACE = "no face found; use a picture that shows the face upright and unobstructed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed (stderr says why), 2 wrong usage, 130 interrupted."""
    no_telemetry()
    handler, logger = _Warnings(), logging.getLogger("fast_instantid")
    logger.addHandler(handler)  # other handlers stay as they are
    try:
        with encodable_output(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Image size .* exceeds limit", append=True)  # Pillow's, of 90 megapixels
            return run_command(arguments)
    finally:
        logger.removeHandler(handler)


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        kind, error, _ = record.exc_info or (None, None, None)
        say(f"{record.levelname.lower()}: {record.getMessage()}{f': {kind.__name__}: {error}' if kind else ''}")


def run_command(arguments: Sequence[str] | None) -> int:
    """Run a command and return its exit code. :func:`main` adds the log handler."""
    commands = {
        "demo": demo.run,
        "embed": _embed,
        "faces": _faces,
        "keypoints": _keypoints,
        "person": person.run,
        "generate": generate.run,
        "batch": scale.run,
        "detail": detail.run,
        "serve": serve.run,
        "download": _download,
        "convert": convert.run,
        "doctor": doctor.run,
        "watch": watch.run,
        "profile": profile.run,
    }
    try:
        options, unknown = make_parser(commands).parse_known_args(arguments)
        if unknown:  # refused by the command itself, with its own usage
            options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        code = options.run(options)
        sys.stdout.flush()  # fails here, where that can be said
        return code
    except FastInstantIDError as error:
        say(f"error: {error}")
        if isinstance(error, (BackendError, ModelFileError)):
            say("'fast-instantid doctor' checks the installation, and says what to do")
    except OSError as error:
        report_os_error(error)
    except ModuleNotFoundError as error:
        say(f"error: {error}; 'fast-instantid doctor' says how to install what is missing")
    except (MemoryError, RuntimeError) as error:
        if not (told := no_memory(error)):
            raise
        say(f"error: {told}")
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        Remaining.show()  # before a traceback
    return 1


def _embed(options: argparse.Namespace) -> int:
    with stage("import"):
        import torch

        from ..weights import write_safetensors

    if options.output:
        check_output(options.output, (".safetensors",))
    analyzer = face_analyzer(options, face_pack(options))
    rows: list[dict[str, Any]] = []
    for start in range(0, len(options.photos), _PHOTOS_AT_ONCE):
        progress(f"{start}/{len(options.photos)} photos")
        rows += _embedded(analyzer, options.photos[start : start + _PHOTOS_AT_ONCE])
    progress("")
    found = [row for row in rows if "error" not in row]
    if options.output and found:
        names = {"embeddings": "embedding", "keypoints": "kps", "boxes": "bbox"}
        tensors = {name: torch.tensor([row[field] for row in found]) for name, field in names.items()}
        write_safetensors(options.output, tensors, {"photos": json.dumps([row["photo"] for row in found])})
        say(f"{len(found)} embeddings written to {options.output}")
    if options.json:
        print_json({"backend": analyzer.backend, "photos": rows})
    elif not options.output:
        for row in found:
            left, top, right, bottom = row["bbox"]
            numbers = ", ".join(f"{value:.3f}" for value in row["embedding"][:4])
            box = f"{left:.0f},{top:.0f} to {right:.0f},{bottom:.0f}, score {row['det_score']:.2f}"
            print(f"{printable(row['photo'])}: {row['faces']} face(s), the largest at {box}: embedding {numbers}, ...")
    for row in rows:
        if "error" in row:
            say(f"error: {row['error']}")
    return 0 if len(found) == len(rows) else 1


def _embedded(analyzer: FaceAnalyzer, paths: list[str]) -> list[dict[str, Any]]:
    """Return a row for each photo. A photo that fails gets an error in its row."""
    from ..faces import largest
    from ..images import Photo, photos

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
            row["error"] = f"{photo.name}: {_NO_FACE}"
            continue
        face = largest(faces)
        row |= {"faces": len(faces), "bbox": face.bbox.tolist(), "kps": face.kps.tolist(), "det_score": face.det_score}
        with_face.append((row, photo, face))
    if with_face:
        embeddings = analyzer.embed([photo for _, photo, _ in with_face], [face for _, _, face in with_face])
        for (row, _, _), embedding in zip(with_face, embeddings, strict=True):
            row["embedding"] = embedding.tolist()
    return rows


def _faces(options: argparse.Namespace) -> int:
    with stage("import"):
        from ..images import one_photo
        from ..people import find_faces, numbered, ordered
        from ..people.search import no_face

    if options.output:
        check_output(options.output, PICTURE_SUFFIXES, [options.photo])
    analyzer = face_analyzer(options, face_pack(options))
    photo = one_photo(options.photo)
    faces = ordered(find_faces(analyzer, photo)[0], "left to right")
    if not faces:
        raise no_face(analyzer, [photo.name])
    if options.output:
        save_picture(numbered(photo, faces), options.output)
        say(f"{len(faces)} face(s) numbered in {options.output}")
    if options.json:
        rows = [{"bbox": face.bbox.tolist(), "kps": face.kps.tolist(), "det_score": face.det_score} for face in faces]
        print_json({"photo": options.photo, "size": photo.size, "faces": rows})
        return 0
    for number, face in enumerate(faces):
        left, top, right, bottom = face.bbox.round().astype(int)
        print(f"{number}: {right - left}x{bottom - top} pixels at {left},{top}, score {face.det_score:.2f}")
    return 0


def _keypoints(options: argparse.Namespace) -> int:
    with stage("import"):
        from PIL import Image

        from ..faces import draw_keypoints, largest
        from ..images import photos

    check_output(options.output, PICTURE_SUFFIXES, [options.photo])
    analyzer = face_analyzer(options, face_pack(options))
    photo = photos(options.photo)[0]
    faces = analyzer.detect(photo)[0]
    if not faces:
        raise NoFaceError(f"{options.photo}: {_NO_FACE}")
    shown = faces if options.all else [largest(faces)]
    points = json.dumps([face.kps.tolist() for face in shown])  # at another size, 'generate' draws them again
    save_picture(Image.fromarray(draw_keypoints(photo.size, *shown)), options.output, keypoints=points)
    say(f"keypoints of {len(shown)} of {len(faces)} face(s) drawn into {options.output}")
    return 0


def _download(options: argparse.Namespace) -> int:
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it warns of each retry; our error says all of it once
    download(options.models or list(MODELS), options.to, offline=options.offline, report=say)
    say(f"all there, in {options.to}")
    return 0
