"""Sources of examples: files are found, read row by row, and every row is booked in the ledger.

Memory while reading is bounded by one row (see `lines.MAX_LINE_BYTES`), besides the records that are kept.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from tutelage.config.schema import SourceConfig
from tutelage.data.columns import check_columns_exist, check_columns_used
from tutelage.data.conversation import Record
from tutelage.data.formats import describe, detect_kind, guess_kind, parse_row
from tutelage.data.ledger import Ledger, SourceAccount
from tutelage.data.reasons import Reason, RowError
from tutelage.data.rows import EXCERPT_BYTES, RawRow, iter_json, iter_json_lines, iter_text
from tutelage.data.tables import HUB_PREFIX, is_saved_data_set, iter_csv, iter_data_set, iter_parquet, split_hub_path
from tutelage.errors import DataError
from tutelage.files.manifest import sha256_file

UNPACKED_SUFFIXES = (".jsonl", ".ndjson", ".json", ".txt", ".csv", ".tsv")  # read with gzip around them, too
SUFFIXES = (*UNPACKED_SUFFIXES, ".parquet")
DETECTION_ROWS = 20
DETECTION_LIMIT = 1000
# With no faulty row allowed, there is no point in reading on after so many.
MAX_FAULTS = 1000

_DESCRIPTIONS = frozenset({"dataset_info.json", "dataset_infos.json", "state.json"})  # about the data, not data
_SPLITS = {"train": "train", "training": "train", "test": "test", "validation": "validation", "valid": "validation"} | {
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
}
_WORDS = re.compile(r"[^a-z]+")


def read_source(config: SourceConfig, ledger: Ledger, *, max_bad_fraction: float = 0.0) -> list[Record]:
    """Return the records of a source, in file order, and book every row.

    Raises: DataError when there is nothing to read, or more than `max_bad_fraction` of the rows are faulty.
    """
    return list(iter_source(config, ledger, max_bad_fraction=max_bad_fraction))


def iter_source(config: SourceConfig, ledger: Ledger, *, max_bad_fraction: float = 0.0) -> Iterator[Record]:
    """Yield the records of a source as `read_source` does; the fraction of faulty rows is known, and judged, at the end."""
    account, rows = open_rows(config, ledger)
    yield from parse_rows(rows, account, config, ledger, max_bad_fraction=max_bad_fraction)
    judge(account, ledger, max_bad_fraction)


def open_rows(config: SourceConfig, ledger: Ledger) -> tuple[SourceAccount, Iterator[RawRow]]:
    """Open the account of a source and find out what its rows are; return the account and the rows, none of them booked.

    Raises: DataError when there is no such file, or the rows have no known layout.
    """
    account = ledger.open_source(config.name or default_name(config.path), path=config.path)
    rows = islice(_iter_rows(config, account), config.limit)
    head = _head(rows)
    account.kind, account.taken_as = _layout(config, head)
    if account.left_out:
        names = ", ".join(Path(file).name for file in account.left_out[:4])
        account.taken_as += f"; {len(account.left_out)} files of other splits left out: {names}"
    return account, chain(head, rows)


def parse_rows(
    rows: Iterable[RawRow],
    account: SourceAccount,
    config: SourceConfig,
    ledger: Ledger,
    *,
    max_bad_fraction: float = 1.0,
) -> Iterator[Record]:
    """Yield the records of rows whose kind the account knows, and book every row.

    Raises: DataError as `judge_so_far` does.
    """
    for row in rows:
        account.rows += 1
        try:
            if row.problem is not None:
                raise row.problem
            if account.kind == "auto":
                raise DataError(
                    f"none of the first {DETECTION_LIMIT:,} rows of {account.path} can be read",
                    mend="look at its first lines; if they are right, say what the rows are with `kind`",
                )
            record = parse_row(row.value, account.kind, config.columns, source=account.name, origin=row.origin)
        except RowError as error:
            excerpt = row.excerpt or json.dumps(row.value, ensure_ascii=False, default=str)[:EXCERPT_BYTES]
            ledger.reject(account.name, row.origin, error.reason, error.cause, excerpt=excerpt)
            judge_so_far(account, ledger, max_bad_fraction)
            continue
        account.kept += 1
        yield record


def judge(account: SourceAccount, ledger: Ledger, max_bad_fraction: float) -> None:
    """Stop when a source has more faulty rows than allowed, or none at all.

    Raises: DataError that shows the first faulty rows, how many there are, and how to go on.
    """
    if account.rows == 0:
        raise DataError(f"{account.path} has no rows", mend="remove it from the sources, or look into the file")
    if account.num_faulty / account.rows > max_bad_fraction:
        _stop(account, ledger, rows=f"{account.rows:,}")


def judge_so_far(account: SourceAccount, ledger: Ledger, max_bad_fraction: float) -> None:
    """Stop in the middle of a source where so many rows are faulty that there is no point in reading on.

    Raises: DataError as `judge` does.
    """
    if max_bad_fraction == 0 and account.num_faulty >= MAX_FAULTS:
        _stop(account, ledger, rows=f"the first {account.rows:,}")


def find_files(path: str, *, split: str | None = None) -> list[Path]:
    """Return the files that a path, folder or glob pattern stands for, sorted by name.

    Of a folder, files that carry the name of another split (`test.jsonl`, `validation-00000-of-00001.parquet`) are left out.

    Raises: DataError with the nearest names when there is none.
    """
    place = Path(path)
    if place.is_file():
        return [place]
    if not place.is_dir():
        return _found(sorted(file for file in _glob(path) if file.is_file()), f"{path} does not exist", place)
    files = sorted(file for file in place.rglob("*") if _is_data(file.relative_to(place)) and file.is_file())
    _found(files, f"{path} is a folder without any data file", place)
    of_split = [
        file for file in files if split is None or _split_of(file.relative_to(place)) in (None, _split_name(split))
    ]
    return _found(
        of_split, f"{path} has no file of the split {split!r}, only {', '.join(f.name for f in files[:6])}", place
    )


def format_of(file: Path) -> str | None:
    """Return the suffix that decides how a file is read, `.gz` aside; None when it is not a data file."""
    name = file.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    return suffix if suffix in (UNPACKED_SUFFIXES if name.endswith(".gz") else SUFFIXES) else None


def default_name(path: str) -> str:
    """Return the name of a source in curves and reports: the file's stem.

    Example:
        >>> default_name("data/dolly.jsonl.gz"), default_name("hub:owner/name")
        ('dolly', 'name')
    """
    if path.startswith(HUB_PREFIX):
        return Path(split_hub_path(path)[0]).name
    name = Path(path).name
    stem = Path(name.removesuffix(".gz")).stem if format_of(Path(name)) else name
    return stem.strip("*") or Path(path).resolve().parent.name


def _iter_rows(config: SourceConfig, account: SourceAccount) -> Iterator[RawRow]:
    if config.path.startswith(HUB_PREFIX) or is_saved_data_set(Path(config.path)):
        yield from iter_data_set(config.path, split=config.split)
        return
    files = find_files(config.path, split=config.split)
    account.left_out = [str(file) for file in find_files(config.path) if file not in files]
    for file in files:
        account.files[str(file)] = sha256_file(file)
        yield from _iter_file(file, account)


def _iter_file(file: Path, account: SourceAccount) -> Iterator[RawRow]:
    match format_of(file):
        case ".jsonl" | ".ndjson":
            return iter_json_lines(file, account)
        case ".json":
            return iter_json(file, account)
        case ".txt":
            return iter_text(file)
        case ".csv":
            return iter_csv(file)
        case ".tsv":
            return iter_csv(file, delimiter="\t")
        case ".parquet":
            return iter_parquet(file)
    known = f"{', '.join(SUFFIXES)}; {', '.join(UNPACKED_SUFFIXES)} also with .gz"
    raise DataError(f"{file} is of no known format", mend=f"its name must end in one of {known}")


def _glob(pattern: str) -> Iterator[Path]:
    place = Path(pattern)
    return Path(place.anchor).glob(str(place.relative_to(place.anchor)))


def _is_data(file: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.parts)
    return format_of(file) is not None and not hidden and file.name not in _DESCRIPTIONS


def _split_of(file: Path) -> str | None:
    """Return the split that a file's name or folder carries, None when it carries none."""
    words = _WORDS.split(str(file.parent / file.name.split(".")[0]).lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _split_name(split: str) -> str:
    return _SPLITS.get(split.lower(), split)


def _found(files: list[Path], problem: str, place: Path) -> list[Path]:
    if not files:
        raise DataError(problem, mend=_nearest_names(place))
    return files


def _head(rows: Iterator[RawRow]) -> list[RawRow]:
    """Take rows until there are enough readable ones to tell their kind."""
    head: list[RawRow] = []
    readable = 0
    for row in islice(rows, DETECTION_LIMIT):
        head.append(row)
        readable += row.problem is None
        if readable == DETECTION_ROWS:
            break
    return head


def _layout(config: SourceConfig, head: list[RawRow]) -> tuple[str, str]:
    """Return the kind of the rows, and a sentence that says what was taken for what."""
    values = [row.value for row in head if row.problem is None]
    kind = config.kind
    if kind == "auto" and not values:
        return kind, "unknown: no row could be read"
    try:
        if values:
            check_columns_exist(values, config.columns)
        found = detect_kind(values, config.columns) if kind == "auto" else kind
        check_columns_used(found, config.columns)
    except RowError as error:
        raise DataError(f"{config.path}: {error.cause}", mend=error.mend) from None
    typical = next(
        (value for value in values if guess_kind(value, config.columns) == found), values[0] if values else {}
    )
    return found, describe(typical, found, config.columns) + (" (detected)" if kind == "auto" else "")


def _stop(account: SourceAccount, ledger: Ledger, *, rows: str) -> None:
    faulty = [e for e in ledger.quarantine if e.source == account.name and e.reason not in _RULES][:5]
    lines = [f"  {entry.where}: {entry.reason}: {entry.cause}" for entry in faulty]
    more = account.num_faulty - len(faulty)
    if more > 0:
        lines.append(f"  and {more:,} more")
    fraction = account.num_faulty / account.rows
    raise DataError(
        f"{account.num_faulty:,} of {rows} rows of {account.path} cannot be used:\n" + "\n".join(lines),
        mend="correct or remove these rows (`tutelage check --json` lists them all), or go on without them: "
        f"data.max_bad_fraction={_rounded_up(fraction)}",
    )


# Not "is a fault": a row that the chat template refused is one, too, and its reason is none of this room's.
_RULES = frozenset(reason.value for reason in Reason if not reason.is_fault)


def _rounded_up(fraction: float) -> str:
    """Return a fraction rounded up to two significant digits, so that it lets this many rows pass."""
    scale = 0.01
    while scale > fraction / 10 and scale > 1e-9:
        scale /= 10
    return f"{min(1.0, (int(fraction / scale) + 1) * scale):.9f}".rstrip("0").rstrip(".")


def _nearest_names(place: Path) -> str:
    folder = place.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    names = sorted(file.name for file in folder.iterdir() if format_of(file) is not None or file.is_dir())
    nearest = difflib.get_close_matches(place.name, names, n=3, cutoff=0.4) or names[:3]
    return f"nearest in {folder}: {', '.join(nearest)}" if nearest else f"there is no data file in {folder}"
