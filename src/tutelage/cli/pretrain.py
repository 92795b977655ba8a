"""`tutelage pretrain`: train a model from random weights on plain text."""

from __future__ import annotations

from tutelage.cli.configuration import ConfigWords, PresetName


def run(words: ConfigWords = None, preset: PresetName = None) -> None:
    """Train a model from random weights on plain text, with the same loop and every token supervised.

    tutelage pretrain --preset pretrain model.path=my-config-and-tokenizer data.train.0.path=text.jsonl
    """
    raise NotImplementedError
