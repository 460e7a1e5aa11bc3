"""Pictures of a batch: folders, patterns, tables of paths, local or in any file system of fsspec."""

from __future__ import annotations

import csv
import errno
import io
import logging
import os
import posixpath
import re
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
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
_NO_PICTURE = re.compile(r"\..*|_run\.json|part-\d+\.parquet", re.DOTALL)
"""Names that a pattern leaves out: hidden ones, and those of results, which grow beside the pictures."""
_OF_ONE_FILE = ("ENOENT", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "ELOOP", "ENAMETOOLONG", "EINVAL")


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
    local, is_url = _local(path), "http://" in path or "https://" in path
    try:
        if local is not None:
            return photos(local)[0]
        import fsspec

        with fsspec.open(path, "rb") as file:
            content: bytes = file.read()  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # the errors of storages share no base
        cause = error.__cause__ if isinstance(error, ImageError) else error
        while is_url and isinstance(cause, FileNotFoundError) and cause.__cause__:  # fsspec makes that of any error
            cause = cause.__cause__
        if _is_of_one_file(cause, is_url, local is not None):
            raise error if isinstance(error, ImageError) else ImageError(f"{path}: cannot be read ({error})") from cause
        why = f"{type(cause).__name__}: {cause}"
        raise FastInstantIDError(f"{path}: the storage fails ({why}); the same command goes on from here") from cause
    return read_photo(io.BytesIO(content), path)


def _is_of_one_file(error: BaseException | None, is_url: bool, is_local: bool) -> bool:
    """Whether an error of reading comes from one file, or its content, and not from a storage that fails."""
    if is_url and (status := getattr(error, "status", None)):
        return status in (401, 403, 404, 410)
    if isinstance(error, OSError) and error.errno:
        return errno.errorcode.get(error.errno) in _OF_ONE_FILE
    damage = (FileNotFoundError, PermissionError, IsADirectoryError, BadZipFile, zlib.error, EOFError)
    return is_local or isinstance(error, damage) or (is_url and isinstance(error, ValueError))


def folder_of(paths: Iterable[str]) -> str | None:
    """The folder that holds all local ones of some pictures, in its subfolders too."""
    folders = {os.path.dirname(local) for path in paths if (local := _local(path))}
    with suppress(ValueError):  # of nothing, or on several drives
        return os.path.commonpath([*map(os.path.abspath, folders)])


def is_gone(folder: str) -> bool:
    """Whether a folder is missing, or empty as the place of a disk that is not mounted."""
    with suppress(FileNotFoundError), os.scandir(folder) as inside:
        return not any(inside)
    return True


def _local(path: str) -> str | None:
    """The path of a local file, also of one that begins with ``file://``; None in other file systems."""
    inside = re.sub("^(file|local)://(/(?=[A-Za-z]:/))?", "", path)
    return None if "://" in inside else inside


def located(path: str) -> tuple[Any, str]:
    """The file system of a path and the path in it.

    Raises:
        FastInstantIDError: an unknown protocol, or one whose package is not installed.
    """
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    if (local := _local(path)) is not None:
        return LocalFileSystem(skip_instance_cache=True), Path(os.path.abspath(local)).as_posix()
    with _told(f"{path}: fsspec cannot open such paths here"):
        return url_to_fs(path, skip_instance_cache=True)


@contextmanager
def _told(what: str) -> Generator[None]:
    """Turn any error of the block into a FastInstantIDError: those of storages share no base."""
    try:
        yield
    except FastInstantIDError:
        raise
    except Exception as error:
        raise FastInstantIDError(f"{what}: {str(error) or type(error).__name__}") from error


def _of_source(source: str, column: str | None) -> Iterable[str]:
    if not source:
        raise FastInstantIDError("an empty name in place of pictures: '.' is this folder")
    system, inner = located(source)
    if "ls" not in vars(system):  # as of systems that are asynchronous, which cannot be changed so
        system.ls = partial(_ls, system.ls)
    with _told(f"{source}: cannot be read"):
        if system.isfile(inner) and not (inner.endswith("/") and system.isdir(inner)):  # of HTTP, a page may be both
            kind = os.path.splitext(inner)[1].lower()
            return _of_table(source, system, inner, column) if kind in (".csv", ".parquet") else [source]
        if system.isdir(inner):
            names = _pictures(source, inner, system.find(inner))
        elif "*" in source or "?" in source or "[" in source:
            found: dict[str, Any] = system.glob(inner, detail=True)
            links = {name for name, is_ in found.items() if is_.get("islink") and system.isfile(name)}
            names = [name for name, is_ in found.items() if is_["type"] == "file" or name in links]
            names = [name for name in names if not _NO_PICTURE.fullmatch(posixpath.basename(name))]
        else:
            raise FastInstantIDError(f"{source}: no such file or folder")
    if "://" in source:
        return sorted(_url(source, name) for name in names)
    return sorted(names if os.path.isabs(source) else map(os.path.relpath, names))


