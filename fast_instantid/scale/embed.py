"""Embeddings of whole photo libraries: a unit of pictures becomes one Parquet file with a row for each face."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..errors import FastInstantIDError, ImageError
from ..faces import FaceAnalyzer
from ..faces.recognizer import EMBEDDING_DIM
from ..files import atomic_write
from ..images import Photo
from ..people import ordered
from .inputs import is_gone, photo_at
from .run_folder import is_whole

BATCHES = 8  # of pictures, in one file
_PIXELS = 64_000_000  # in a batch: larger pictures make smaller batches


class Unit(NamedTuple):
    """The pictures of one file."""

    file_name: str
    paths: list[str]


def units_of(paths: Sequence[str], batch_size: int) -> list[Unit]:
    """Cut the list of all pictures into units, which depend on nothing else."""
    starts = range(0, len(paths), size := BATCHES * batch_size)
    digits = max(5, len(str(len(starts) - 1)))  # as many in each name: readers sort them
    return [Unit(f"part-{i:0{digits}}.parquet", [*paths[start : start + size]]) for i, start in enumerate(starts)]


def is_done(path: Path) -> bool:
    """Whether a unit's file is there, and whole."""
    from pyarrow import BufferReader, parquet

    def read(file: Any) -> object:
        # From memory: threads of Arrow that call Python for a file may abort the process at its end.
        return parquet.ParquetFile(BufferReader(file.read()), page_checksum_verification=True).read(use_threads=False)

    return is_whole(path, read)


def embed_unit(
    analyzer: FaceAnalyzer, roots: Sequence[str], folder: Path, batch_size: int, unit: Unit
) -> dict[str, int]:
    """Write the file of a unit, and count its pictures, faces and errors.

    Args:
        roots: folders of the pictures. If one is missing or empty, a picture that is not there ends the run.
        batch_size: pictures that are searched at once.
    """
    from pyarrow import parquet

    path = folder / unit.file_name
    if not path.exists():  # else a worker wrote it, and died before it could say so
        rows = [row for batch in _batches(unit.paths, batch_size, roots) for row in _rows(analyzer, batch)]
        _write(path, rows, analyzer.networks.recognizer_fingerprint)
    column = parquet.read_table(path, columns=["error"], use_threads=False)["error"]
    errors = len(column) - column.null_count
    return {"pictures": len(unit.paths), "faces": column.null_count, "errors": errors}


def _write(path: Path, rows: list[dict[str, Any]], recognizer: str) -> None:
    import pyarrow
    from pyarrow import parquet

    point = pyarrow.list_(pyarrow.float32(), 2)
    schema = pyarrow.schema(
        {
            "path": pyarrow.string(),
            "face": pyarrow.int32(),
            "box": pyarrow.list_(pyarrow.float32(), 4),
            "keypoints": pyarrow.list_(point, 5),
            "score": pyarrow.float32(),
            "embedding": pyarrow.list_(pyarrow.float32(), EMBEDDING_DIM),
            "error": pyarrow.string(),
        },
        {"fast_instantid": __version__, "recognizer": recognizer},
    )
    for row in rows:  # names of files may hold any bytes, and UTF-8 cannot
        row |= {name: row[name].encode(errors="backslashreplace").decode() for name in ("path", "error") if name in row}
    with atomic_write(path, private=True) as temporary:
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema), temporary, write_page_checksum=True)


def _batches(paths: Sequence[str], size: int, roots: Sequence[str]) -> Iterator[list[tuple[str, Photo | ImageError]]]:
    """Read pictures, and yield at most ``size`` of them, and not many more pixels than memory should hold."""
    batch: list[tuple[str, Photo | ImageError]] = []
    pixels = 0
    for path in paths:
        try:
            photo = photo_at(path)
            pixels += photo.width * photo.height
            batch.append((path, photo))
        except ImageError as error:
            # A disk that is no longer mounted says nothing of the picture.
            if isinstance(error.__cause__, FileNotFoundError) and (gone := next(filter(is_gone, roots), None)):
                raise FastInstantIDError(f"{error}: {gone} is gone or empty; the same command goes on later") from error
            batch.append((path, error))
        if len(batch) == size or pixels >= _PIXELS:
            yield batch
            batch, pixels = [], 0
    yield batch


def _rows(analyzer: FaceAnalyzer, batch: Sequence[tuple[str, Photo | ImageError]]) -> list[dict[str, Any]]:
    """A row for each face, from left to right, and one for each picture without a face."""
    photos = [photo for _, photo in batch if isinstance(photo, Photo)]
    try:
        found = [ordered(faces, "left to right") for faces in (analyzer.detect(photos) if photos else [])]
        each = [(photo, face) for photo, faces in zip(photos, found, strict=True) for face in faces]
        embeddings = iter(analyzer.embed([photo for photo, _ in each], [face for _, face in each]) if each else ())
    except FastInstantIDError as error:  # of one picture, which is found among them
        if len(batch) == 1:
            return [{"path": batch[0][0], "error": str(error)}]
        return [row for one in batch for row in _rows(analyzer, [one])]
    rows: list[dict[str, Any]] = []
    of_photo = iter(found)
    for path, photo in batch:
        if not isinstance(photo, Photo):
            rows.append({"path": path, "error": str(photo)})
            continue
        faces = next(of_photo)
        if not faces:
            rows.append({"path": path, "error": "no face found"})
        for number, face in enumerate(faces):
            row = {"path": path, "face": number, "box": face.bbox, "keypoints": face.kps.tolist()}
            rows.append({**row, "score": face.det_score, "embedding": next(embeddings)})
    return rows
