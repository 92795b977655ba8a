"""`tutelage lab`: rebuild the small world that ships: its text, its lessons, its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, help="Rebuild what ships with tutelage: the small world's text, lessons and base model."
)

OutFolder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist.")]


@app.command("text")
def text(out: OutFolder) -> None:
    """Write the pre-training text of the small world.

    tutelage lab text world-text
    """
    raise NotImplementedError


@app.command("lessons")
def lessons(out: OutFolder) -> None:
    """Write the instruction examples of the small world.

    tutelage lab lessons world-lessons
    """
    raise NotImplementedError


@app.command("model")
def model(out: OutFolder) -> None:
    """Pre-train the base model that ships, from nothing.

    tutelage lab model my-base
    """
    raise NotImplementedError
