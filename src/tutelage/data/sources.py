"""Sources of examples: files are found, read row by row, and every row is booked in the ledger.

Memory while reading is bounded by one row (see `lines.MAX_LINE_BYTES`), besides the records that are kept.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from tutelage.config.schema import SourceConfig
from tutelage.data.conversation import Json, Origin, Record
from tutelage.data.formats import describe, detect_kind, parse_row
from tutelage.data.ledger import Ledger, SourceAccount
from tutelage.data.lines import iter_chunks, iter_lines
from tutelage.data.messages import kind_of
from tutelage.data.reasons import Reason, RowError
from tutelage.data.strict_json import parse_json_bytes
from tutelage.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".txt", ".parquet", ".csv", ".tsv")
DETECTION_ROWS = 20
# With no faulty row allowed, there is no point in listing more of them than anybody reads.
MAX_LISTED_FAULTS = 10_000


@dataclass(frozen=True)
class RawRow:
    """One row as the file has it: a JSON object, or the problem that kept it from being one."""

    origin: Origin
    value: dict[str, Json] | None
    problem: RowError | None = None
    excerpt: str = ""


def read_source(config: SourceConfig, ledger: Ledger, *, max_bad_fraction: float = 0.0) -> list[Record]:
    """Return the records of a source, in file order, and book every row.

    Raises: DataError when there is nothing to read, or more than `max_bad_fraction` of the rows are faulty.
    """
    return list(iter_source(config, ledger, max_bad_fraction=max_bad_fraction))


def iter_source(config: SourceConfig, ledger: Ledger, *, max_bad_fraction: float = 0.0) -> Iterator[Record]:
    """Yield the records of a source as `read_source` does; the fraction of faulty rows is known, and judged, at the end."""
    account = ledger.open_source(config.name or default_name(config.path), path=config.path)
    rows = islice(_iter_rows(config, account), config.limit)
    head = list(islice(rows, DETECTION_ROWS))
    account.kind, account.taken_as = _layout(config, head)
    yield from _parse_rows(chain(head, rows), account, config, ledger, max_bad_fraction)
    judge(account, ledger, max_bad_fraction)


def judge(account: SourceAccount, ledger: Ledger, max_bad_fraction: float) -> None:
    """Stop when a source has more faulty rows than allowed, or none at all.

    Raises: DataError that shows the first faulty rows, how many there are, and how to go on.
    """
    if account.rows == 0:
        raise DataError(f"{account.path} has no rows", mend="remove it from the sources, or look into the file")
    if account.num_faulty > max_bad_fraction * account.rows:
        _stop(account, ledger)


def find_files(path: str) -> list[Path]:
    """Return the files that a path, folder or glob pattern stands for, sorted by name.

    Raises: DataError with the nearest names when there is none.
    """
    place = Path(path)
    if place.is_file():
        return [place]
    if place.is_dir():
        found = sorted(file for file in place.rglob("*") if file.is_file() and format_of(file) is not None)
        problem = f"{path} is a folder without any data file"
    else:
        found = sorted(file for file in _glob(path) if file.is_file())
        problem = f"{path} does not exist"
    if not found:
        raise DataError(problem, mend=_nearest_names(place))
    return found


def _glob(pattern: str) -> Iterator[Path]:
    place = Path(pattern)
    return Path(place.anchor).glob(str(place.relative_to(place.anchor)))


def format_of(file: Path) -> str | None:
    """Return the suffix that decides how a file is read, `.gz` aside; None when it is not a data file."""
    name = file.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def default_name(path: str) -> str:
    """Return the name of a source in curves and reports: the file's stem."""
    if path.startswith("hub:"):
        return path.removeprefix("hub:").split("/")[-1]
    name = Path(path).name.removesuffix(".gz")
    stem = Path(name).stem if format_of(Path(name)) else name
    return stem.strip("*") or Path(path).parent.name


def _iter_rows(config: SourceConfig, account: SourceAccount) -> Iterator[RawRow]:
    for file in find_files(config.path):
        suffix = format_of(file)
        if suffix in (".jsonl", ".ndjson"):
            yield from _json_lines(file, account)
        elif suffix == ".json":
            yield from _json_array(file)
        elif suffix == ".txt":
            yield from _text_blocks(file)
        else:
            raise DataError(
                f"{file} is of no known format", mend=f"known suffixes: {', '.join(SUFFIXES)}, and .gz of these"
            )


