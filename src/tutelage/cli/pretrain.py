"""`tutelage pretrain`: train a model from random weights on plain text."""

from __future__ import annotations

from tutelage.cli.configuration import ConfigWords, PresetName, resolve
from tutelage.cli.loading import loading
from tutelage.cli.train import AcceptChanged, DryRun, Resume


def run(
    words: ConfigWords = None,
    preset: PresetName = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    accept_changed: AcceptChanged = None,
) -> None:
    """Train a model from random weights on plain text, with the same loop and every token supervised.

    `model.path` is a folder with config.json and tokenizer files. To go on from weights instead, use `tutelage train`.

    Examples:
        tutelage pretrain --preset pretrain model.path=my-config-and-tokenizer data.train.0.path=text.jsonl
    """
    from tutelage.train.stop import stop_on_signals

    with stop_on_signals() as stop:
        resolved = resolve(words, preset=preset)
        with loading():
            from tutelage.cli.training import run_training, what_may_change
            from tutelage.train.trainee import Start

        accepted = what_may_change(accept_changed)
        run_training(resolved, start=Start.RANDOM, dry_run=dry_run, resume=resume, accept_changed=accepted, stop=stop)
