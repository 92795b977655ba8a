"""The command `tutelage`: its verbs, and the edge where errors become messages.

A verb is a file of this folder with a function `run` (or, with verbs of its own, a typer `app`). At module level it
imports nothing heavier than typer and rich; the rooms that do the work are imported inside `run`, so that `--help`
answers at once. `tests/unit/cli/test_cli_main.py` holds every verb to that.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from tutelage import __version__
from tutelage.cli import (
    advise,
    chat,
    check,
    claims,
    config,
    demo,
    evaluate,
    generate,
    lab,
    merge,
    pretrain,
    replay,
    report,
    show,
    train,
    why,
)
from tutelage.cli.edge import EXIT_MEANINGS, guard
from tutelage.redact import redact

_EPILOG = "Exit codes: " + ", ".join(f"{code} {meaning}" for code, meaning in EXIT_MEANINGS.items()) + "."


class _Verbs(TyperGroup):
    """The verbs. What is wrong with the words of a command line is told without the secrets that were typed in it."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the words before the verb."""
        with _redacted():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Find the verb, read its words and run it."""
        with _redacted():
            return super().invoke(ctx)


@contextmanager
def _redacted() -> Iterator[None]:
    """Redact the message of an error of click, which typer prints by itself."""
    try:
        yield
    except Exception as error:
        if isinstance(vars(error).get("message"), str):
            vars(error)["message"] = redact(vars(error)["message"])
        raise


app = typer.Typer(
    name="tutelage",
    cls=_Verbs,
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)


def _shown(docstring: str | None) -> str:
    """Return a docstring as help: brackets are no markup, and indented lines, which are typed, begin with a prompt.

    (The help formatter would take their indent away.)
    """
    lines = inspect.cleandoc(docstring or "").splitlines()
    return "\n".join(escape(line if not line.startswith("    ") else f"    $ {line.strip()}") for line in lines)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tutelage {__version__}")
        raise typer.Exit


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


app.callback(help=_shown(_tutelage.__doc__))(_tutelage)
app.command("demo")(demo.run)
app.command("show")(show.run)
app.command("check")(check.run)
app.command("advise")(advise.run)
app.command("train")(train.run)
app.command("pretrain")(pretrain.run)
app.command("merge")(merge.run)
app.command("chat")(chat.run)
app.command("eval")(evaluate.run)
app.command("report")(report.run)
app.command("replay")(replay.run)
app.command("claims")(claims.run)
app.command("why")(why.run)
app.add_typer(generate.app, name="generate")
app.add_typer(config.app, name="config")
app.add_typer(lab.app, name="lab")


def _write_help(verbs: typer.Typer) -> None:
    for command in verbs.registered_commands:
        command.help = _shown(command.callback.__doc__)
    for group in verbs.registered_groups:
        if group.typer_instance is not None:
            _write_help(group.typer_instance)


_write_help(app)


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(guard(app))
