"""Rows of CSV files, Parquet files, and Hugging Face data sets from the Hub or from disk.

Parquet and data sets need the extra `data` (pyarrow, datasets). Nothing that comes with a data set is ever executed.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tutelage.data.conversation import Json, Origin
from tutelage.data.lines import MAX_LINE_BYTES, iter_lines
from tutelage.data.reasons import Reason, RowError
from tutelage.data.rows import EXCERPT_BYTES, RawRow
from tutelage.errors import DataError

HUB_PREFIX = "hub:"
_BATCH_ROWS = 256
_SAVED_DATA_SET, _SAVED_SPLITS = "state.json", "dataset_dict.json"


def iter_csv(file: Path, *, delimiter: str = ",") -> Iterator[RawRow]:
    """Yield the rows of a CSV file with a header; every cell is text, and lists in cells are read as JSON later on.

    Raises: DataError when the header cannot be read, or two columns have the same name.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    lines = _CsvLines(file)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    row = 0
    while True:
        first_line = lines.number + 1
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if header is None or not cells:  # the csv module gives a blank line as no cells
                header = header or _header(file, cells)
                continue
            yield RawRow(Origin(str(file), row, first_line), _csv_row(header, cells))
        except (csv.Error, RowError) as error:
            if header is None:
                raise DataError(f"the header of {file} cannot be read: {error}", mend="mend its first line") from error
            problem = error if isinstance(error, RowError) else RowError(Reason.DAMAGED_FILE, f"not CSV: {error}")
            yield RawRow(Origin(str(file), row, first_line), {}, problem, lines.last)
        row += 1


def iter_parquet(file: Path) -> Iterator[RawRow]:
    """Yield the rows of a Parquet file, a batch at a time.

    Raises: DataError when pyarrow is not installed or the file is damaged.
    """
    pyarrow, parquet = _module("pyarrow"), _module("pyarrow.parquet")
    try:
        with parquet.ParquetFile(file) as table:
            row = 0
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                for value in batch.to_pylist():
                    yield RawRow(Origin(str(file), row), _plain_row(value))
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a readable Parquet file: {error}", mend="fetch or write it again") from error


def is_saved_data_set(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of Hugging Face datasets."""
    return (folder / _SAVED_DATA_SET).is_file() or (folder / _SAVED_SPLITS).is_file()


def iter_data_set(path: str, *, split: str) -> Iterator[RawRow]:
    """Yield the rows of a split of `hub:owner/name[:subset][@revision]`, or of a folder made by `save_to_disk`.

    Raises: DataError when datasets is not installed, there is no such data set or split, or it cannot be loaded.
    """
    data_set = _load_data_set(path, split)
    row = 0
    for batch in data_set.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        for value in batch.to_pylist():
            yield RawRow(Origin(f"{path}[{split}]", row), _plain_row(value))
            row += 1


def split_hub_path(path: str) -> tuple[str, str | None, str | None]:
    """Return name, subset and revision of a path to the Hub.

    Example:
        >>> split_hub_path("hub:owner/name:subset@main"), split_hub_path("hub:owner/name")
        (('owner/name', 'subset', 'main'), ('owner/name', None, None))
    """
    whole, _, revision = path.removeprefix(HUB_PREFIX).partition("@")
    name, _, subset = whole.partition(":")
    return name, subset or None, revision or None


def _load_data_set(path: str, split: str) -> Any:
    datasets = _module("datasets")
    try:
        if path.startswith(HUB_PREFIX):
            name, subset, revision = split_hub_path(path)
            found = datasets.load_dataset(name, subset, revision=revision)
        else:
            found = datasets.load_from_disk(path)
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # what datasets raises for missing, offline and script-only ones
        raise DataError(
            f"the data set {path} cannot be loaded: {error}", mend="check its name, the network, or download it first"
        ) from error
    if not isinstance(found, Mapping):
        return found
    if split not in found:
        raise DataError(f"the data set {path} has no split {split!r}", mend=f"set split to one of {', '.join(found)}")
    return found[split]


class _CsvLines:
    """Lines of a CSV file as text, with their ends, since a quoted cell may hold line feeds."""

    def __init__(self, file: Path) -> None:
        self._lines = iter_lines(file)
        self.number = 0
        self.last = ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number = line.number
        self.last = line.data[:EXCERPT_BYTES].decode("utf-8", errors="backslashreplace")
        if line.problem is not None:
            raise line.problem
        try:
            return line.data.decode("utf-8") + "\n"
        except UnicodeDecodeError as error:
            cause = f"byte {line.data[error.start]:#04x} at column {error.start + 1}"
            raise RowError(Reason.INVALID_UTF8, cause) from None


def _header(file: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(set(names)) != len(names):
        raise DataError(f"{file} has two columns of the same name: {', '.join(names)}", mend="rename one of them")
    return names


def _csv_row(header: list[str], cells: list[str]) -> dict[str, Json]:
    if len(cells) != len(header):
        raise RowError(Reason.WRONG_TYPE, f"{len(cells)} cells, but the header has {len(header)}")
    return dict(zip(header, cells, strict=True))


def _plain_row(row: Mapping[str, Any]) -> dict[str, Json]:
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Json:
    """Return a value of an Arrow table as a JSON value.

    Arrow gives every object of a column the same keys and fills the missing ones with null, so a null inside an object
    means absent: without this, a tool call would get the arguments of all other tools.
    """
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return json.loads(json.dumps(value, default=str))


def _module(name: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"this source needs {error.name}", mend="pip install 'tutelage[data]'") from error
