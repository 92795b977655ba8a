"""What `tutelage check` finds out: the figures of prepared data, what forbids training on it, what deserves a look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.chat.documents import lengths_of, supervised_of
from tutelage.chat.picture import count_typed_controls
from tutelage.chat.pieces import Pieces
from tutelage.chat.rendered import Rendered
from tutelage.cli.examples import count
from tutelage.config.schema import Config, TooLong
from tutelage.data.reasons import Reason
from tutelage.data.sources import judge
from tutelage.errors import DataError, TemplateError, TutelageError
from tutelage.train.prepare import Prepared

_THIN_SUPERVISION = 0.02
_UNLIMITED_TOKENS = 10**9  # tokenizers without a limit of their own carry a huge one


@dataclass(frozen=True)
class Bin:
    """Documents with more than `above` and at most `up_to` tokens."""

    above: int
    up_to: int
    documents: int


def problems_of(prepared: Prepared, config: Config) -> list[TutelageError]:
    """Return everything for which training would stop; an empty list means that it may begin."""
    found: list[TutelageError] = []
    if prepared.contract is not None:
        try:
            prepared.contract.raise_if_broken()
        except TemplateError as error:
            found.append(error)
    for account in prepared.ledger.sources.values():
        try:
            judge(account, prepared.ledger, config.data.max_bad_fraction)
        except DataError as error:
            found.append(error)
    too_long = prepared.ledger.totals.dropped.get(Reason.TOO_LONG.value, 0)
    if too_long and config.data.too_long is TooLong.ERROR:
        first = next(entry for entry in prepared.ledger.quarantine if entry.reason == Reason.TOO_LONG)
        found.append(
            DataError(
                f"{count(too_long, 'row')} too long; the first is {first.where}: {first.cause}",
                mend="raise data.max_tokens, or set data.too_long to drop or drop_oldest_turns",
            )
        )
    if not prepared.documents:
        found.append(DataError("nothing is left to train on", mend="see the rows that were dropped, and why"))
    return found


def warnings_of(prepared: Prepared, config: Config) -> list[str]:
    """Return what does not forbid training, but should be known before it."""
    return [*_row_warnings(prepared), *_token_warnings(prepared, config), *_share_warnings(prepared)]


def _row_warnings(prepared: Prepared) -> Iterator[str]:
    totals = prepared.ledger.totals
    for reason, number in sorted(totals.dropped.items()):
        yield f"left out: {number:,} of {totals.rows:,} rows, {reason}"
    rows = {(document.where, document.record_id) for document in prepared.documents}
    copies = Counter(record_id for _, record_id in rows)
    repeated = sum(number - 1 for number in copies.values())
    if repeated:
        yield f"exact copies of other examples: {repeated:,}; each is learned once more per epoch"
    shared = {document.record_id for document in prepared.held_out} & set(copies)
    if shared:
        yield f"held-out examples that are also trained on: {len(shared):,}; the held-out loss will look too good"
    texts = [document for document in prepared.documents if not document.roles]
    yield from _pieces_warning(
        texts, "texts are longer than data.max_tokens: {records:,} are read in {documents:,} windows"
    )
    yield from _pieces_warning(
        [document for document in prepared.documents if document.roles],
        "the template rewrites earlier turns, so {records:,} conversations become {documents:,} documents, "
        "each turn in the form it has at inference",
    )


def _pieces_warning(documents: Sequence[Rendered], message: str) -> Iterator[str]:
    """Yield the message when records became several documents."""
    records = len({(document.where, document.record_id) for document in documents})
    if len(documents) > records:
        yield message.format(records=records, documents=len(documents))


def _token_warnings(prepared: Prepared, config: Config) -> Iterator[str]:
    documents, tokenizer = prepared.documents, prepared.tokenizer
    tokens, supervised = total_tokens(documents)
    if documents and supervised < _THIN_SUPERVISION * tokens:
        yield f"only {supervised / tokens:.2%} of all tokens carry loss; most of the work is reading"
    pieces = Pieces(tokenizer)
    typed = sum(count_typed_controls(document, pieces) > 0 for document in documents)
    if typed:
        yield f"documents with control strings typed as text: {typed:,}; `tutelage show` puts them first"
    limit = int(getattr(tokenizer.hf, "model_max_length", _UNLIMITED_TOKENS) or _UNLIMITED_TOKENS)
    longest = int(lengths_of(documents).max(initial=0))
    if longest > limit:
        yield f"the longest document has {longest:,} tokens, but the tokenizer says the model takes {limit:,}"
    if not prepared.held_out and not config.data.held_out_fraction:
        yield "no held-out examples: the run will not see over-fitting (data.held_out_fraction=0.02)"


def _share_warnings(prepared: Prepared) -> Iterator[str]:
    for share in prepared.mixture.realised_shares():
        if share.asked is not None and abs(share.realised - share.asked) > 0.1 * share.asked:
            yield f"source {share.name!r} asks for {share.asked:.1%} of the trained tokens and gets {share.realised:.1%}"


def figures_of(prepared: Prepared) -> dict[str, Any]:
    """Return the counts of the prepared data, by name."""
    tokens, supervised = total_tokens(prepared.documents)
    lengths = lengths_of(prepared.documents)
    return {
        "documents": len(prepared.documents),
        "held_out_documents": len(prepared.held_out),
        "tokens": tokens,
        "supervised_tokens": supervised,
        "supervised_share": supervised / tokens if tokens else None,
        "median_document_tokens": float(np.median(lengths)) if len(lengths) else None,
        "longest_document_tokens": int(lengths.max(initial=0)),
    }


def total_tokens(documents: Sequence[Rendered]) -> tuple[int, int]:
    """Return (all tokens, those with loss)."""
    return int(lengths_of(documents).sum()), int(supervised_of(documents).sum())


def histogram(lengths: Sequence[int]) -> list[Bin]:
    """Return how many documents there are of each length; bins double in width.

    Example:
        >>> histogram([3, 4, 5, 20])
        [Bin(above=2, up_to=4, documents=2), Bin(above=4, up_to=8, documents=1), Bin(above=8, up_to=16, documents=0), \
Bin(above=16, up_to=32, documents=1)]
    """
    if not lengths:
        return []
    powers = Counter(max(0, (length - 1).bit_length()) for length in lengths)
    return [
        Bin(2 ** (power - 1) if power else 0, 2**power, powers[power]) for power in range(min(powers), max(powers) + 1)
    ]
