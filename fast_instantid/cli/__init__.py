"""The command line: ``fast-instantid demo | embed | faces | keypoints | person | generate | batch | detail | serve |
download | convert | doctor | watch | profile``."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

from ..errors import BackendError, FastInstantIDError, ModelFileError
from ..sources import no_telemetry
from .output import Remaining, encodable_output, no_memory, report_os_error, say
from .parser import make_parser


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
    try:
        options, unknown = make_parser().parse_known_args(arguments)
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
