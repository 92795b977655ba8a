"""`tutelage train`: fine-tune a model as a configuration says."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli.configuration import ConfigWords, PresetName, resolve

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan (documents, tokens, packs, steps, memory) and stop.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest checkpoint of run.dir, exactly as if never stopped.")
]


def run(words: ConfigWords = None, preset: PresetName = None, dry_run: DryRun = False, resume: Resume = False) -> None:
    """Fine-tune a model, fully or with LoRA, and leave the result and a report in a run directory.

    Examples:
        tutelage train mine.yaml
        tutelage train mine.yaml train.learning_rate=1e-5 --dry-run
        tutelage train mine.yaml run.dir=runs/mine --resume
        tutelage train --preset sft-lora model.path=Qwen/Qwen3-0.6B data.train.0.path=chats.jsonl run.dir=runs/mine
        torchrun --nproc-per-node 2 -m tutelage train mine.yaml
    """
    resolved = resolve(words, preset=preset)
    from tutelage.cli.training import run_training
    from tutelage.train.trainee import Start

    run_training(resolved, start=Start.WEIGHTS, dry_run=dry_run, resume=resume)
