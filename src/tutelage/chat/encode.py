"""Token ids of a traced text: those of one tokenisation, with control strings typed into messages kept as text.

The text is tokenised once, as a whole. Only where a control token was read from characters that came from a message
(somebody typed `<|im_end|>`) is anything done: the stretch between the neighbouring true control tokens is encoded
again by a tokenizer that knows no control strings. Tokenizers cut at control tokens before anything else, so the
stretch is encoded exactly as if the string were not in the vocabulary, and all other ids stay as they were.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.chat.template import TracedRender
from tutelage.chat.tokenizer import ChatTokenizer, Encoded
from tutelage.chat.trace import Field
from tutelage.errors import TemplateError

_OWN_WORDS = (Field.CONTENT, Field.REASONING, Field.TOOL_CALL)


@dataclass(frozen=True)
class Guard:
    """Characters [start, end) in which no control string may act; `own_words`: an assistant's, in which those control
    tokens that are not special (`<think>`, `<tool_call>`) are what it must produce, and do act."""

    start: int
    end: int
    own_words: bool


def guards_of(render: TracedRender, assistants: frozenset[int]) -> list[Guard]:
    """Return the stretches of a rendering that were taken from messages or tools. Roles are the template's business."""
    return [
        Guard(span.start, span.end, span.source.field in _OWN_WORDS and span.source.message in assistants)
        for span in render.sources
        if span.end > span.start and span.source.field is not Field.ROLE
    ]


@dataclass(frozen=True)
class Typed:
    """A control string that somebody typed into a message."""

    text: str
    start: int


def typed_controls(tokenizer: ChatTokenizer, text: str, encoded: Encoded, guards: Sequence[Guard]) -> dict[int, Typed]:
    """Return the tokens of `encoded`, by index, that are control tokens read from guarded characters."""
    starts = [guard.start for guard in guards]
    found = {}
    for index in np.flatnonzero(tokenizer.is_control[encoded.ids]):
        token = tokenizer.control_tokens[int(encoded.ids[index])]
        first, last = int(encoded.starts[index]), int(encoded.ends[index])
        at = text.find(token.text, first, last)  # tokens that swallow white space beside them span more than their text
        if at >= 0:
            first, last = at, at + len(token.text)
        for guard in guards[max(0, bisect_right(starts, first) - 1) :]:
            if guard.start >= last:
                break
            if guard.end > first and (token.special or not guard.own_words):
                found[int(index)] = Typed(token.text, first)
                break
    return found


def encode_guarded(
    tokenizer: ChatTokenizer, text: str, encoded: Encoded, guards: Sequence[Guard], typed: dict[int, Typed]
) -> Encoded:
    """Return the tokens of `text` with the typed control strings as ordinary text.

    Raises: TemplateError when the tokenizer makes a control token of them all the same.
    """
    if not typed:
        return encoded
    true_controls = [int(i) for i in np.flatnonzero(tokenizer.is_control[encoded.ids]) if int(i) not in typed]
    pieces: list[Encoded] = []
    for first, last in zip([-1, *true_controls], [*true_controls, len(encoded.ids)], strict=True):
        if any(first < index < last for index in typed):
            begin = int(encoded.ends[first]) if first >= 0 else 0
            end = int(encoded.starts[last]) if last < len(encoded.ids) else len(text)
            pieces += _inert(tokenizer, text, begin, end, guards, after_control=first >= 0)
        else:
            pieces.append(_slice(encoded, first + 1, last))
        pieces.append(_slice(encoded, last, last + 1))
    return Encoded(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("ids", "starts", "ends")))


def _inert(
    tokenizer: ChatTokenizer, text: str, begin: int, end: int, guards: Sequence[Guard], *, after_control: bool
) -> Iterator[Encoded]:
    """Yield the tokens of characters [begin, end), in which typed control strings overlapped true ones at most."""
    for start, stop in _template_words(begin, end, guards):
        for match in tokenizer.control_pattern.finditer(text[start:stop]):
            at = start + match.start()
            yield _plain(tokenizer, text, begin, at, after_control=after_control)
            begin, after_control = start + match.end(), True
            number = np.array([tokenizer.control_ids[match.group()]], dtype=np.int32)
            yield Encoded(number, np.array([at], dtype=np.int32), np.array([begin], dtype=np.int32))
    yield _plain(tokenizer, text, begin, end, after_control=after_control)


def _template_words(begin: int, end: int, guards: Sequence[Guard]) -> Iterator[tuple[int, int]]:
    """Yield the stretches of [begin, end) between the guards: the template's own words."""
    at = begin
    for guard in guards:
        if guard.end <= begin or guard.start >= end:
            continue
        if guard.start > at:
            yield at, guard.start
        at = max(at, guard.end)
    if at < end:
        yield at, end


def _plain(tokenizer: ChatTokenizer, text: str, begin: int, end: int, *, after_control: bool) -> Encoded:
    encoded = tokenizer.encode_inert(text[begin:end], after_control=after_control)
    controls = tokenizer.is_control[encoded.ids]
    if controls.any():
        made = tokenizer.decode(encoded.ids[controls][:1].tolist())
        raise TemplateError(
            f"the tokenizer makes the control token {made!r} even from plain text",
            mend="remove it from the message, or set data.control_strings=refuse and raise data.max_bad_fraction",
        )
    return Encoded(encoded.ids, encoded.starts + begin, encoded.ends + begin)


def _slice(encoded: Encoded, first: int, last: int) -> Encoded:
    return Encoded(encoded.ids[first:last], encoded.starts[first:last], encoded.ends[first:last])
