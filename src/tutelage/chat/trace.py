"""Strings that remember where their characters came from, through everything a chat template does to them.

A chat template is a program that mixes its own words with fields of messages. To know which of its output must be
learned, we let it run on strings that carry, beside their text, a list of labelled spans. A label is a `Source`
(this text came from that field of that message) or a `Mark` (zero characters wide: here the template entered its loop
body for message i). Characters under no source are the template's own words.

Nothing here looks for text: a span is where it is because the operations that built the string put it there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, SupportsIndex, TypeAlias

from markupsafe import Markup, escape


class Field(Enum):
    """The field of a message that text was taken from."""

    ROLE = auto()
    CONTENT = auto()
    REASONING = auto()
    TOOL_CALL = auto()
    LABEL = auto()  # name of the speaker, id of the call that a tool result answers
    TOOLS = auto()  # descriptions of the tools on offer; they belong to no message


@dataclass(frozen=True, slots=True)
class Source:
    """A field of message number `message`; -1 for the tools on offer."""

    message: int
    field: Field


class MarkKind(Enum):
    """Events of the template's run that leave a trace in its output."""

    LOOP = auto()  # a loop begins
    ENTER = auto()  # its body begins for one message
    LEAVE = auto()  # the loop is over
    GENERATION = auto()  # {% generation %}
    END_GENERATION = auto()


@dataclass(frozen=True, slots=True)
class Mark:
    """An event, and the message it is about (-1: none)."""

    kind: MarkKind
    message: int = -1


Label: TypeAlias = Source | Mark
Span: TypeAlias = tuple[int, int, Label]


