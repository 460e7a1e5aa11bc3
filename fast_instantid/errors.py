"""Errors of this package, one class for each kind of refusal.

Every message says what was found and what to do about it.
"""

from __future__ import annotations


class FastInstantIDError(Exception):
    """Base class of all errors raised on purpose; the command line prints them without a traceback."""


class ImageError(FastInstantIDError, ValueError):
    """A picture cannot be read or used."""


class NoFaceError(FastInstantIDError, ValueError):
    """No face was found in a picture that needs one."""


class ModelFileError(FastInstantIDError):
    """A model file is missing, damaged or of another kind."""


class BackendError(FastInstantIDError):
    """A backend, device or execution provider is missing or cannot do what was asked."""


class NotFiniteError(FastInstantIDError, ArithmeticError):
    """A result holds NaN or infinity: mostly because float16 cannot hold it, so that float32 or bfloat16 helps."""


class OfflineError(FastInstantIDError):
    """The network is needed, but its use was not allowed."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading a document raises whose shape is another than expected, with whatever values JSON can hold."""
