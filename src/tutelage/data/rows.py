"""Rows of one file, in whatever format it is: each a JSON object, or the problem that keeps it from being one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tutelage.data.arrays import iter_array
from tutelage.data.conversation import Json, Origin
from tutelage.data.ledger import SourceAccount
from tutelage.data.lines import MAX_LINE_BYTES, Line, iter_chunks, iter_lines
from tutelage.data.messages import kind_of
from tutelage.data.reasons import Reason, RowError
from tutelage.data.strict_json import parse_json_bytes

EXCERPT_BYTES = 640
SNIFFED_LINES = 20


@dataclass(frozen=True)
class RawRow:
    """One row as the file has it; with a `problem`, `excerpt` is the beginning of what was there."""

    origin: Origin
    value: Mapping[str, Json]
    problem: RowError | None = None
    excerpt: str = ""


def iter_json(file: Path, account: SourceAccount) -> Iterator[RawRow]:
    """Yield the rows of a .json file: the elements of an array, lines of objects, or one object."""
    head = next(iter_chunks(file), b"")
    if head.lstrip()[:1] == b"[":
        for row, element in enumerate(iter_array(file)):
            yield _raw_row(Origin(str(file), row), element.value, element.data, element.problem)
    elif _has_line_objects(file):
        yield from iter_json_lines(file, account)
    else:
        yield from _one_object(file)


def iter_json_lines(file: Path, account: SourceAccount) -> Iterator[RawRow]:
    """Yield the rows of a file of JSON lines; blank lines are no rows, and are counted."""
    row = 0
    for line in iter_lines(file):
        if line.problem is None and not line.data.strip():
            account.blank_lines += 1
            continue
        yield _parsed_row(Origin(str(file), row, line.number), line)
        row += 1


def iter_text(file: Path) -> Iterator[RawRow]:
    """Yield the documents of a text file: what stands between blank lines, or each line when there is no blank one."""
    by_line = not _has_blank_line(file)
    block: list[Line] = []
    row, size = 0, 0
    for line in iter_lines(file):
        if line.problem is None and line.data.strip():
            size += len(line.data) + 1
            if size <= MAX_LINE_BYTES + 1:  # of a block over the limit, the rest is only counted
                block.append(line)
            if not by_line:
                continue
        if block:
            yield _document(Origin(str(file), row, block[0].number), block, size)
            row, block, size = row + 1, [], 0
        if line.problem is not None:
            yield RawRow(Origin(str(file), row, line.number), {}, line.problem, _excerpt(line.data))
            row += 1
    if block:
        yield _document(Origin(str(file), row, block[0].number), block, size)


def _parsed_row(origin: Origin, line: Line) -> RawRow:
    if line.problem is not None:
        return _raw_row(origin, None, line.data, line.problem)
    try:
        return _raw_row(origin, parse_json_bytes(line.data), line.data)
    except RowError as problem:
        return _raw_row(origin, None, line.data, problem)


def _raw_row(origin: Origin, value: Json, data: bytes, problem: RowError | None = None) -> RawRow:
    if problem is None and not isinstance(value, dict):
        problem = RowError(Reason.NOT_AN_OBJECT, f"the row is {kind_of(value)}")
    if problem is not None:
        return RawRow(origin, {}, problem, _excerpt(data))
    return RawRow(origin, value)


def _document(origin: Origin, block: list[Line], size: int) -> RawRow:
    data = b"\n".join(line.data for line in block)
    if size > MAX_LINE_BYTES + 1:
        cause = f"{size - 1:,} bytes without a blank line, of which {MAX_LINE_BYTES:,} are accepted"
        return RawRow(origin, {}, RowError(Reason.LINE_TOO_LONG, cause), _excerpt(data))
    try:
        return RawRow(origin, {"text": data.decode("utf-8")})
    except UnicodeDecodeError as error:
        cause = f"byte {data[error.start]:#04x} at byte {error.start + 1} of the block"
        return RawRow(origin, {}, RowError(Reason.INVALID_UTF8, cause), _excerpt(data))


def _one_object(file: Path) -> Iterator[RawRow]:
    """Yield a file that holds one object over several lines as one row."""
    data = bytearray()
    problem: RowError | None = None
    try:
        for chunk in iter_chunks(file):
            data += chunk
            if len(data) > MAX_LINE_BYTES:
                problem = RowError(Reason.LINE_TOO_LONG, f"one value of more than {MAX_LINE_BYTES:,} bytes")
                break
    except RowError as error:
        problem = error
    if data.strip() or problem is not None:
        yield _parsed_row(Origin(str(file), 0), Line(1, bytes(data), problem))


def _has_line_objects(file: Path) -> bool:
    """Return whether one of the first lines is a whole JSON object by itself."""
    for line in islice(iter_lines(file), SNIFFED_LINES):
        try:
            if line.problem is None and line.data.strip() and isinstance(parse_json_bytes(line.data), dict):
                return True
        except RowError:
            continue
    return False


def _has_blank_line(file: Path) -> bool:
    seen_text = False
    blank_after_text = False
    for line in iter_lines(file):
        if line.problem is not None:
            return False
        if not line.data.strip():
            blank_after_text = seen_text
        elif blank_after_text:
            return True
        else:
            seen_text = True
    return False


def _excerpt(data: bytes) -> str:
    return data[:EXCERPT_BYTES].decode("utf-8", errors="backslashreplace")
