"""Passages from texts of your own, put before each question: in training rows and in use, by the same function.

Texts are cut into passages, and BM25 ranks them by the words that they share with a question. Passages become part of the
user's message, so that they are text like any other that a stranger wrote: nothing in them is a control token, and none of
their tokens carries loss.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.config.schema import Retrieve, SourceConfig
from tutelage.data.conversation import Conversation, Document, Json, Message, Role, content_hash, normalised_words
from tutelage.data.ledger import Ledger
from tutelage.data.sources import read_source
from tutelage.errors import ConfigError, DataError
from tutelage.files.manifest import read_manifest

HEADING = "Documents:"
ROWS, ANSWERED, LEFT_OUT = "rows", "answered", "left_out"
"""What is counted: rows with passages; those whose answer stands in them word for word; passages that hold question and answer of the row
itself, which are left out."""

_SPARE = 16  # passages ranked beyond those asked for, in place of ones that are left out
_WORD = re.compile(r"\S+")
_SENTENCE_END = re.compile(r"""[.!?…。！？]["'”’)\]]*$""")


@dataclass(frozen=True)
class Passage:
    """A piece of a text of the corpus, and where it stands."""

    text: str
    where: str


@dataclass(frozen=True)
class Turn:
    """What is put before the user's message `number`; `own` counts the passages left out because they hold question and answer."""

    number: int
    passages: tuple[Passage, ...]
    own: int


@dataclass(frozen=True)
class Row:
    """A row with its passages: what there is to count of it, and where the passages of each message of the user stand."""

    conversation: Conversation
    counts: dict[str, int]
    where: tuple[tuple[str, ...], ...]


