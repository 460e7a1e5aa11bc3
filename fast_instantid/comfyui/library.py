"""Files of persons and of poses, by the names that users give them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ..errors import FastInstantIDError, ModelFileError
from ..weights import file_version
from .models import PEOPLE, POSES
from .sockets import checked

_NO_FILE_NAME = re.compile(r'[<>:"/\\|?*\x00-\x1f]|^\.|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)


@dataclass(frozen=True)
class Library:
    """A folder of files of one kind."""

    word: str
    """Of the kind, as in the title of the node that saves it."""
    folder: str
    """The host's name of the folder."""
    suffix: str

    def names(self) -> list[str]:
        return folder_paths.get_filename_list(self.folder)

    def path(self, name: str) -> Path:
        """Return the file of a name; a ModelFileError says which there are."""
        path = folder_paths.get_full_path(self.folder, name)
        if path is None:
            found, folder = ", ".join(self.names()) or "none", folder_paths.get_folder_paths(self.folder)[0]
            advice = f"save one by Save {self.word.title()}"
            raise ModelFileError(f"there is no {self.word} {name!r} in {folder} ({found}): {advice}")
        return Path(path)

    def check(self, name: str | None) -> bool | str:
        """Return True, or what is wrong with a name; None is a link."""
        return checked(self.path, name)

    def version(self, name: str | None) -> str:
        return "" if name is None else str(file_version(self.path(name)))

    def new_paths(self, names: Sequence[str], overwrite: bool) -> list[Path]:
        """Return a path for each name, in the first folder, which is made.

        Raises:
            FastInstantIDError: a name that no file can have, one given twice, or a file to overwrite without leave.
        """
        folder = Path(folder_paths.get_folder_paths(self.folder)[0])
        for given in names:
            if not given or len(given) > 100 or _NO_FILE_NAME.search(given):
                raise FastInstantIDError(f"{given!r} cannot be the name of a file: choose another name")
        twice = sorted({given for given in names if [one.lower() for one in names].count(given.lower()) > 1})
        if twice:
            raise FastInstantIDError(f"{len(names)} people, and several are called {twice[0]}: give a name to the node")
        paths = [folder / f"{given}{self.suffix}" for given in names]
        there = [path.stem for path in paths if path.exists()]
        if there and not overwrite:
            taken = ", ".join(there)
            raise FastInstantIDError(f"{taken} is in {folder} already: choose another name, or turn overwrite on")
        folder.mkdir(parents=True, exist_ok=True)
        return paths


PERSON_FILES = Library("person", PEOPLE, ".safetensors")
POSE_FILES = Library("pose", POSES, ".json")
