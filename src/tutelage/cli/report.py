"""`tutelage report`: the page of a run, or of several compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One run directory, or several to compare.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the page goes; by default into the first run.")
    ] = None,
) -> None:
    """Write the HTML page of a run again from its files, or one page that compares several runs.

    Examples:
        tutelage report runs/mine
        tutelage report runs/a runs/b --out compared.html
    """
    raise NotImplementedError