class Retriever:
    """Passages of a corpus, ranked for a question.

    Ties go to the passage that stands first in the corpus, so that the same question always has the same passages. `files` are the
    SHA-256 of the files that were read.
    Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond", in the variant of Lucene
    (k1 = 1.5, b = 0.75), by bm25s (arXiv 2407.03618).

    Raises: ConfigError when bm25s is not installed; DataError when the corpus is not there, cannot be read, or has no words.
    """

    def __init__(self, corpus: str, rule: Retrieve) -> None:
        texts, self.files = _read(corpus)
        self._rule = rule
        found: dict[str, Passage] = {}
        for text in texts:
            for passage in cut(text, rule.passage_words):
                found.setdefault(passage.text, passage)  # of passages that are equal, the first
        self.passages = tuple(found.values())
        self._words = [normalised_words(passage.text) for passage in self.passages]
        if not self.passages:
            raise DataError(f"{corpus} has no words to retrieve", mend="give a file of texts with data.retrieve.corpus")
        self._index = _index([words.split() for words in self._words])

    def best(self, query: str, *, without: tuple[str, str] | None = None) -> tuple[list[Passage], int]:
        """Return the passages for a query, the best first, and how many were left out.

        Those are left out that hold all the normalised words of both texts of `without`: a question and its answer.
        Passages that share no word with the query are none for it.
        """
        known = self._index.get_tokens_ids(normalised_words(query).split())
        scores = self._index.get_scores_from_ids(known)
        wanted = min(self._rule.passages + _SPARE, len(scores))
        candidates = np.flatnonzero((scores >= np.partition(scores, -wanted)[-wanted]) & (scores > 0))
        ranked = candidates[np.argsort(-scores[candidates], kind="stable")]
        chosen: list[Passage] = []
        left_out = 0
        for number in ranked.tolist():
            if len(chosen) == self._rule.passages:
                break
            if without is not None and all(_holds(self._words[number], text) for text in without):
                left_out += 1
            else:
                chosen.append(self.passages[number])
        return chosen, left_out

    def for_use(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Return what a model is asked: each message of the user with its passages before it."""
        return _with_passages(messages, self.turns(messages, is_row=False))

    def for_row(self, conversation: Conversation) -> Row:
        """Return a row to train on, or to evaluate on, with its passages."""
        turns = list(self.turns(conversation.messages, is_row=True))
        counts = {
            ROWS: int(any(turn.passages for turn in turns)),
            ANSWERED: int(any(_answers(turn, conversation.messages) for turn in turns)),
            LEFT_OUT: sum(turn.own for turn in turns),
        }
        where = tuple(tuple(passage.where for passage in turn.passages) for turn in turns)
        messages = _with_passages(conversation.messages, turns)
        return Row(replace(conversation, messages=messages), counts, where)

    def turns(self, messages: Sequence[Message], *, is_row: bool) -> Iterator[Turn]:
        """Yield what is put before each message of the user.

        What is asked for are the words of the message and of the user's message before it, which says who "she" is. In a row, whose
        answers are known, passages that hold question and answer are left out: they are the row itself.
        """
        before = ""
        for number, message in enumerate(messages):
            if message.role is not Role.USER:
                continue
            answer = normalised_words(_answer_to(number, messages)) if is_row else ""
            without = (normalised_words(message.content), answer) if answer else None
            passages, own = self.best(f"{message.content} {before}", without=without)
            yield Turn(number, tuple(passages), own)
            before = message.content


def open_retriever(rule: Retrieve) -> Retriever | None:
    """Return the retriever that a configuration asks for; None where it asks for none.

    Raises: as `Retriever` does.
    """
    return None if rule.corpus is None else Retriever(rule.corpus, rule)


@dataclass(frozen=True)
class Remembered:
    """The passages that a model was trained with: by which rule, of which texts. `corpus` is the name of the file or folder."""

    corpus: str
    digest: str
    passages: int
    passage_words: int

    def rule(self, corpus: str) -> Retrieve:
        """Return the rule that retrieves from `corpus` as in training."""
        return Retrieve(corpus=corpus, passages=self.passages, passage_words=self.passage_words)


def remember(rule: Retrieve, files: Mapping[str, str]) -> dict[str, Json]:
    """Return what the manifest of a model keeps about the passages of its training rows; nothing where there were none.

    `files` are the SHA-256 of the texts.
    """
    if rule.corpus is None:
        return {}
    known = Remembered(Path(rule.corpus).name, digest_of(files), rule.passages, rule.passage_words)
    return {"retrieve": vars(known)}


def recall(folder: Path) -> Remembered | None:
    """Return the passages that the model in `folder` was trained with; None where its manifest tells of none, or there is none."""
    try:
        known = Remembered(**read_manifest(folder)["about"]["retrieve"])
        known.rule(known.corpus)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return known


def digest_of(files: Mapping[str, str]) -> str:
    """Return a hash of the texts of a corpus, wherever they lie."""
    return content_hash(sorted(files.values()))


def with_passages(passages: Sequence[Passage], question: str) -> str:
    """Return the user's message with passages before it; a question without any stays as it is.

    Example:
        >>> print(with_passages([Passage("Mira is a potter.", "a.txt:1")], "Who is Mira?"))
        Documents:
        [1] Mira is a potter.
        <BLANKLINE>
        Who is Mira?
    """
    if not passages:
        return question
    numbered = "\n".join(f"[{number}] {passage.text}" for number, passage in enumerate(passages, start=1))
    return f"{HEADING}\n{numbered}\n\n{question}"


def cut(document: Document, most_words: int) -> list[Passage]:
    """Cut a text into passages of at most so many words, each as it stands there.

    A cut falls behind the last sentence or line that ends in the second half of the passage, else where the words are full.
    """
    text, where = document.text, str(document.origin or document.source)
    words = [match.span() for match in _WORD.finditer(text)]
    passages: list[Passage] = []
    start = 0
    while start < len(words):
        end = min(start + most_words, len(words))
        if end < len(words):
            ends = (at for at in range(end, start + most_words // 2, -1) if _ends_at(text, words, at))
            end = next(ends, end)
        place = where if (start, end) == (0, len(words)) else f"{where}, words {start + 1} to {end}"
        passage = Passage(text[words[start][0] : words[end - 1][1]], place)
        start = end
        if normalised_words(passage.text):
            passages.append(passage)
    return passages


def _ends_at(text: str, words: Sequence[tuple[int, int]], at: int) -> bool:
    """Whether a sentence or a line ends before word `at`."""
    start, end = words[at - 1]
    return "\n" in text[end : words[at][0]] or _SENTENCE_END.search(text[start:end]) is not None


def _read(corpus: str) -> tuple[list[Document], dict[str, str]]:
    """Return the texts of a corpus and the SHA-256 of its files.

    Raises: DataError as reading a source of plain text does.
    """
    ledger = Ledger()
    records = read_source(SourceConfig(path=corpus, kind="text"), ledger)
    (account,) = ledger.sources.values()
    return [record for record in records if isinstance(record, Document)], dict(account.files)


def _index(passages: Sequence[Sequence[str]]) -> Any:
    try:
        from bm25s import BM25  # an extra
    except ImportError:
        raise ConfigError(
            "retrieval needs bm25s, which is not installed", mend='pip install "tutelage[retrieval]"'
        ) from None
    vocabulary: dict[str, int] = {}
    ids = [[vocabulary.setdefault(word, len(vocabulary)) for word in words] for words in passages]
    index = BM25(k1=1.5, b=0.75, method="lucene")
    index.index((ids, vocabulary), show_progress=False)
    return index


def _with_passages(messages: Sequence[Message], turns: Iterable[Turn]) -> tuple[Message, ...]:
    found = list(messages)
    for turn in turns:
        message = found[turn.number]
        found[turn.number] = replace(message, content=with_passages(turn.passages, message.content))
    return tuple(found)


def _answer_to(number: int, messages: Sequence[Message]) -> str:
    """Return what the assistant says to message `number`, or nothing."""
    for message in messages[number + 1 :]:
        if message.role is Role.ASSISTANT and message.content:
            return message.content
        if message.role is Role.USER:
            break
    return ""


def _answers(turn: Turn, messages: Sequence[Message]) -> bool:
    """Whether a passage of the turn holds the answer, word for word."""
    answer = normalised_words(_answer_to(turn.number, messages))
    return bool(answer) and any(_holds(normalised_words(passage.text), answer) for passage in turn.passages)


def _holds(words: str, part: str) -> bool:
    """Whether whole words stand among others. Both are normalised."""
    return f" {part} " in f" {words} "
