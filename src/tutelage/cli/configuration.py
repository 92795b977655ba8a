"""From the words of a command line to a configuration, and how one is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tutelage.cli.console import output

if TYPE_CHECKING:
    from tutelage.config.load import Resolved

ConfigWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONFIG.yaml KEY=VALUE",
        help="A YAML file, and values that go over it, such as train.epochs=2 or data.train.0.path=chats.jsonl.",
        show_default=False,
    ),
]
PresetName = Annotated[
    str | None, typer.Option(metavar="NAME", help="Start from a preset that ships (`tutelage config presets`).")
]


def resolve(words: Sequence[str] | None, *, preset: str | None = None) -> Resolved:
    """Return the configuration of `[CONFIG.yaml] [key=value]...` on top of a preset."""
    from tutelage.config.load import load_config

    path, overrides = split_words(words or [])
    return load_config(path, overrides, preset=preset)


def split_words(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the configuration file and the overrides among the words of a command line.

    Example:
        >>> split_words(["run.yaml", "train.epochs=2"])
        (PosixPath('run.yaml'), ['train.epochs=2'])
    """
    if words and ("=" not in words[0] or Path(words[0]).is_file()):
        return Path(words[0]), list(words[1:])
    return None, list(words)


def print_resolved(resolved: Resolved, *, everything: bool = False, containing: str = "") -> None:
    """Print each value with where it came from: those that somebody set, or all of them."""
    from tutelage.config.explain import explain

    table = Table(box=None, pad_edge=False, header_style="quiet")
    for heading in ("key", "value", "from"):
        table.add_column(heading, overflow="fold")
    rows = [row for row in explain(resolved) if containing in row.key]
    for row in rows:
        if everything or not row.is_default:
            cells = (escape(cell) for cell in (row.key, row.value, row.origin))
            table.add_row(*cells, style="quiet" if row.is_default else None)
    output().print(table)
    defaults = sum(row.is_default for row in rows)
    if not everything and defaults:
        output().print(f"[quiet]and {defaults} values at their defaults (tutelage config explain)[/]")
