"""`tutelage replay`: look again at a step that a run left out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from tutelage.cli.console import output

if TYPE_CHECKING:
    from tutelage.train.replay import Replay


def run(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    step: Annotated[int, typer.Option(help="The step that was left out, as in incidents.jsonl.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Give each row of a step that was left out, alone, to the weights before it: which one is it?

    The weights are those of the newest checkpoint before the step. Nothing is written.

    Examples:
        tutelage replay runs/mine --step 120
    """
    from tutelage.files.encode import encode_json
    from tutelage.files.rundir import RunDir
    from tutelage.train.narrate import Narrator
    from tutelage.train.replay import replay

    found = replay(RunDir.open(folder), step, Narrator())
    if as_json:
        typer.echo(encode_json(found))
    else:
        _print(found)


def _print(found: Replay) -> None:
    console = output()
    console.print(f"step {found.step} was left out: {escape(found.reason)}")
    console.print(f"its rows, each alone, with {escape(found.weights)}, without dropout or noise:")
    console.print(f"[quiet]{'loss':>10} {'gradient':>10} {'tokens':>8} {'with loss':>10}  row[/]")
    for row in found.rows:
        style = "good" if row.is_sound else "problem"
        figures = f"{row.loss:>10.4g} {row.grad_norm:>10.4g} {row.tokens:>8,} {row.supervised_tokens:>10,}"
        console.print(f"[{style}]{figures}[/]  {escape(row.where)}")
    bad = sum(not row.is_sound for row in found.rows)
    if not bad:
        console.print("[quiet]every row is sound by itself: the weights of that very step, or noise, were the cause[/]")
