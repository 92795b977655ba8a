"""Rows to documents, a chunk at a time: parse, split, render, fit, book. Needs no torch.

What comes of a chunk depends on nothing but its rows and the kit, so that any process may make it. Chunks end at the same
rows however many processes there are, and a chunk never holds rows of two sources.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy.typing as npt

from tutelage.chat.documents import columns_of
from tutelage.chat.fit import fit, windows
from tutelage.chat.render import Renderer, RenderFailure
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Config, SourceConfig
from tutelage.data.conversation import Conversation, Document, PreferencePair
from tutelage.data.ledger import Ledger, SourceAccount
from tutelage.data.reasons import Reason
from tutelage.data.retrieve import Retriever
from tutelage.data.rows import RawRow
from tutelage.data.sources import parse_rows
from tutelage.data.split import is_held_out
from tutelage.errors import ConfigError

Trainable: TypeAlias = Conversation | Document

CHUNK_ROWS = 512
CHUNK_BYTES = 4 << 20
TRAIN, HELD_OUT = "train", "held_out"
STAGES = (TRAIN, HELD_OUT)


@dataclass(frozen=True)
class Kit:
    """What all chunks of a preparation have in common."""

    config: Config
    renderer: Renderer
    retriever: Retriever | None = None

    @property
    def sources(self) -> list[SourceConfig]:
        """Every source, by the number that chunks call it by: those to train on, then the held-out ones."""
        return [*self.config.data.train, *self.config.data.held_out]


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of source number `source`, whose account is called `name`, with the kind that was found.

    `shown` and `conversations` say how many of the first records, and of the first conversations, are wanted back.
    `texts` are the values of the rows in JSON; None where JSON cannot hold them all, as with dates or decimals of a table.
    """

    source: int
    name: str
    kind: str
    rows: tuple[RawRow, ...]
    texts: tuple[str, ...] | None
    shown: int = 0
    conversations: int = 0


@dataclass(frozen=True, eq=False)
class Made:
    """What came of a chunk: columns of documents and the first records by stage, and a ledger of its rows.

    `oversized` counts the documents of conversations that were longer than `data.max_tokens`.
    """

    columns: dict[str, dict[str, npt.NDArray[Any]]]
    ledger: Ledger
    oversized: int
    records: dict[str, list[Trainable]]
    conversations: dict[str, list[Trainable]]


def chunks_of(rows: Iterable[RawRow], number: int, account: SourceAccount) -> Iterator[Chunk]:
    """Divide the rows of a source: a chunk ends where it has enough of rows, or of bytes."""
    own: list[RawRow] = []
    texts: list[str] = []
    size = 0
    for row in rows:
        own.append(row)
        text = _text_of(row)
        if text is not None:
            texts.append(text)
            size += len(text)
        if len(own) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield _chunk(number, account, own, texts)
            own, texts, size = [], [], 0
    if own:
        yield _chunk(number, account, own, texts)


def _chunk(number: int, account: SourceAccount, rows: Sequence[RawRow], texts: Sequence[str]) -> Chunk:
    return Chunk(number, account.name, account.kind, tuple(rows), tuple(texts) if len(texts) == len(rows) else None)


def _text_of(row: RawRow) -> str | None:
    """Return the value of a row in JSON; None where it would come back as another one: a date, a tuple of a table."""
    try:
        text = json.dumps(row.value)
        return text if row.origin.line is not None or json.loads(text) == row.value else None
    except (TypeError, ValueError):
        return None


def make(kit: Kit, chunk: Chunk) -> Made:
    """Parse, split, render, fit and book the rows of a chunk.

    Raises:
        ConfigError: the rows are preference pairs.
        DataError: a row is too long under the policy `error`.
    """
    source, config = kit.sources[chunk.source], kit.config
    ledger = Ledger()
    account = ledger.open_source(chunk.name, path=source.path, kind=chunk.kind)
    by_stage: dict[str, list[Trainable]] = {stage: [] for stage in STAGES}
    all_away = chunk.source >= len(config.data.train)
    for record in parse_rows(chunk.rows, account, source, ledger):
        if isinstance(record, PreferencePair):
            raise ConfigError(
                f"source {chunk.name!r} holds preference pairs, which supervised fine-tuning cannot use",
                mend="map its columns to train on the chosen answers: "
                "kind: prompt_completion, columns: {completion: chosen}",
            )
        away = all_away or is_held_out(record, config.data.held_out_fraction, seed=config.train.seed)
        if kit.retriever is not None and isinstance(
            record, Conversation
        ):  # after the split, which is by what is asked alone
            row = kit.retriever.for_row(record)
            record = row.conversation
            account.retrieved.update(row.counts)
        by_stage[HELD_OUT if away else TRAIN].append(record)
    rendered = {stage: _render(kit, records, ledger, stage) for stage, records in by_stage.items()}
    shown = {
        stage: [replace(record, metadata={}) for record in records[: chunk.shown]]
        for stage, records in by_stage.items()
    }
    conversations = {
        stage: list[Trainable](record for record in records if isinstance(record, Conversation))[: chunk.conversations]
        for stage, records in by_stage.items()
    }
    return Made(
        columns={stage: columns_of(documents) for stage, (documents, _) in rendered.items()},
        ledger=ledger,
        oversized=sum(oversized for _, oversized in rendered.values()),
        records=shown,
        conversations=conversations,
    )


def _render(kit: Kit, records: Sequence[Trainable], ledger: Ledger, stage: str) -> tuple[list[Rendered], int]:
    """Return the documents of `records` that can be learned from, and how many were too long for `data.max_tokens`;
    book what became of each record's tokens."""
    renderer, most, policy = kit.renderer, kit.config.data.max_tokens, kit.config.data.too_long
    documents: list[Rendered] = []
    oversized = 0
    for record, result in zip(records, renderer.render_many(records), strict=True):
        if isinstance(result, RenderFailure):
            ledger.drop(record, result.cause, str(result.problem))
            continue
        if isinstance(record, Document):
            fitted = result = [window for text in result for window in windows(text, most)]
        else:
            oversized += sum(len(document) > most for document in result)
            fitted = fit(record, result, most, policy, renderer, ledger)
        kept = [document for document in fitted if document.supervised_tokens]
        if fitted and not kept:
            ledger.drop(record, Reason.NOTHING_TO_TRAIN, "no token of it carries loss")
        _book(ledger, record.source, result, kept, stage)
        documents += kept
    return documents, oversized


def _book(ledger: Ledger, source: str, rendered: Sequence[Rendered], kept: Sequence[Rendered], stage: str) -> None:
    counts = {
        name: (sum(map(len, group)), sum(document.supervised_tokens for document in group), len(group))
        for name, group in (("rendered", rendered), (stage, kept))
    }
    for name, (tokens, supervised, number) in counts.items():
        ledger.book_tokens(source, name, tokens, supervised, documents=number)
    (tokens, supervised, number), (kept_tokens, kept_supervised, kept_number) = counts["rendered"], counts[stage]
    if (tokens, supervised) != (kept_tokens, kept_supervised):
        ledger.book_tokens(
            source, "dropped", tokens - kept_tokens, supervised - kept_supervised, documents=number - kept_number
        )
