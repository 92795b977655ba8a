"""`tutelage train`: fine-tune a model as a configuration says."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli.configuration import ConfigWords, PresetName, resolve
from tutelage.cli.loading import loading

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan (documents, tokens, packs, steps, memory) and stop.")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on from the newest checkpoint of run.dir, exactly as if never stopped; an error where there is no run.",
    ),
]
AcceptChanged = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-changed",
        metavar="WHAT",
        help="Go on although `config`, `data` or `tokenizer` is another one than when the run was stopped; once for each that is. "
        "The run then ends as no uninterrupted one would.",
    ),
]


def run(
    words: ConfigWords = None,
    preset: PresetName = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    accept_changed: AcceptChanged = None,
) -> None:
    """Fine-tune a model, fully or with LoRA, and leave the result and a report in a run directory.

    A run.dir that holds a run which did not end is gone on with, with or without --resume.

    Examples:
        tutelage train mine.yaml
        tutelage train mine.yaml train.learning_rate=1e-5 --dry-run
        tutelage train mine.yaml run.dir=runs/mine --resume
        tutelage train --preset sft-lora model.path=Qwen/Qwen3-0.6B data.train.0.path=chats.jsonl run.dir=runs/mine
        torchrun --nproc-per-node 2 -m tutelage train mine.yaml
    """
    from tutelage.train.stop import stop_on_signals

    with stop_on_signals() as stop:  # from here on, while torch is still to be loaded
        resolved = resolve(words, preset=preset)
        with loading():
            from tutelage.cli.training import run_training, what_may_change
            from tutelage.train.trainee import Start

        accepted = what_may_change(accept_changed)
        run_training(resolved, start=Start.WEIGHTS, dry_run=dry_run, resume=resume, accept_changed=accepted, stop=stop)
