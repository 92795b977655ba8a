"""`tutelage pretrain`: train a model from random weights on plain text."""

from __future__ import annotations

from tutelage.cli.configuration import ConfigWords, PresetName, resolve
from tutelage.cli.train import DryRun, Resume


def run(words: ConfigWords = None, preset: PresetName = None, dry_run: DryRun = False, resume: Resume = False) -> None:
    """Train a model from random weights on plain text, with the same loop and every token supervised.

    `model.path` is a folder with config.json and tokenizer files. To go on from weights instead, use `tutelage train`.

    Examples:
        tutelage pretrain --preset pretrain model.path=my-config-and-tokenizer data.train.0.path=text.jsonl
    """
    resolved = resolve(words, preset=preset)
    from tutelage.cli.training import run_training
    from tutelage.train.trainee import Start

    run_training(resolved, start=Start.RANDOM, dry_run=dry_run, resume=resume)
