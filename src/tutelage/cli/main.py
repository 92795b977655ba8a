"""The command `tutelage`: its verbs, and the edge where errors become messages.

A verb is a file of this folder with a function `run` (or, with verbs of its own, a typer `app`). At module level it
imports nothing heavier than typer and rich; the rooms that do the work are imported inside `run`, so that `--help`
answers at once. `tests/unit/cli/test_cli_main.py` holds every verb to that.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tutelage import __version__
from tutelage.cli import chat, check, config, demo, lab, merge, pretrain, report, show, train
from tutelage.cli.edge import EXIT_MEANINGS, guard

_EPILOG = "Exit codes: " + ", ".join(f"{code} {meaning}" for code, meaning in EXIT_MEANINGS.items()) + "."

app = typer.Typer(
    name="tutelage",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tutelage {__version__}")
        raise typer.Exit


@app.callback()
def _tutelage(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Supervised fine-tuning of language models, from raw examples to a tuned assistant with a report.

    A first look, then a run of your own:

        tutelage demo
        tutelage show chats.jsonl --model Qwen/Qwen3-0.6B --html masks.html
        tutelage check chats.jsonl --model Qwen/Qwen3-0.6B
        tutelage train --preset sft-lora model.path=Qwen/Qwen3-0.6B data.train.0.path=chats.jsonl run.dir=runs/mine
        tutelage chat runs/mine
    """


app.command("demo")(demo.run)
app.command("show")(show.run)
app.command("check")(check.run)
app.command("train")(train.run)
app.command("pretrain")(pretrain.run)
app.command("merge")(merge.run)
app.command("chat")(chat.run)
app.command("report")(report.run)
app.add_typer(config.app, name="config")
app.add_typer(lab.app, name="lab")


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(guard(app))
