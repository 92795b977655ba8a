"""Where the command line writes: results to standard output, everything else to standard error."""

from __future__ import annotations

import os
import sys
from functools import cache

from rich.console import Console
from rich.markup import escape
from rich.theme import Theme

_THEME = Theme(
    {"problem": "bold red", "mend": "green", "good": "green", "warn": "yellow", "quiet": "dim", "figure": "bold"}
)


@cache
def output() -> Console:
    """Console of results; plain text when it is not a terminal."""
    return Console(theme=_THEME, highlight=False, soft_wrap=not sys.stdout.isatty())


@cache
def errors() -> Console:
    """Console of problems, warnings and progress."""
    return Console(theme=_THEME, highlight=False, stderr=True, soft_wrap=not sys.stderr.isatty())


def say_problem(problem: str, mend: str = "") -> None:
    """Print what is wrong and how to mend it, on standard error."""
    errors().print(f"[problem]error[/] {escape(problem)}")
    if mend:
        errors().print(f"[mend] mend[/] {escape(mend)}")


def warn(message: str) -> None:
    """Print a warning on standard error."""
    errors().print(f"[warn] note[/] {escape(message)}")


def silence_output() -> None:
    """Send what is still to be written to nowhere: the reader of our pipe has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
