"""Pictures of a batch: folders, patterns, tables of paths, local or in any file system of fsspec."""

from __future__ import annotations

import csv
import io
import logging
import os
import posixpath
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any
from zipfile import BadZipFile

from ..errors import BackendError, FastInstantIDError, ImageError
from ..images import Photo, photos, read_photo

logger = logging.getLogger("fast_instantid")

for _package in ("fsspec", "pyarrow"):
    if find_spec(_package) is None:
        raise BackendError(f"batches of pictures need {_package}: pip install 'fast-instantid[batch]'")

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Files of a folder that count as pictures. A pattern or a table may name others."""
COLUMNS = ("path", "file", "filename", "image", "picture", "photo", "url")
"""Names of the column with paths, the first that a table has."""


def listed(sources: Sequence[str], column: str | None = None) -> list[str]:
    """The paths of all pictures, in a fixed order: those of a folder or pattern sorted, those of a table as they come.

    Args:
        sources: pictures, folders (searched with their subfolders, without hidden files), patterns with ``*``, and
            ``.csv`` or ``.parquet`` tables. Relative paths in a table begin at its folder.
        column: of the tables; by default the first of :data:`COLUMNS`, or the only one.

    Raises:
        FastInstantIDError: a source without pictures, a table that cannot be read, or an unknown column or protocol.
    """
    found: list[str] = []
    for source in sources:
        paths = [*_of_source(source, column)]
        if not paths:
            raise FastInstantIDError(f"{source}: no pictures there, or rows; pictures end in {', '.join(SUFFIXES)}")
        found += paths
    for path in {path.partition("://")[0]: path for path in found if "://" in path}.values():  # one of each protocol
        located(path)
    return found


def photo_at(path: str) -> Photo:
    """Read one picture.

    Raises:
        ImageError: it is missing, forbidden or no picture.
        FastInstantIDError: its storage fails, which says nothing of the picture.
    """
    if not path:
        raise ImageError("no path in this row of the table")
    if "://" not in path:
        return photos(path)[0]
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            content: bytes = file.read()  # pyright: ignore[reportAttributeAccessIssue]
    except (FileNotFoundError, PermissionError, IsADirectoryError, BadZipFile, zlib.error, EOFError) as error:
        raise ImageError(f"{path}: cannot be read ({error})") from error
    except Exception as error:  # the errors of storages share no base
        why = f"{type(error).__name__}: {error}"
        raise FastInstantIDError(f"{path}: the storage fails ({why}); the same command goes on from here") from error
    return read_photo(io.BytesIO(content), path)


def located(path: str) -> tuple[Any, str]:
    """The file system of a path and the path in it.

    Raises:
        FastInstantIDError: an unknown protocol, or one whose package is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(path)
    except (ImportError, ValueError, OSError) as error:
        raise FastInstantIDError(f"{path}: fsspec cannot open such paths here: {error}") from error


def _of_source(source: str, column: str | None) -> Iterable[str]:
    if not source:
        raise FastInstantIDError("an empty name in place of pictures: '.' is this folder")
    system, inner = located(source)
    is_url = "://" in source
    try:
        if system.isfile(inner):
            kind = os.path.splitext(inner)[1].lower()
            return _of_table(source, system, inner, column) if kind in (".csv", ".parquet") else [source]
        if system.isdir(inner):
            names = _pictures(source, inner, system.find(inner))
        elif "*" in source or "?" in source or "[" in source:
            there: dict[str, Any] = system.glob(inner, detail=True)
            hidden = {name for name in there if posixpath.basename(name).startswith(".")}
            names = [name for name, facts in there.items() if facts["type"] == "file" and name not in hidden]
        else:
            raise FastInstantIDError(f"{source}: no such file or folder")
    except (OSError, ValueError) as error:
        raise FastInstantIDError(f"{source}: cannot be read: {error}") from error
    if is_url:
        links = source.split("::")  # of a chain, such as zip://photos::s3://bucket/a.zip
        place = next(number for number, link in enumerate(links) if "://" in link)
        protocol = links[place].partition("://")[0]
        urls = [name if "://" in name else f"{protocol}://{name}" for name in names]
        return sorted("::".join([*links[:place], url, *links[place + 1 :]]) for url in urls)
    return sorted(names if os.path.isabs(source) else map(os.path.relpath, names))


def _pictures(source: str, folder: str, names: Sequence[str]) -> list[str]:
    """The pictures in a folder. It is said what is left out, but for hidden files."""
    shown = [
        name
        for name in names
        if not any(part.startswith(".") for part in os.path.relpath(name, folder).replace(os.sep, "/").split("/"))
    ]
    suffixes = {name: posixpath.splitext(name)[1].lower() for name in shown}
    if left := Counter(sorted(suffix for suffix in suffixes.values() if suffix not in SUFFIXES)):
        kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in left.most_common(5))
        logger.warning("%s: left out are %s: pictures of a folder end in %s", source, kinds, ", ".join(SUFFIXES))
    return [name for name, suffix in suffixes.items() if suffix in SUFFIXES]


def _of_table(source: str, system: Any, inner: str, column: str | None) -> Iterator[str]:
    join, folder = (
        (posixpath.join, posixpath.dirname(source)) if "://" in source else (os.path.join, os.path.dirname(source))
    )
    try:
        with system.open(inner, "rb") as file:
            for value in (
                _csv(source, file, column) if inner.lower().endswith(".csv") else _parquet(source, file, column)
            ):
                path = str(value or "").strip()
                yield path if not path or "://" in path else join(folder, path)
    except (OSError, ValueError, csv.Error) as error:
        raise FastInstantIDError(f"{source}: cannot be read as a table: {error}") from error


def _csv(source: str, file: Any, column: str | None) -> Iterator[str | None]:
    rows = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
    name = _column(source, [*(rows.fieldnames or ())], column)
    for row in rows:
        yield row[name]


def _parquet(source: str, file: Any, column: str | None) -> Iterator[str | None]:
    from pyarrow import parquet

    table = parquet.ParquetFile(file)
    schema = table.schema_arrow
    name = _column(source, schema.names, column)
    if str(kind := schema.field(name).type) not in ("string", "large_string", "string_view"):
        raise FastInstantIDError(f"{source}: column {name!r} holds {kind}, and no paths; name another with --column")
    for batch in table.iter_batches(columns=[name]):
        yield from batch.column(0).to_pylist()


def _column(source: str, names: Sequence[str], wanted: str | None) -> str:
    if not names:
        raise FastInstantIDError(f"{source}: an empty table: expected a column of paths")
    if ";" in names[0] or "\t" in names[0] or names[0].lower().endswith(SUFFIXES):
        found = f"{names[0][:80]!r} in the first line"
        raise FastInstantIDError(f"{source}: {found}: expected names of columns, such as path, with commas in between")
    usual = [*(name for name in COLUMNS if name in names), *(names if len(names) == 1 else ())]
    if wanted in names or (wanted is None and usual):
        return wanted or usual[0]
    missing = "no column with paths; name it" if wanted is None else f"no column {wanted!r}"
    raise FastInstantIDError(f"{source}: {missing}: --column takes one of {', '.join(names)}")