def _json_lines(file: Path, account: SourceAccount) -> Iterator[RawRow]:
    row = 0
    for line in iter_lines(file):
        if not line.data.strip() and line.problem is None:
            account.blank_lines += 1
            continue
        yield _raw_row(Origin(str(file), row, line.number), line.data, line.problem)
        row += 1


def _raw_row(origin: Origin, data: bytes, problem: RowError | None = None) -> RawRow:
    """Return a row of JSON text; whatever keeps it from being an object becomes its problem."""
    try:
        if problem is not None:
            raise problem
        value = parse_json_bytes(data)
        if not isinstance(value, dict):
            raise RowError(Reason.NOT_AN_OBJECT, f"the row is {kind_of(value)}")
    except RowError as error:
        return RawRow(origin, None, error, data[:640].decode("utf-8", errors="backslashreplace"))
    return RawRow(origin, value)


def _json_array(file: Path) -> Iterator[RawRow]:
    data = b"".join(iter_chunks(file))
    for index, value in enumerate(json.loads(data)):
        yield RawRow(Origin(str(file), index), value)


def _text_blocks(file: Path) -> Iterator[RawRow]:
    blocks = file.read_text(encoding="utf-8").split("\n\n")
    for index, block in enumerate(block for block in blocks if block.strip()):
        yield RawRow(Origin(str(file), index), {"text": block.strip("\n")})


def _layout(config: SourceConfig, head: list[RawRow]) -> tuple[str, str]:
    """Return the kind of the rows, and a sentence that says what was taken for what."""
    values = [row.value for row in head if row.value is not None]
    kind = config.kind
    if kind == "auto":
        if not values:  # nothing but faulty rows: any kind will do to book them
            return "unknown", "no row could be read"
        try:
            kind = detect_kind(values, config.columns)  # type: ignore[assignment]
        except RowError as error:
            raise DataError(f"{config.path}: {error.cause}", mend=error.mend) from None
    sentence = describe(values[0], kind, config.columns) if values else kind
    return kind, sentence if config.kind != "auto" else f"{sentence} (detected)"


def _parse_rows(
    rows: Iterable[RawRow], account: SourceAccount, config: SourceConfig, ledger: Ledger, max_bad_fraction: float
) -> Iterator[Record]:
    for row in rows:
        account.rows += 1
        try:
            if row.problem is not None or row.value is None:
                raise row.problem or RowError(Reason.EMPTY_ROW, "nothing there")
            record = parse_row(row.value, account.kind, config.columns, source=account.name, origin=row.origin)
        except RowError as error:
            excerpt = row.excerpt or json.dumps(row.value, ensure_ascii=False, default=str)[:640]
            ledger.reject(account.name, row.origin, error.reason, error.cause, excerpt=excerpt)
            if max_bad_fraction == 0 and account.num_faulty >= MAX_LISTED_FAULTS:
                _stop(account, ledger)
            continue
        account.kept += 1
        yield record


def _stop(account: SourceAccount, ledger: Ledger) -> None:
    faulty = [e for e in ledger.quarantine if e.source == account.name and e.reason in _FAULTS][:5]
    lines = [f"  {entry.where}: {entry.reason}: {entry.cause}" for entry in faulty]
    more = account.num_faulty - len(faulty)
    if more > 0:
        lines.append(f"  and {more:,} more")
    fraction = account.num_faulty / account.rows
    raise DataError(
        f"{account.num_faulty:,} of {account.rows:,} rows of {account.path} cannot be used:\n" + "\n".join(lines),
        mend=f"mend or remove these rows, or go on without them: data.max_bad_fraction={_rounded_up(fraction)}",
    )


_FAULTS = frozenset(reason.value for reason in Reason if reason.is_fault)


def _rounded_up(fraction: float) -> str:
    """Return a fraction rounded up to two significant digits, so that it lets this many rows pass."""
    scale = 0.01
    while scale > fraction / 10 and scale > 1e-9:
        scale /= 10
    return f"{min(1.0, (int(fraction / scale) + 1) * scale):.9f}".rstrip("0")


def _nearest_names(place: Path) -> str:
    folder = place.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    names = sorted(file.name for file in folder.iterdir() if format_of(file) is not None or file.is_dir())
    nearest = difflib.get_close_matches(place.name, names, n=3, cutoff=0.4) or names[:3]
    return f"nearest in {folder}: {', '.join(nearest)}" if nearest else f"there is no data file in {folder}"
