"""Where the command line writes: results to standard output, everything else to standard error."""

from __future__ import annotations

import sys
from functools import cache

from rich.console import Console
from rich.markup import escape
from rich.theme import Theme

from tutelage.redact import redact

_THEME = Theme(
    {"problem": "bold red", "mend": "green", "good": "green", "warn": "yellow", "quiet": "dim", "figure": "bold"}
)
_FILE_WIDTH_COLUMNS = 160


@cache
def output() -> Console:
    """Console of results; plain text when it is not a terminal."""
    return _console(to_errors=False)


@cache
def errors() -> Console:
    """Console of problems, warnings and progress."""
    return _console(to_errors=True)


def _console(*, to_errors: bool) -> Console:
    is_terminal = (sys.stderr if to_errors else sys.stdout).isatty()
    # Lines of a file or pipe are not folded, and tables get room: what reads them is a program, or a person's editor.
    width = None if is_terminal else _FILE_WIDTH_COLUMNS
    return Console(theme=_THEME, highlight=False, stderr=to_errors, soft_wrap=not is_terminal, width=width)


def say_problem(problem: str, mend: str = "") -> None:
    """Print what is wrong and how to mend it, on standard error."""
    errors().print(f"[problem]error[/] {escape(redact(problem))}")
    if mend:
        errors().print(f"[mend] mend[/] {escape(redact(mend))}")


def warn(message: str) -> None:
    """Print a warning on standard error."""
    errors().print(f"[warn] note[/] {escape(redact(message))}")
