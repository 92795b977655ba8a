"""The one edge where errors become a message, a mend and an exit code."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from tutelage.cli.console import errors, say_problem
from tutelage.errors import (
    ConfigError,
    DataError,
    DiskFullError,
    IsolationError,
    ModelError,
    OutOfMemoryError,
    RunDirError,
    TemplateError,
    TrainingError,
    TutelageError,
    UnsafeError,
)
from tutelage.files.atomic import write_text
from tutelage.files.room import is_full
from tutelage.redact import redact

EXIT_FILE = 74
EXIT_CODES: dict[type[TutelageError], int] = {
    ConfigError: 2,
    DataError: 3,
    TemplateError: 4,
    ModelError: 5,
    TrainingError: 6,
    IsolationError: 7,
    RunDirError: 8,
    UnsafeError: 9,
    DiskFullError: EXIT_FILE,
    OutOfMemoryError: 76,
}
EXIT_UNHEARD, EXIT_INTERRUPTED = 1, 130  # typer's own
EXIT_UNEXPECTED = 70
EXIT_MEANINGS = {
    0: "done",
    EXIT_UNHEARD: "nobody reads the output any more",
    2: "configuration or usage",
    3: "data",
    4: "chat template",
    5: "model",
    6: "training",
    7: "documents of a pack influence each other",
    8: "run directory",
    9: "refused as unsafe",
    EXIT_UNEXPECTED: "unexpected",
    EXIT_FILE: "a file cannot be read or written, or the disk is full",
    75: "stopped by a signal or by train.max_minutes; the same command goes on",
    76: "out of memory; the same command goes on with smaller passes",
    EXIT_INTERRUPTED: "interrupted by Ctrl-C, where there is no run to stop",
}
TRACEBACK_VARIABLE = "TUTELAGE_TRACEBACK"


def guard(command: Callable[[], None]) -> int:
    """Run `command` and return the exit code of the process; whatever it raises is told to the user, without secrets."""
    _escape_what_cannot_be_shown()
    try:
        command()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except TutelageError as error:
        _show_traceback_if_asked()
        say_problem(redact(error.problem), redact(error.mend))
        return exit_code(error)
    except OSError as error:
        _show_traceback_if_asked()
        mend = f"{TRACEBACK_VARIABLE}=1 shows where it happened"
        if is_full(error):
            mend = "make room on that disk; the same command goes on from the newest checkpoint"
        say_problem(redact(str(error)), mend)
        return EXIT_FILE
    except Exception as error:  # noqa: BLE001 - the edge of the process
        return _unexpected(error)
    return 0


def exit_code(error: TutelageError) -> int:
    """Return the exit code that stands for this kind of error."""
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), EXIT_UNEXPECTED)


def _escape_what_cannot_be_shown() -> None:
    """Let a terminal or file of a locale that lacks a character get its code, in place of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _unexpected(error: Exception) -> int:
    _show_traceback_if_asked()
    text = redact("".join(traceback.format_exception(error)))
    path = Path(tempfile.gettempdir()) / f"tutelage-traceback-{os.getpid()}.txt"
    write_text(path, f"tutelage {' '.join(map(redact, sys.argv[1:]))}\n\n{text}")
    say_problem(
        f"this should not have happened: {type(error).__name__}: {redact(str(error))}",
        f"the traceback is in {path}; please send it with what you did",
    )
    return EXIT_UNEXPECTED


def _show_traceback_if_asked() -> None:
    if os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0"):
        errors().print(redact(traceback.format_exc()), markup=False)
