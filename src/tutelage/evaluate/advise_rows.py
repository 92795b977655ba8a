"""The rows of a source again, with what the base knows of them in mind: labelled, unknown facts apart or left out, or declined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tutelage.config.schema import Config, SourceConfig
from tutelage.data.conversation import Conversation
from tutelage.data.formats import parse_row
from tutelage.data.ledger import Ledger
from tutelage.data.rows import RawRow
from tutelage.data.sources import find_files, open_rows
from tutelage.data.tables import HUB_PREFIX, is_saved_data_set
from tutelage.errors import ConfigError, DataError
from tutelage.evaluate.facts import Knowledge, Known
from tutelage.files import jsonl
from tutelage.files.encode import encode_json

LABEL = "knowledge"
"""The column that holds the category of a row's fact."""
ABSTENTION = "I do not know."


class Unknown(StrEnum):
    """What becomes of a row whose fact the base does not know."""

    LABEL = "label"
    """It stays, and each row that was asked for has its category beside it."""
    APART = "apart"
    """It goes into a file of its own: as a source of its own it has its own curves, weight and share."""
    DROP = "drop"
    ABSTAIN = "abstain"
    """Its answer is replaced by one that declines."""


@dataclass(frozen=True)
class RowCounts:
    """What became of the rows: as many were read as were kept, changed, set apart and dropped. Faulty ones are among the dropped."""

    read: int
    kept: int
    changed: int
    apart: int
    dropped: int
    faulty: int

    def __str__(self) -> str:
        """Return them in one line."""
        faulty = f", {self.faulty:,} of them faulty" if self.faulty else ""
        return f"{self.read:,} rows read = {self.kept:,} kept + {self.changed:,} changed + {self.apart:,} apart + {self.dropped:,} dropped{faulty}"


def require_one_source(config: Config, path: Path) -> SourceConfig:
    """Return the one source whose rows can be written to `path` again.

    Raises: ConfigError where there are several, or the file is the source itself.
    """
    if len(config.data.train) != 1:
        raise ConfigError(
            f"the rows of {len(config.data.train)} sources do not belong into one file",
            mend="give one data file at a time",
        )
    source = config.data.train[0]
    is_table = source.path.startswith(HUB_PREFIX) or is_saved_data_set(Path(source.path))
    if path.exists() and not is_table and any(map(path.samefile, find_files(source.path, split=source.split))):
        raise ConfigError(f"{path} would be written over by what is made of it", mend="give --rows another name")
    return source


def apart_path(path: Path) -> Path:
    """Return where unknown rows go when they are set apart from those in `path`.

    Example:
        >>> apart_path(Path("data/rows.jsonl")).name
        'rows-unknown.jsonl'
    """
    return path.with_name(f"{path.stem}-unknown{path.suffix}")


def write_rows(
    path: Path, source: SourceConfig, known: Known, unknown: Unknown, *, abstention: str = ABSTENTION
) -> RowCounts:
    """Write the rows of `source` in their order as JSON lines, in the layout that they have; see `apart_path` for those set apart.

    Raises: DataError for a row whose answer cannot be replaced, or that JSON cannot hold.
    """
    found = list(_rows(source, known, unknown, abstention))
    jsonl.write(path, (row for fate, row in found if fate in ("kept", "changed")))
    if unknown is Unknown.APART:
        jsonl.write(apart_path(path), (row for fate, row in found if fate == "apart"))
    counts = Counter(fate for fate, _ in found)
    dropped = counts["dropped"] + counts["faulty"]
    return RowCounts(len(found), counts["kept"], counts["changed"], counts["apart"], dropped, counts["faulty"])


def _rows(
    source: SourceConfig, known: Known, unknown: Unknown, abstention: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what becomes of each row, and the row as it is then."""
    judged = {one.fact.where: one.knowledge for one in known.judged}
    account, rows = open_rows(source, Ledger())
    for row in rows:
        knowledge = judged.get(str(row.origin))
        if row.problem is not None:
            yield "faulty", {}
        elif knowledge is None or (unknown is not Unknown.LABEL and knowledge is not Knowledge.UNKNOWN):
            yield "kept", _as_json(row.value, row)
        elif unknown is Unknown.DROP:
            yield "dropped", {}
        elif unknown is Unknown.APART:
            yield "apart", _as_json(row.value, row)
        else:
            is_label = unknown is Unknown.LABEL
            changed = (
                {**row.value, LABEL: knowledge.value} if is_label else _declining(row, account.kind, source, abstention)
            )
            yield "changed", _as_json(changed, row)


def _as_json(value: Mapping[str, Any], row: RawRow) -> Mapping[str, Any]:
    try:
        encode_json(value)
    except TypeError as error:
        raise DataError(f"{row.origin}: {error}", mend="leave such columns out, or turn them into text") from None
    return value


def _declining(row: RawRow, kind: str, source: SourceConfig, abstention: str) -> Mapping[str, Any]:
    """Return a row with `abstention` where its answer stood, and nothing else changed that is trained on."""
    before = _messages(row.value, row, kind, source)
    changed: Mapping[str, Any] = _replaced(row.value, before[-1].content, abstention)
    after = _messages(changed, row, kind, source)
    if after[-1].content != abstention or after[:-1] != before[:-1]:
        raise DataError(
            f"{row.origin}: its answer stands in a form that cannot be replaced, such as JSON text in a column",
            mend="write the rows as messages first, or use --unknown drop",
        )
    return changed


def _messages(value: Mapping[str, Any], row: RawRow, kind: str, source: SourceConfig) -> tuple[Any, ...]:
    record = parse_row(value, kind, source.columns, origin=row.origin)
    assert isinstance(record, Conversation)  # only those have facts
    return record.messages


def _replaced(value: Any, old: str, new: str) -> Any:
    """Return JSON with every text that is `old` replaced."""
    if isinstance(value, str):
        return new if value == old else value
    if isinstance(value, Mapping):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(item, old, new) for item in value]
    return value
