"""`tutelage report`: the page of a run, or of several compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.console import output


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
    from tutelage.report.page import write_comparison, write_report

    if len(runs) == 1:
        page = write_report(runs[0], out)
    else:
        page = write_comparison(runs, out if out is not None else runs[0] / "comparison.html")
    output().print(f"report    {page}", markup=False, soft_wrap=True)
