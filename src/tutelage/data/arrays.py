"""The elements of a JSON array, one by one, without holding the array; a broken element does not take down its neighbours.

The array is cut at its commas by following brackets and quotes, and each element is parsed on its own afterwards. When
an element does not parse, it may be because a bracket or a quote is missing, so that it swallowed the elements after
it: it is then cut again wherever a line begins like the first element's line did, and each piece is tried. In an array
written on one line there is no such mark, and the elements that cannot be told apart are one bad row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tutelage.data.conversation import Json
from tutelage.data.lines import MAX_LINE_BYTES, iter_chunks
from tutelage.data.reasons import Reason, RowError
from tutelage.data.strict_json import parse_json_bytes

_OUTSIDE_STRING = re.compile(rb'["\[\]{},]')
_INSIDE_STRING = re.compile(rb'["\\\n]')
_OPENER = {b"}": b"{", b"]": b"["}
_HEAD_BYTES = 1024


@dataclass(frozen=True)
class Element:
    """The bytes of one element, and its value or the problem that keeps it from having one."""

    data: bytes
    value: Json = None
    problem: RowError | None = None


def iter_array(path: Path, *, max_element_bytes: int = MAX_LINE_BYTES) -> Iterator[Element]:
    """Yield the elements of the array that a file holds; memory is bounded by the limit, whatever the file holds."""
    cutter = _Cutter(max_element_bytes)
    chunks = iter_chunks(path)
    while True:
        try:
            chunk = next(chunks, None)
        except RowError as problem:
            yield Element(bytes(cutter.buffer[:_HEAD_BYTES]), problem=problem)
            return
        if chunk is None:
            break
        yield from cutter.feed(chunk)
    yield from cutter.finish()


@dataclass
class _Cutter:
    """Cuts a stream of bytes at the commas of its outermost array."""

    max_element_bytes: int
    buffer: bytearray = field(default_factory=bytearray)  # begins where the current element begins
    position: int = 0  # everything before it was looked at
    stack: list[bytes] = field(default_factory=list)  # open brackets inside the current element
    in_string: bool = False
    begun: bool = False  # the array's own bracket was seen
    ended: bool = False
    overlong: int = 0  # bytes of the current element that were thrown away because it is too long
    after_comma: bool = False
    mark: re.Pattern[bytes] | None = None  # how the line of an element begins

    def feed(self, chunk: bytes) -> Iterator[Element]:
        """Take the next bytes, and yield the elements that are complete now."""
        self.buffer += chunk
        while True:
            pattern = _INSIDE_STRING if self.in_string else _OUTSIDE_STRING
            match = pattern.search(self.buffer, self.position)
            if match is None:
                self.position = len(self.buffer)
                break
            if match.group() == b"\\":
                if match.end() == len(self.buffer):  # what is escaped comes with the next chunk
                    self.position = match.start()
                    break
                self.position = match.end() + 1
                continue
            self.position = match.end()
            yield from self._take(match.group())
        yield from self._shed()

    def finish(self) -> Iterator[Element]:
        """Yield what the end of the file leaves over: nothing when the array was closed and nothing follows it."""
        rest = bytes(self.buffer)
        if self.ended and rest.strip():
            problem = RowError(Reason.SEVERAL_VALUES, "there is more after the array's end")
            yield Element(rest.strip()[:_HEAD_BYTES], problem=problem)
        if self.ended:
            return
        *whole, last = [*self._elements(rest)] if rest.strip() else [Element(b"")]
        yield from whole
        if rest.strip() and last.problem is not None:
            # The bracket that closes the array was taken for one that a broken element before it had left open.
            last = _parsed(last.data.removesuffix(b"]").rstrip())
            if last.problem is None:
                yield last
                return
        elif rest.strip():
            yield last
        problem = RowError(Reason.TRUNCATED_FILE, "the array is never closed by ]")
        yield Element(last.data[:_HEAD_BYTES], problem=problem)

    def _take(self, token: bytes) -> Iterator[Element]:
        if self.ended:
            return
        if self.in_string:
            self.in_string = False  # closed, or broken off by a line feed, which no string may hold
        elif token == b'"':
            self.in_string = True
        elif not self.begun:
            self.begun = token == b"["
            self._cut()
        elif token in (b"{", b"["):
            self.stack.append(token)
        elif token in (b"}", b"]") and _OPENER[token] in self.stack:
            while self.stack.pop() != _OPENER[token]:
                pass  # a bracket inside was never closed; the element will not parse
        elif not self.stack and token == b",":
            yield from self._elements(self.buffer[: self.position - 1])
            self._cut(after_comma=True)
        elif not self.stack and token == b"]":
            yield from self._last()
            self._cut()
            self.ended = True

    def _last(self) -> Iterator[Element]:
        last = self.buffer[: self.position - 1]
        if last.strip() or self.overlong:
            yield from self._elements(last)
        elif self.after_comma:
            yield Element(b"", problem=RowError(Reason.BAD_JSON, "a comma before the array's end"))

    def _elements(self, data: bytes | bytearray) -> Iterator[Element]:
        """Yield one element, or, when it does not parse, the pieces that its lines suggest."""
        data = bytes(data)
        self.mark = self.mark or _line_mark(data)
        size = len(data) + self.overlong
        if self.overlong or size > self.max_element_bytes:
            cause = f"{size:,} bytes, of which {self.max_element_bytes:,} are accepted"
            yield Element(data[:_HEAD_BYTES], problem=RowError(Reason.LINE_TOO_LONG, cause))
            return
        element = _parsed(data.strip())
        pieces = [data] if element.problem is None else self._pieces(data)
        if len(pieces) == 1:
            yield element
        else:
            yield from (_parsed(piece.strip().removesuffix(b",").rstrip()) for piece in pieces)

    def _pieces(self, data: bytes) -> list[bytes]:
        """Cut bytes before every line that begins like an element."""
        if self.mark is None:
            return [data]
        starts = [match.start() for match in self.mark.finditer(data)]
        cuts = [0, *(start for start in starts if data[:start].strip()), len(data)]
        return [data[start:end] for start, end in pairwise(cuts)]

    def _cut(self, *, after_comma: bool = False) -> None:
        del self.buffer[: self.position]
        self.position = 0
        self.overlong = 0
        self.after_comma = after_comma

    def _shed(self) -> Iterator[Element]:
        """Bound the buffer: an element over the limit loses its middle, after giving up the elements it swallowed."""
        if self.position <= (_HEAD_BYTES if self.overlong or self.ended else self.max_element_bytes):
            return
        if not self.overlong and not self.ended:
            self.mark = self.mark or _line_mark(bytes(self.buffer))
            *whole, last = self._pieces(bytes(self.buffer))
            if whole:  # begin anew where the last line begins that looks like an element
                yield from (_parsed(piece.strip().removesuffix(b",").rstrip()) for piece in whole)
                self.buffer, self.position, self.stack, self.in_string = bytearray(last), 0, [], False
                yield from self.feed(b"")
                return
        self.overlong += self.position - _HEAD_BYTES
        del self.buffer[_HEAD_BYTES : self.position]
        self.position = _HEAD_BYTES


def _line_mark(first: bytes) -> re.Pattern[bytes] | None:
    """Return how lines begin that begin an element, judged by the first element; None when there is no telling."""
    space, text = first[: len(first) - len(first.lstrip())], first.strip()
    _, newline, indentation = space.rpartition(b"\n")
    if not newline or (not indentation and text.split(b"\n", 1)[0].rstrip() == b"{"):
        return None  # all on one line, or every bracket at the margin
    return re.compile(rb"\n" + re.escape(indentation) + rb"(?=\{)")


def _parsed(data: bytes) -> Element:
    try:
        return Element(data, parse_json_bytes(data))
    except RowError as problem:
        return Element(data, problem=problem)
