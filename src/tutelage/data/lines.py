"""Bytes of a file as lines of bounded length, gzip undone, and every flaw of the file reported in its place.

Memory is bounded by `MAX_LINE_BYTES`, whatever the file holds. Only a line feed ends a line: a carriage return before
it is dropped, and separators such as U+2028 inside strings are ordinary characters.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from tutelage.data.reasons import Reason, RowError
from tutelage.errors import DataError

MAX_LINE_BYTES = 8 * 2**20
CHUNK_BYTES = 2**18
_BOM = b"\xef\xbb\xbf"
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Line:
    """One line without its end. With a `problem`, `data` is the beginning of what was there."""

    number: int
    data: bytes
    problem: RowError | None = None


def iter_chunks(path: Path) -> Iterator[bytes]:
    """Yield the (decompressed) bytes of a file in pieces, without a byte order mark.

    Raises: RowError, after the last good piece, when a gzip stream ends early or is damaged; DataError for UTF-16 and 32.
    """
    with _open(path) as file:
        first = True
        while chunk := _read(file):
            if first:
                _refuse_wide_encodings(path, chunk)
                chunk = chunk.removeprefix(_BOM)
                first = False
            yield chunk


def iter_lines(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Yield every line of a file, blank ones too; a line over the limit comes as a problem, and reading goes on after it."""
    number, pending, skipped = 1, bytearray(), 0
    chunks = iter_chunks(path)
    while True:
        try:
            chunk = next(chunks, None)
        except RowError as problem:
            yield Line(number, bytes(pending[:CHUNK_BYTES]), problem)
            return
        if chunk is None:
            break
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            yield _line(number, pending, piece, skipped, max_line_bytes)
            number, pending, skipped = number + 1, bytearray(), 0
        room = max(0, max_line_bytes + 1 - len(pending))  # one byte more than allowed tells that the line is too long
        pending += rest[:room]
        skipped += len(rest[room:])
    if pending:
        yield _line(number, pending, b"", skipped, max_line_bytes)


def _line(number: int, pending: bytearray, piece: bytes, skipped: int, max_line_bytes: int) -> Line:
    size = len(pending) + skipped + len(piece)
    if size <= max_line_bytes:
        return Line(number, (bytes(pending) + piece).removesuffix(b"\r"))
    cause = f"{size:,} bytes, of which {max_line_bytes:,} are accepted"
    return Line(number, bytes(pending[:1024]) or piece[:1024], RowError(Reason.LINE_TOO_LONG, cause))


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if compressed:  # told by its first bytes, not by its name
            with gzip.open(file, "rb") as plain:
                yield cast(BinaryIO, plain)
        else:
            yield file


def _read(file: BinaryIO) -> bytes:
    try:
        # read1 returns what one block gives: nothing that was decompressed is lost when the next block is damaged.
        return cast(gzip.GzipFile, file).read1(CHUNK_BYTES)
    except EOFError:
        raise RowError(
            Reason.TRUNCATED_FILE, "the gzip stream ends before its end mark; later rows are missing"
        ) from None
    except (zlib.error, gzip.BadGzipFile) as error:
        raise RowError(Reason.DAMAGED_FILE, f"gzip cannot be undone from here on: {error}") from None


def _refuse_wide_encodings(path: Path, head: bytes) -> None:
    marked = head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff"))
    # Without a mark, text that begins with ASCII characters shows as one zero in two bytes, or three in four.
    start = head[:16]
    if marked or (len(start) > 1 and start.count(0) * 5 >= len(start) * 2):
        raise DataError(
            f"{path} is in UTF-16 or UTF-32, not UTF-8",
            mend=f"convert it: iconv -f UTF-16 -t UTF-8 {path.name} > utf8-{path.name}",
        )
