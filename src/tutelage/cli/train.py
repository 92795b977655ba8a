"""`tutelage train`: fine-tune a model as a configuration says."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli.configuration import ConfigWords, PresetName


def run(
    words: ConfigWords = None,
    preset: PresetName = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan (documents, tokens, packs, steps, memory) and stop.")
    ] = False,
) -> None:
    """Fine-tune a model, fully or with LoRA, and leave the result and a report in a run directory.

    tutelage train mine.yaml
    tutelage train mine.yaml train.learning_rate=1e-5 --dry-run
    tutelage train --preset sft-lora model.path=Qwen/Qwen3-0.6B data.train.0.path=chats.jsonl run.dir=runs/mine
    """
    raise NotImplementedError