def _ls(ls: Callable[..., Any], path: str, *args: Any, **options: Any) -> Any:
    """List a folder. ``find`` and ``glob`` of fsspec pass over one that cannot be read; hidden ones may be."""
    try:
        return ls(path, *args, **options)
    except OSError as error:
        if posixpath.basename(path.rstrip("/")).startswith("."):
            return []
        raise FastInstantIDError(f"{path}: this folder cannot be read: {error.strerror or error}") from error


def _url(source: str, name: str) -> str:
    """The URL of a name in the file system of another one, such as of zip://photos::s3://bucket/a.zip."""
    links = source.split("::") if _local(source) is None else [source]
    place = next(number for number, link in enumerate(links) if "://" in link)
    url = name if "://" in name else f"{links[place].partition('://')[0]}://{name}"
    return "::".join([*links[:place], url, *links[place + 1 :]])


def _pictures(source: str, folder: str, names: Sequence[str]) -> list[str]:
    """The pictures in a folder. It is said what is left out, but for hidden files."""
    shown = [name for name in names if "/." not in "/" + os.path.relpath(name, folder).replace(os.sep, "/")]
    suffixes = {name: posixpath.splitext(name)[1].lower() for name in shown}
    if left := Counter(sorted(suffix for suffix in suffixes.values() if suffix not in SUFFIXES)):
        kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in left.most_common(5))
        logger.warning("%s: left out are %s: pictures of a folder end in %s", source, kinds, ", ".join(SUFFIXES))
    return [name for name, suffix in suffixes.items() if suffix in SUFFIXES]


def _of_table(source: str, system: Any, inner: str, column: str | None) -> Iterator[str]:
    folder = os.path.dirname(inner if "://" in source else source)
    read = _csv if inner.lower().endswith(".csv") else _parquet
    with _told(f"{source}: cannot be read as a table"), system.open(inner, "rb") as file:
        for path in (value or "" for value in read(source, file, column)):
            is_whole = not path or "://" in path or os.path.isabs(path)
            inside = path if is_whole else posixpath.join(folder, path)
            yield inside if is_whole or "://" not in source else _url(source, inside)


def _csv(source: str, file: Any, column: str | None) -> Iterator[str]:
    rows = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
    name = _column(source, [*(rows.fieldnames or ())], column)
    for row in rows:
        if None in row:
            raise FastInstantIDError(
                f"{source}, line {rows.line_num}: more values than columns: quote paths with commas"
            )
        yield (row[name] or "").strip("\r\n")


def _parquet(source: str, file: Any, column: str | None) -> Iterator[str | None]:
    from pyarrow import parquet, types

    table = parquet.ParquetFile(file)
    schema = table.schema_arrow
    name = _column(source, schema.names, column)
    kind = schema.field(name).type
    if str(kind.value_type if types.is_dictionary(kind) else kind) not in ("string", "large_string", "string_view"):
        raise FastInstantIDError(f"{source}: column {name!r} holds {kind}, and no paths; name another with --column")
    for batch in table.iter_batches(columns=[name]):
        yield from batch.column(name).to_pylist()


def _column(source: str, names: Sequence[str], wanted: str | None) -> str:
    if not names:
        raise FastInstantIDError(f"{source}: an empty table: expected a column of paths")
    if ";" in names[0] or "\t" in names[0] or names[0].lower().endswith(SUFFIXES):
        found = f"{names[0][:80]!r} in the first line"
        raise FastInstantIDError(f"{source}: {found}: expected names of columns, such as path, with commas in between")
    usual = [*(name for name in COLUMNS if name in names), *(names if len(names) == 1 else ())]
    if wanted in names or (wanted is None and usual):
        if names.count(name := wanted or usual[0]) > 1:
            raise FastInstantIDError(f"{source}: several columns are named {name!r}: rename all but the one with paths")
        return name
    missing = "no column with paths; name it" if wanted is None else f"no column {wanted!r}"
    raise FastInstantIDError(f"{source}: {missing}: --column takes one of {', '.join(names)}")
