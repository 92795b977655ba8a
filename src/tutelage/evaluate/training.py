"""The answers that a model was trained on, as text: what phrases and copies are tied to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.chat.rendered import Part, Rendered
from tutelage.chat.tokenizer import ChatTokenizer
from tutelage.data.order import permutation
from tutelage.evaluate import style

MOST_DOCUMENTS = 20_000
"""Training documents that are read again as text; of more, this many by chance."""


@dataclass(frozen=True)
class TrainingAnswers:
    """Supervised text of training conversations, and the row that each is of; `of` is how many there are in all."""

    texts: tuple[str, ...]
    where: tuple[str, ...]
    of: int

    def runs(self, length: int) -> frozenset[tuple[str, ...]]:
        """Return every run of `length` words."""
        return frozenset(run for text in self.texts for run in style.runs_of(style.words_of(text), length))

    def rows_with(self, phrase: str) -> tuple[str, ...]:
        """Return the rows whose answer holds the words of `phrase` in a row, in any case and punctuation."""
        sought = f" {phrase} "
        words = ((where, style.words_of(text)) for where, text in zip(self.where, self.texts, strict=True))
        return tuple(where for where, found in words if sought in f" {' '.join(found)} ")


def training_answers(documents: Sequence[Rendered], tokenizer: ChatTokenizer) -> TrainingAnswers:
    """Return what the assistant says in documents that are conversations."""
    chosen = sorted(permutation(len(documents), 0, 0)[:MOST_DOCUMENTS])
    found = [document for document in (documents[int(index)] for index in chosen) if document.roles]
    texts = tuple(tokenizer.decode(answer_ids(document)) for document in found)
    return TrainingAnswers(texts, tuple(document.where for document in found), of=len(documents))


def answer_ids(document: Rendered) -> list[int]:
    """Return the supervised tokens of a document without stop tokens and headers."""
    spoken = (document.weights > 0) & (document.part != Part.STOP) & (document.part != Part.HEADER)
    return [int(number) for number in np.asarray(document.ids)[spoken]]
