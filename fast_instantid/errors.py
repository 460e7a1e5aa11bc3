"""What can go wrong at the boundary, one name each.

Every message says what was found and what to do about it. All of them are ``ValueError`` s, so a caller that does not
care which one it was needs to know none of these names.
"""

from __future__ import annotations


class FastInstantIDError(ValueError):
    """Anything this package refuses; the command line shows its text without a traceback."""


class ImageError(FastInstantIDError):
    """A picture that cannot be read or used."""


class NoFaceError(FastInstantIDError):
    """A picture in which no face was found, where one is needed."""


class ModelFileError(FastInstantIDError):
    """A model file that is missing, damaged or of another kind than the one asked for."""


class BackendError(FastInstantIDError):
    """A backend, device or execution provider that cannot do what was asked of it."""


class OfflineError(FastInstantIDError):
    """Something that would need the network, which was not allowed."""
