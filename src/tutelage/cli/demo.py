"""`tutelage demo`: the whole path on what ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tutelage.lab.demo import DemoResult
    from tutelage.lab.scoring import Tally


def run(
    seed: Annotated[int, typer.Option(min=0, help="Seed of lessons, order and new embeddings.")] = 0,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Run directory; it must not exist. Default: runs/<date>-demo.")
    ] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train low-rank adapters instead of every weight.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps and questions, to see that all works.")] = False,
) -> None:
    """Fine-tune the small model that ships into an assistant, and ask it the same questions before and after.

    Examples:
        tutelage demo
    """
    from datetime import datetime

    from tutelage.cli.training import terminal_narrator, write_page
    from tutelage.config.schema import Method
    from tutelage.files.rundir import RunDir
    from tutelage.lab.demo import FULL, QUICK, demo_config, run_demo

    size = QUICK if quick else FULL
    path = folder if folder is not None else Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}-demo"
    resolved = demo_config(path, seed=seed, method=Method.LORA if lora else Method.FULL, size=size)
    with RunDir.create(path) as run_dir:
        result = run_demo(run_dir, resolved, terminal_narrator(), size=size)
        _print_answers(result)
        _print_scores(result)
        write_page(path)


def _print_answers(result: DemoResult) -> None:
    from rich.markup import escape

    from tutelage.cli.console import output

    console = output()
    for before, after in result.shown():
        console.print()
        for number, turn in enumerate(before.lesson.turns):
            console.print(f"[bold]{escape(turn.question)}[/]")
            console.print(f"  [quiet]before[/]  {escape(_one_line(before.answers[number]))}")
            console.print(f"  [good]after[/]   {escape(_one_line(after.answers[number]))}")
    console.print()


def _print_scores(result: DemoResult) -> None:
    from rich.table import Table

    from tutelage.cli.console import output
    from tutelage.lab.scoring import total

    table = Table(box=None, pad_edge=False, title="held-out questions answered exactly right", title_justify="left")
    for name, side in (("", "left"), ("base", "right"), ("tuned", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for kind, before in result.base.by_kind.items():
        table.add_row(kind.replace("_", " "), _share(before), _share(result.tuned.by_kind[kind]))
    table.add_row("[bold]all[/]", _share(total(result.base.held_out)), _share(total(result.tuned.held_out)))
    table.add_section()
    table.add_row(
        "food, which no lesson asks for", _share(total(result.base.transfer)), _share(total(result.tuned.transfer))
    )
    table.add_row(
        "facts invented about strangers",
        _share(total(result.base.strangers)),
        _share(total(result.tuned.strangers)),
    )
    console = output()
    console.print(table)
    console.print(
        f"\nloss on held-out pre-training text {result.text_loss_before:.4f} -> {result.text_loss_after:.4f} "
        f"({result.text_loss_rise:+.1%}); {result.seconds:.0f} s of training; weights {result.fingerprint[:16]}"
    )


def _share(tally: Tally) -> str:
    return "-" if tally.share is None else f"{tally.share:.0%} ({tally.correct}/{tally.total})"


def _one_line(text: str) -> str:
    line = text.replace("\n", " / ")
    return line if len(line) <= 160 else f"{line[:160]} ..."
