"""The command line: ``fast-instantid demo | embed | faces | keypoints | person | generate | batch | detail | serve |
download | convert | doctor | watch | profile``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from ..errors import BackendError, FastInstantIDError, ModelFileError, first_line
from ..sources import no_telemetry
from .output import Remaining, encodable_output, report_os_error, say
from .parser import make_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed (stderr says why), 2 wrong usage, 130 interrupted."""
    no_telemetry()
    handler, logger = _Warnings(), logging.getLogger("fast_instantid")
    logger.addHandler(handler)  # other handlers stay as they are
    try:
        with encodable_output():
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
        from ..placement import is_out_of_memory

        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        say(f"error: out of memory; try a smaller --size, or on a GPU --dtype float16 ({first_line(error)})")
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        Remaining.show()  # before a traceback
    return 1
