"""What was asked and answered in documents, as text again: what phrases, copies and contradictions are tied to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.chat.rendered import Part, Rendered
from tutelage.chat.tokenizer import ChatTokenizer
from tutelage.data.order import permutation
from tutelage.evaluate import style

MOST_DOCUMENTS = 20_000
"""Documents that are read again as text; of more, this many by chance."""


@dataclass(frozen=True)
class Exchange:
    """The last answer of a conversation with what was said before it by whom it answers, as text, and the row that it is of."""

    prompt: str
    answer: str
    where: str


@dataclass(frozen=True)
class Exchanges:
    """The last exchange of each conversation; `of` is how many documents they were chosen from."""

    each: tuple[Exchange, ...]
    of: int

    def runs(self, length: int) -> frozenset[tuple[str, ...]]:
        """Return every run of `length` words in an answer."""
        return frozenset(run for one in self.each for run in style.runs_of(style.words_of(one.answer), length))

    def rows_with(self, phrase: str) -> tuple[str, ...]:
        """Return the rows whose answer holds the words of `phrase` in a row, in any case and punctuation."""
        sought = f" {phrase} "
        words = ((one.where, style.words_of(one.answer)) for one in self.each)
        return tuple(where for where, found in words if sought in f" {' '.join(found)} ")


def exchanges_of(
    documents: Sequence[Rendered], tokenizer: ChatTokenizer, *, most: int | None = MOST_DOCUMENTS
) -> Exchanges:
    """Return the last exchange of documents that are conversations, of at most `most` by chance; of all where that is None."""
    chosen = sorted(permutation(len(documents), 0, 0)[:most])
    found = [document for document in (documents[int(index)] for index in chosen) if document.roles]
    return Exchanges(tuple(_last_exchange(document, tokenizer) for document in found), of=len(documents))


def _last_exchange(document: Rendered, tokenizer: ChatTokenizer) -> Exchange:
    last = int(document.message[document.weights > 0].max(initial=-1))
    prompt, answer = (content_of(document, message, tokenizer) for message in (last - 1, last))
    return Exchange(prompt, answer.strip(), document.where)


def content_of(document: Rendered, message: int, tokenizer: ChatTokenizer) -> str:
    """Return what one message of a conversation says."""
    own = (document.part == Part.CONTENT) & (document.message == message)
    return tokenizer.decode([int(number) for number in document.ids[own]])


def supervised_bytes(document: Rendered, tokenizer: ChatTokenizer) -> int:
    """Return the bytes of the text of all supervised tokens."""
    return len(tokenizer.decode([int(number) for number in document.ids[document.weights > 0]]).encode())