class Traced(str):
    """A string with labelled spans, sorted and disjoint. Equal, hashed and printed like the plain string.

    Example:
        >>> source = Source(0, Field.CONTENT)
        >>> line = "user: " + Traced(" hi ", ((0, 4, source),)).strip()
        >>> line, spans_of(line) == ((6, 8, source),)
        ('user: hi', True)
    """

    __slots__ = ("_spans",)
    _spans: tuple[Span, ...]

    def __new__(cls, text: str, spans: tuple[Span, ...]) -> Traced:
        self = super().__new__(cls, text)
        self._spans = spans
        return self

    def __str__(self) -> str:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Traced, (plain(self), self._spans)

    def __add__(self, other: str) -> str:
        if type(other) is str:  # by far the most frequent case: nothing moves
            return Traced(str.__add__(self, other), self._spans)
        return concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        if type(other) is str:
            at = len(other)
            moved = tuple([(first + at, last + at, label) for first, last, label in self._spans])
            return Traced(other + plain(self), moved)
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> str:
        return concat([self] * count.__index__())

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        return percent(self, values)

    def __format__(self, spec: str) -> str:
        return self if not spec else self._whole(str.__format__(self, spec))

    def __iter__(self) -> Iterator[str]:
        for position in range(len(self)):
            yield self._cut(position, position + 1)

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._cut(start, max(start, stop))
            return concat([self._cut(position, position + 1) for position in range(start, stop, step)])
        position = operator.index(key)
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError("string index out of range")
        return self._cut(position, position + 1)

    def _cut(self, start: int, stop: int) -> str:
        """Return characters [start, stop). An empty cut still knows the source at that place, so that a field that
        was stripped to nothing stays visible in the output."""
        if start == stop:
            for first, last, label in self._spans:
                if first <= start <= last and isinstance(label, Source):
                    return self._like("", ((0, 0, label),))
            return self._like("", ())
        spans = []
        for first, last, label in self._spans:
            low, high = max(first, start), min(last, stop)
            if low < high or (first == last and low == high):
                spans.append((low - start, high - start, label))
        return self._like(plain(self)[start:stop], spans)

    def _whole(self, text: str) -> str:
        """Label all of `text`, made from this string by an operation that moves characters, with its first source."""
        for _, _, label in self._spans:
            if isinstance(label, Source):
                return self._like(text, ((0, len(text), label),))
        return self._like(text, ())

    def _like(self, text: str, spans: Iterable[Span]) -> str:
        """Return a string of this one's kind; without spans a plain one."""
        return labelled(text, spans)

    def _mapped(self, change: Callable[[str], str]) -> str:
        """Apply a change that works letter by letter (upper, lower, ...)."""
        text = change(plain(self))
        return self._like(text, self._spans) if len(text) == len(self) else self._whole(text)

    def strip(self, chars: str | None = None) -> str:
        start = len(self) - len(str.lstrip(self, chars))
        return self._cut(start, max(start, len(str.rstrip(self, chars))))

    def lstrip(self, chars: str | None = None) -> str:
        return self._cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None) -> str:
        return self._cut(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str) -> str:
        return self._cut(len(prefix), len(self)) if str.startswith(self, prefix) else self

    def removesuffix(self, suffix: str) -> str:
        return self._cut(0, len(self) - len(suffix)) if suffix and str.endswith(self, suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        at, lines = 0, []
        for line in str.splitlines(self, True):
            shown = str.splitlines(line, keepends)[0]
            lines.append(self._cut(at, at + len(shown)))
            at += len(line)
        return lines

    def _located(self, pieces: list[str], separator: str | None) -> list[str]:
        """Cut out `pieces`, which lie in this order in the string with separators (None: white space) in between."""
        text, at, found = plain(self), 0, []
        for piece in pieces:
            at = text.find(piece, at) if separator is None else at
            found.append(self._cut(at, at + len(piece)))
            at += len(piece) + len(separator or "")
        return found

    def partition(self, sep: str) -> tuple[str, str, str]:
        at = str.find(self, sep)
        if at < 0:
            return self, "", ""
        return self._cut(0, at), self._cut(at, at + len(sep)), self._cut(at + len(sep), len(self))

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        at = str.rfind(self, sep)
        if at < 0:
            return "", "", self
        return self._cut(0, at), self._cut(at, at + len(sep)), self._cut(at + len(sep), len(self))

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        return replace(self, old, new, count.__index__())

    def join(self, items: Iterable[str]) -> str:
        return join(self, items)

    def upper(self) -> str:
        return self._mapped(str.upper)

    def lower(self) -> str:
        return self._mapped(str.lower)

    def title(self) -> str:
        return self._mapped(str.title)

    def capitalize(self) -> str:
        return self._mapped(str.capitalize)

    def casefold(self) -> str:
        return self._mapped(str.casefold)

    def swapcase(self) -> str:
        return self._mapped(str.swapcase)

    def ljust(self, width: SupportsIndex, fillchar: str = " ") -> str:
        return self + str.ljust(plain(self), width, fillchar)[len(self) :]

    def rjust(self, width: SupportsIndex, fillchar: str = " ") -> str:
        padded = str.rjust(plain(self), width, fillchar)
        return padded[: len(padded) - len(self)] + self

    def center(self, width: SupportsIndex, fillchar: str = " ") -> str:
        return self._whole(str.center(self, width, fillchar))

    def zfill(self, width: SupportsIndex) -> str:
        return self._whole(str.zfill(self, width))

    def expandtabs(self, tabsize: SupportsIndex = 8) -> str:
        return self._whole(str.expandtabs(self, tabsize))

    def translate(self, table: Any) -> str:
        return self._whole(str.translate(self, table))


class SafeTraced(Traced):
    """A traced string that a template marked as safe: like Jinja's `Markup`, it escapes for HTML what is added to it.

    Templates that build JSON with `arguments | tojson | safe` do turn quotes into `&#34;` in this way. It is what
    transformers renders, and so it is what the model is shown.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return Traced(plain(self), self._spans)

    def __html__(self) -> SafeTraced:
        return self

    def __add__(self, other: str) -> str:
        return add_escaped(self, other) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return add_escaped(other, self) if isinstance(other, str) else NotImplemented

    def _like(self, text: str, spans: Iterable[Span]) -> str:
        return safe(labelled(text, spans))


def plain(text: str) -> str:
    """Return `text` as an exact `str`, without its spans."""
    return str.__str__(text)


def spans_of(text: str) -> tuple[Span, ...]:
    """Return the labelled spans of any string."""
    return text._spans if isinstance(text, Traced) else ()


def labelled(text: str, spans: Iterable[Span]) -> str:
    """Return `text` with these spans, as a plain string where there are none."""
    spans = tuple(spans)
    return Traced(text, spans) if spans else text


def of(text: str, source: Source) -> Traced:
    """Return `text` as coming wholly from `source`."""
    return Traced(text, ((0, len(text), source),))


def is_safe(text: object) -> bool:
    """Whether a template marked `text` as safe."""
    return hasattr(text, "__html__")


def safe(text: str) -> str:
    """Mark `text` as safe, as the filter of that name does."""
    return SafeTraced(plain(text), text._spans) if isinstance(text, Traced) else Markup(text)


def escaped(text: str) -> str:
    """Return `text` escaped for HTML and safe, as the filter `escape` does; safe text stays as it is."""
    if is_safe(text):
        return text
    if not isinstance(text, Traced):
        return escape(text)
    for letter, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"), ('"', "&#34;")):
        text = _spread(text, letter, entity)
    return safe(text)


def _spread(text: str, letter: str, entity: str) -> str:
    """Replace a letter by its entity, which comes from where the letter came from."""
    pieces: list[str] = []
    for number, piece in enumerate(text.split(letter)):
        if number:
            at = sum(map(len, pieces)) - (number - 1) * (len(entity) - 1)
            source = text[at : at + 1]
            pieces.append(source._whole(entity) if isinstance(source, Traced) else entity)
        pieces.append(piece)
    return concat(pieces)


def add_escaped(left: str, right: str) -> str:
    """Add two strings of which at least one is safe: the other is escaped, the sum is safe."""
    return safe(concat((escaped(left), escaped(right))))


def concat(pieces: Iterable[str]) -> str:
    """Join strings end to end, as `"".join` does."""
    pieces = list(pieces)
    spans: list[Span] = []
    at = 0
    for piece in pieces:
        if type(piece) is not str and isinstance(piece, Traced):
            own = piece._spans
            spans += [(first + at, last + at, label) for first, last, label in own] if at else own
        at += len(piece)
    text = "".join(pieces)
    return Traced(text, tuple(spans)) if spans else text


def join(separator: str, items: Iterable[str]) -> str:
    """Join strings with a separator, as `separator.join` does."""
    pieces: list[str] = []
    for item in items:
        if pieces:
            pieces.append(separator)
        pieces.append(item)
    for piece in pieces:
        if not isinstance(piece, str):
            raise TypeError(f"expected str instance, {type(piece).__name__} found")
    return concat(pieces)


def replace(text: str, old: str, new: str, count: int = -1) -> str:
    """Replace `old` by `new`, as `str.replace` does; the text in between keeps its spans."""
    if not isinstance(text, Traced) and not isinstance(new, Traced):
        return text.replace(old, new, count)
    if not old:
        made = str.replace(text, old, new, count)
        return next(part for part in (text, new) if isinstance(part, Traced))._whole(made)
    pieces = text.split(old, count)
    return join(new, pieces)


def percent(template: str, values: Any) -> str:
    """Format with `%`; strings put in by a bare `%s` keep their spans."""
    if type(values) is not tuple:
        values = (values,) if not isinstance(values, dict) else values
    if isinstance(values, dict) or not any(isinstance(value, Traced) for value in values):
        made = str.__mod__(plain(template), values)
        return template._whole(made) if isinstance(template, Traced) else made
    return stitched(lambda stand_ins: str.__mod__(plain(template), tuple(stand_ins)), list(values))


def stitched(make: Callable[[list[Any]], str], values: list[Any]) -> str:
    """Let `make` format stand-ins of private-use characters, then put the traced strings in their place.

    A stand-in is as long as what it stands for, so that widths and precisions come out the same.
    """
    mark = "\U0010fffd"
    stand_ins = [mark * len(value) if isinstance(value, Traced) else value for value in values]
    made = make([plain(value) if isinstance(value, Traced) else value for value in values])
    shape = make(stand_ins)
    if len(shape) != len(made):
        return made
    spans: list[Span] = []
    at = 0
    for value in values:
        if type(value) is not Traced or not value:
            continue
        at = shape.find(mark * len(value), at)
        if at < 0 or made[at : at + len(value)] != value:
            return made
        spans += [(first + at, last + at, label) for first, last, label in value._spans]
        at += len(value)
    return labelled(made, spans)
