"""Records as JSON lines: appended one by one while a run goes on, and readable after a crash in the middle of a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from tutelage.errors import RunDirError
from tutelage.files.atomic import write_all, write_text
from tutelage.files.encode import encode_json

_TAIL_BLOCK_BYTES = 65536


class Appender:
    """Appends records to a file, one line each; a line torn by an earlier crash is mended when the file is opened.

    Each record reaches the operating system in one write, so it survives the death of the process. `sync` makes it
    survive a power cut as well.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        _mend_tail(self._descriptor)

    def append(self, record: Any) -> None:
        """Write one record as one line."""
        write_all(self._descriptor, memoryview((encode_json(record) + "\n").encode()))

    def sync(self) -> None:
        """Flush to the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; further appends fail."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Appender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def append(path: str | Path, record: Any) -> None:
    """Append one record to the file at `path`, mending a torn last line first."""
    with Appender(path) as appender:
        appender.append(record)


def write(path: str | Path, records: Iterable[Any]) -> None:
    """Replace the file at `path` by these records, whole or not at all."""
    write_text(path, "".join(encode_json(record) + "\n" for record in records))


def read(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a file written by `Appender`; a torn last line is left out.

    Raises: RunDirError, with the line, for damage anywhere else; FileNotFoundError when there is no file.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n")
    torn_tail = lines.pop()  # what follows the last newline: empty, or the line that was being written
    records = [_decode(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]
    whole = _decode_or_none(torn_tail)
    return [*records, whole] if whole is not None else records


def _decode(line: bytes, path: Path, number: int) -> dict[str, Any]:
    record = _decode_or_none(line)
    if record is None:
        raise RunDirError(
            f"{path}:{number} is not a JSON object: {line[:80]!r}",
            mend="the file was damaged or edited; remove that line to read the rest",
        )
    return record


def _decode_or_none(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # bad JSON and bad UTF-8 alike
        return None
    return record if isinstance(record, dict) else None


def _mend_tail(descriptor: int) -> None:
    """End the last line if it is whole, and cut it off if it is torn."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    start = _start_of_last_line(descriptor, size)
    if _decode_or_none(os.pread(descriptor, size - start, start)) is not None:
        os.write(descriptor, b"\n")
    else:
        os.ftruncate(descriptor, start)


def _start_of_last_line(descriptor: int, size: int) -> int:
    end = size
    while end > 0:
        start = max(0, end - _TAIL_BLOCK_BYTES)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
