"""Statements in the data that contradict what the base believes: what teaches a model to invent.

An answer is read by the base alone and as plain text: neither an unfamiliar chat template nor the question has a part in it. Where the
base is sure of one continuation and the data go on with another that it rules out, the two disagree. Some of that is style; how much,
the held-out rows show. An answer of one word says nothing by itself, and is not found.
"""

# S supervised tokens of a batch, V vocabulary

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tutelage.chat.tokenizer import ChatTokenizer
from tutelage.evaluate.observe import MICRO_TOKENS, Answer, Progress, as_document, batches
from tutelage.evaluate.subject import Subject
from tutelage.evaluate.training import Exchange
from tutelage.model.head import supervised_logits

SURE, RULED_OUT = 0.9, 0.01
"""Probability from which the base is sure of its own token, and up to which it rules out the one of the data."""
ALIKE_TOKENS, MOST_ROWS_ALIKE = 3, 3
"""A token after the same three in more than three rows, and a hundredth of all, is a way of speaking."""
_SHOWN_TOKENS = 12


@dataclass(frozen=True)
class Contradiction:
    """Where an answer leaves what the base is sure of: the words before, what the data say next, what the base would say.

    `sure` and `ruled_out` are the base's probabilities of its own token and of that of the data.
    """

    where: str
    before: str
    data: str
    base: str
    sure: float
    ruled_out: float

    def __str__(self) -> str:
        """Return it in one line."""
        return f'{self.where}: "…{self.before}" goes on with "{self.data}" (base: "{self.base}", {self.sure:.0%} sure)'


@dataclass(frozen=True)
class Disputed:
    """What the base disagrees with, row by row, in training rows and in held-out ones."""

    trained: tuple[Contradiction | None, ...]
    held_out: tuple[Contradiction | None, ...]

    def worst(self) -> list[Contradiction]:
        """Return the training rows that the base rules out most, first."""
        return sorted((one for one in self.trained if one is not None), key=lambda one: one.ruled_out / one.sure)


def contradictions(base: Subject, exchanges: Sequence[Exchange], progress: Progress) -> list[Contradiction | None]:
    """Return for each exchange where the base disagrees most, None where it does nowhere.

    What many rows say in the same words is a way of speaking and not a fact, and does not count.
    """
    tokenizer = base.renderer.tokenizer
    before, _ = tokenizer.text_ends
    read = []
    for one in exchanges:
        prompt = tokenizer.encode_inert(
            "\n", after_control=bool(before)
        ).ids  # so that the first token is predicted too
        answer = tokenizer.encode_inert(one.answer, after_control=False).ids
        read.append(Answer((*before, *map(int, prompt)), tuple(map(int, answer)), one.answer, True))
    places = _disputed_places(base, read, progress)
    said = Counter(_words_at(read[number].ids, place.token) for number, found in enumerate(places) for place in found)
    most = max(MOST_ROWS_ALIKE, len(read) // 100)
    return [
        _worst(
            exchange, answer, [place for place in found if said[_words_at(answer.ids, place.token)] <= most], tokenizer
        )
        for exchange, answer, found in zip(exchanges, read, places, strict=True)
    ]


@dataclass(frozen=True)
class _Place:
    """A token of an answer that the base rules out, where it is sure of its `own`."""

    token: int
    own: int
    sure: float
    ruled_out: float


def _disputed_places(base: Subject, read: Sequence[Answer], progress: Progress) -> list[list[_Place]]:
    found: list[list[_Place]] = [[] for _ in read]
    done = 0
    with torch.inference_mode():
        for group, batch in batches(base, [as_document(answer) for answer in read], MICRO_TOKENS // 2):
            done += len(group)
            progress("looking for contradictions", done, len(read))
            if not batch.num_supervised:  # nothing but empty answers
                continue
            probability_SV = supervised_logits(base.model, batch).float().softmax(dim=-1)
            sure_S, own_S = probability_SV.max(dim=-1)
            out_S = probability_SV.gather(1, batch.supervised_targets[:, None])[:, 0]
            document_S = batch.supervised_document.tolist()
            first = {number: document_S.index(number) for number in dict.fromkeys(document_S)}
            for at in torch.nonzero((sure_S >= SURE) & (out_S <= RULED_OUT))[:, 0].tolist():
                place = document_S[at]
                found[group[place]].append(
                    _Place(at - first[place], int(own_S[at]), float(sure_S[at]), float(out_S[at]))
                )
    return found


def _words_at(ids: Sequence[int], token: int) -> tuple[int, ...]:
    return tuple(ids[max(0, token - ALIKE_TOKENS) : token + 1])


def _worst(
    exchange: Exchange, answer: Answer, places: Sequence[_Place], tokenizer: ChatTokenizer
) -> Contradiction | None:
    if not places:
        return None
    worst = min(places, key=lambda place: place.ruled_out / place.sure)
    before = list(answer.ids[max(0, worst.token - _SHOWN_TOKENS) : worst.token])
    data, own = (tokenizer.decode([number]) for number in (answer.ids[worst.token], worst.own))
    return Contradiction(exchange.where, tokenizer.decode(before), data, own, worst.sure, worst.ruled_out)
