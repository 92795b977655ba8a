"""`tutelage lab`: rebuild the small world that ships: its text, its lessons, its base model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, help="Rebuild what ships with tutelage: the small world's text, lessons and base model."
)

OutFolder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist.")]
Seed = Annotated[int, typer.Option(help="Seed of the world; what ships is made with 0.")]


@app.command("text")
def text(out: OutFolder, documents: Annotated[int, typer.Option(min=1)] = 190_000, seed: Seed = 0) -> None:
    """Write the pre-training text of the small world.

    Examples:
        tutelage lab text world-text
    """
    from tutelage.files.atomic import new_folder
    from tutelage.lab.pretraining import write_text
    from tutelage.lab.world import make_world

    with new_folder(out) as staging:
        write_text(staging, make_world(seed), num_documents=documents)


@app.command("lessons")
def lessons(
    out: OutFolder,
    train: Annotated[int, typer.Option(min=1, help="Lessons to train on.")] = 6000,
    held_out: Annotated[
        int, typer.Option(min=1, help="Lessons about people and tasks that no training lesson has.")
    ] = 600,
    seed: Seed = 0,
) -> None:
    """Write the instruction examples of the small world.

    Examples:
        tutelage lab lessons world-lessons
    """
    from tutelage.files.atomic import new_folder
    from tutelage.lab.lesson import Side
    from tutelage.lab.lessons import write_lessons
    from tutelage.lab.world import make_world

    world = make_world(seed)
    with new_folder(out) as staging:
        write_lessons(staging / "train.jsonl", world, Side.TRAIN, train)
        write_lessons(staging / "held-out.jsonl", world, Side.HELD_OUT, held_out)


@app.command("model")
def model(out: OutFolder, seed: Seed = 0) -> None:
    """Pre-train the base model that ships, from nothing (about three quarters of an hour on 2 CPU cores).

    Examples:
        tutelage lab model my-base
    """
    from tutelage.cli.console import output
    from tutelage.cli.training import open_run, terminal_narrator, write_page
    from tutelage.config.load import load_config
    from tutelage.errors import TrainingError
    from tutelage.generate.local import generate
    from tutelage.lab.pretraining import PRESET, build_base
    from tutelage.lab.world import make_world
    from tutelage.train.loop import train as run_train
    from tutelage.train.trainee import Start

    def train(overrides: Sequence[str]) -> Path:
        resolved = load_config(None, list(overrides), preset=PRESET)
        run, _ = open_run(resolved.config, resume=False)
        with run:
            result = run_train(resolved, run, generate=generate, narrator=terminal_narrator(), start=Start.RANDOM)
            write_page(run.path)
        if result.final is None:
            raise TrainingError("the pre-training was stopped", mend="remove OUT and start again")
        return result.final

    output().print(f"base model  {build_base(out, make_world(seed), train)}")
