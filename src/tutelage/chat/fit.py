"""What becomes of a document that is longer than `data.max_tokens`. No conversation is ever cut in the middle of a turn.

Plain text has no turns: it is read in windows, none of its tokens lost. For conversations the policy decides:
`error` names the row. `drop` leaves the document out. `drop_oldest_turns` removes whole exchanges (a user's message with
all that answers it) from the beginning, keeps the system message and the latest turns, and renders the rest anew, so that
every header is whole and every stop token was earned. Either way the ledger knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tutelage.chat.render import Renderer
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import TooLong
from tutelage.data.conversation import Conversation, Message, Role
from tutelage.data.ledger import Ledger
from tutelage.data.reasons import Reason
from tutelage.errors import DataError


def fit(
    record: Conversation,
    rendered: Sequence[Rendered],
    max_tokens: int,
    policy: TooLong,
    renderer: Renderer,
    ledger: Ledger,
) -> list[Rendered]:
    """Return the documents of `record` that fit into `max_tokens`; a record of which none does is dropped.

    Raises: DataError under the policy `error`.
    """
    fitting: list[Rendered] = []
    longest = max(map(len, rendered), default=0)
    for document in rendered:
        if len(document) <= max_tokens:
            fitting.append(document)
        elif policy is TooLong.ERROR:
            raise DataError(
                f"{document.where}: {len(document):,} tokens, more than data.max_tokens={max_tokens:,}",
                mend="raise data.max_tokens, or set data.too_long to drop or drop_oldest_turns",
            )
        elif policy is TooLong.DROP_OLDEST_TURNS:
            fitting += _without_oldest_turns(record, document, max_tokens, renderer)
    if rendered and not fitting:
        ledger.drop(record, Reason.TOO_LONG, f"{longest:,} tokens, more than data.max_tokens={max_tokens:,}")
    return fitting


def windows(text: Rendered, max_tokens: int) -> list[Rendered]:
    """Return rendered plain text as consecutive windows of at most `max_tokens` tokens.

    Neighbours share one token, which the first must produce and the second only reads: every token of the text is predicted
    exactly once, and a stop token stands at the end of the last window alone.
    """
    if len(text) <= max_tokens:
        return [text]
    return [
        _window(text, slice(start, start + max_tokens), number)
        for number, start in enumerate(range(0, len(text) - 1, max_tokens - 1))
    ]


def _window(text: Rendered, tokens: slice, number: int) -> Rendered:
    weights = text.weights[tokens].copy()
    weights[0] = 0
    return replace(
        text, ids=text.ids[tokens], weights=weights, message=text.message[tokens], part=text.part[tokens], stage=number
    )


def _without_oldest_turns(
    record: Conversation, document: Rendered, max_tokens: int, renderer: Renderer
) -> list[Rendered]:
    """Return `document` rendered anew with as few of the oldest exchanges removed as make it fit; none if nothing does."""
    messages = _flagged(record.messages[: len(document.roles)], document)
    lead, exchanges = _exchanges(messages)

    def shortened(removed: int) -> list[Rendered]:
        rest = [message for exchange in exchanges[removed:] for message in exchange]
        found = renderer.render(replace(record, messages=(*lead, *rest)))
        return [replace(part, record_id=document.record_id, stage=document.stage) for part in found]

    fewest, most = 1, len(exchanges) - 1  # the last exchange is never removed
    best: list[Rendered] = []
    while fewest <= most:
        middle = (fewest + most) // 2
        attempt = shortened(middle)
        if all(len(part) <= max_tokens for part in attempt):
            best, most = attempt, middle - 1
        else:
            fewest = middle + 1
    return [part for part in best if part.supervised_tokens]


def _flagged(messages: Sequence[Message], document: Rendered) -> list[Message]:
    """Return the messages with train flags that say what this document trains, whatever the policy was."""
    trained = set(np.unique(document.message[document.weights != 0]).tolist())
    return [
        replace(message, train=number in trained) if message.role is Role.ASSISTANT else message
        for number, message in enumerate(messages)
    ]


def _exchanges(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """Divide messages into the leading system messages and exchanges, each begun by a user."""
    count = next((n for n, message in enumerate(messages) if message.role is not Role.SYSTEM), len(messages))
    exchanges: list[list[Message]] = []
    for message in messages[count:]:
        if message.role is Role.USER or not exchanges:
            exchanges.append([])
        exchanges[-1].append(message)
    return list(messages[:count]), exchanges
