"""The persons that a service keeps, and persons as bytes."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from starlette.exceptions import HTTPException

from ...errors import BackendError, FastInstantIDError, ModelFileError
from ...images import MAX_SIDE
from ...people import Person
from .documents import NAME


class PersonStore:
    """Persons in a folder, each under its name; None keeps none. Raises an HTTPException for what cannot be."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise FastInstantIDError(f"{folder}: no folder for persons: {error.strerror}; name another") from error

    def names(self) -> list[str]:
        files = self.folder.glob("*.safetensors") if self.folder else ()
        return sorted(path.stem for path in files if re.fullmatch(NAME, path.stem))

    def read(self, name: str) -> bytes:
        with self._file(name) as path:
            return path.read_bytes()

    def person(self, name: str) -> Person:
        return from_bytes(self.read(name), name)

    def delete(self, name: str) -> None:
        with self._file(name) as path:
            path.unlink()

    def check_free(self, name: str) -> None:
        with self._file(name) as path:
            if path.exists():
                raise FileExistsError

    def keep(self, person: Person) -> None:
        """Keep a person under its name, without a picture of the face: whole, or not at all."""
        with self._file(person.name) as path:
            # What a killed process leaves is removed like its other temporary files (files.sweep).
            temporary = path.with_name(f".fast-instantid-{secrets.token_hex(8)}.safetensors")
            try:
                person.save(temporary, picture=False)
                try:
                    os.link(temporary, path)  # which replaces nothing
                except FileExistsError:
                    raise
                except OSError:  # a file system without links, such as SMB
                    self.check_free(person.name)
                    temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def _file(self, name: str) -> Generator[Path]:
        if self.folder is None:
            raise HTTPException(404, "this service keeps no persons: send photos or person_files")
        try:
            yield self.folder / f"{name}.safetensors"
        except FileNotFoundError:
            if not self.folder.is_dir():
                raise BackendError(f"{self.folder}: this folder of persons is gone") from None
            raise HTTPException(404, f"no person {name!r} here") from None
        except FileExistsError:
            said = f"there is a person {name!r}: delete it first, or choose another name"
            raise HTTPException(409, said) from None


def as_bytes(person: Person) -> bytes:
    """The file of a person."""
    with tempfile.TemporaryDirectory() as folder:  # which only its owner can read
        person.save(Path(folder, "person.safetensors"))
        return Path(folder, "person.safetensors").read_bytes()


def from_bytes(data: bytes, name: str) -> Person:
    """A person from its file. A ModelFileError about ``name`` if it is damaged, or if its numbers would overflow."""
    # Pickles are not for strangers, and a person has a few hundred tensors.
    if data[8:9] != b"{" or int.from_bytes(data[:8], "little") > 1 << 20:
        raise ModelFileError(f"{name}: not a .safetensors file of a person")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "person.safetensors")
        path.write_bytes(data)
        try:
            person = Person.load(path)
        except ModelFileError as error:
            raise ModelFileError(str(error).replace(str(path), name)[:1000]) from None
    with np.errstate(all="ignore"):
        rows, points = [person.embeddings, person.rows], [person.keypoints, person.face.bbox, person.photo_size]
        # Recognisers give about 10.
        usual = all(np.abs(array).max() <= most for most, arrays in ((1e3, rows), (1e5, points)) for array in arrays)
        if not usual or not 1 <= min(person.photo_size) <= max(person.photo_size) <= MAX_SIDE:
            raise ModelFileError(f"{name}: embeddings above 1000, or points beyond 100,000 pixels: no person")
    return replace(person, name=name)
