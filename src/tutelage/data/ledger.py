"""The ledger: what became of every input row, and of every token made from it.

Law of conservation: each row that is read is, at any time, either kept or dropped for exactly one named reason, and each
dropped row stands in the quarantine with its place and cause. `check_balanced` raises when the books do not close.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.data.conversation import Origin, Record
from tutelage.data.reasons import Reason
from tutelage.errors import DataError
from tutelage.files import jsonl
from tutelage.files.atomic import write_json
from tutelage.redact import redact

if TYPE_CHECKING:
    from rich.table import Table

EXCERPT_CHARACTERS = 160
_SEPARATOR = "\0"
# What was rendered is either cut, held out or trained on; what was planned for the steps goes through the loss.
TOKEN_BALANCES = (("rendered", ("dropped", "held_out", "train")), ("planned", ("loss",)))


@dataclass(frozen=True)
class QuarantineEntry:
    """One row that is not trained on."""

    source: str
    file: str
    row: int
    line: int | None
    reason: str
    cause: str
    excerpt: str

    @property
    def where(self) -> str:
        """Place as `file:line`, or `file row N` where there are no lines."""
        return str(Origin(self.file, self.row, self.line))


@dataclass
class TokenCount:
    """Tokens at one stage of the way from row to loss, and those of them that carry loss."""

    documents: int = 0
    tokens: int = 0
    supervised: int = 0


@dataclass
class SourceAccount:
    """The books of one source."""

    name: str
    path: str = ""
    kind: str = ""
    taken_as: str = ""
    rows: int = 0
    kept: int = 0
    blank_lines: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: dict[str, TokenCount] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of each file that was read
    left_out: list[str] = field(default_factory=list)  # files of a folder that belong to other splits
    retrieved: Counter[str] = field(default_factory=Counter)  # rows with passages, see `retrieve`

    @property
    def num_faulty(self) -> int:
        """Rows dropped for a fault of their own, as opposed to a rule that was asked for."""
        return sum(count for reason, count in self.dropped.items() if reason not in _RULES)


class Ledger:
    """Accounts of all sources of a run, and the quarantine."""

    def __init__(self) -> None:
        self.sources: dict[str, SourceAccount] = {}
        self.quarantine: list[QuarantineEntry] = []
        self._dropped_later: set[tuple[str, str, int]] = set()

    @classmethod
    def from_books(cls, sources: Mapping[str, Any], quarantine: Iterable[Mapping[str, Any]]) -> Ledger:
        """Return the ledger whose `to_json()["sources"]` and quarantine entries, as mappings, these are."""
        ledger = cls()
        for name, books in sources.items():
            account = SourceAccount(name, **{**books, **{key: Counter(books[key]) for key in ("dropped", "retrieved")}})
            account.tokens = {stage: TokenCount(**count) for stage, count in books["tokens"].items()}
            ledger.sources[name] = account
        ledger.quarantine = [QuarantineEntry(**entry) for entry in quarantine]
        return ledger

    def open_source(self, name: str, *, path: str = "", kind: str = "", taken_as: str = "") -> SourceAccount:
        """Open an account; a name that is taken gets a number, so that two sources never share one."""
        unique, number = name, 2
        while unique in self.sources:
            unique, number = f"{name}-{number}", number + 1
        self.sources[unique] = SourceAccount(unique, path, kind, taken_as)
        return self.sources[unique]

    def reject(self, source: str, origin: Origin, reason: str, cause: str, *, excerpt: str = "") -> None:
        """Book a row that was read as dropped, and put it into the quarantine."""
        self.sources[source].dropped[str(reason)] += 1
        cause, _, excerpt = redact(f"{cause}{_SEPARATOR}{excerpt}").partition(_SEPARATOR)  # one scan, not two
        self.quarantine.append(
            QuarantineEntry(
                source=source,
                file=origin.file,
                row=origin.row,
                line=origin.line,
                reason=str(reason),
                cause=cause,
                excerpt=excerpt[:EXCERPT_CHARACTERS],
            )
        )

    def drop(self, record: Record, reason: str, cause: str) -> None:
        """Move a record that was kept at reading to dropped: too long, nothing to train, ...

        Raises: DataError when the record's source has no account, or the record was dropped before.
        """
        origin = record.origin or Origin(f"<{record.id}>", 0)
        key = (record.source, origin.file, origin.row)
        if record.source not in self.sources or key in self._dropped_later:
            raise DataError(
                f"{origin} of source {record.source!r} cannot be dropped: unknown source, or dropped before"
            )
        self._dropped_later.add(key)
        self.sources[record.source].kept -= 1
        self.reject(record.source, origin, reason, cause)

    def book_tokens(self, source: str, stage: str, tokens: int, supervised: int, *, documents: int = 1) -> None:
        """Add tokens to a stage: `rendered`, `dropped`, `held_out`, `train`, `planned`, `loss`, or one of your own."""
        count = self.sources[source].tokens.setdefault(stage, TokenCount())
        count.documents += documents
        count.tokens += int(tokens)
        count.supervised += int(supervised)

    def merge(self, part: Ledger) -> None:
        """Add the rows, tokens and quarantine of a part of the rows, booked in a ledger of its own.

        Raises: KeyError for a source without an account here.
        """
        for name, account in part.sources.items():
            own = self.sources[name]
            own.rows += account.rows
            own.kept += account.kept
            own.dropped.update(account.dropped)
            own.retrieved.update(account.retrieved)
            for stage, count in account.tokens.items():
                self.book_tokens(name, stage, count.tokens, count.supervised, documents=count.documents)
        self.quarantine += part.quarantine

    @property
    def totals(self) -> SourceAccount:
        """The sum over all sources."""
        total = SourceAccount("total")
        for account in self.sources.values():
            total.rows += account.rows
            total.kept += account.kept
            total.blank_lines += account.blank_lines
            total.dropped.update(account.dropped)
            total.retrieved.update(account.retrieved)
            for stage, count in account.tokens.items():
                into = total.tokens.setdefault(stage, TokenCount())
                into.documents += count.documents
                into.tokens += count.tokens
                into.supervised += count.supervised
        return total

    def check_balanced(self) -> None:
        """Check the law of conservation for rows and tokens of each source.

        Raises: DataError that names the source and both sides of the sum that does not close.
        """
        quarantined: dict[str, Counter[str]] = {name: Counter() for name in self.sources}
        for entry in self.quarantine:
            quarantined[entry.source][entry.reason] += 1
        for name, account in self.sources.items():
            dropped = sum(account.dropped.values())
            if account.rows != account.kept + dropped or account.kept < 0:
                _unbalanced(name, f"{account.rows} rows read, but {account.kept} kept and {dropped} dropped")
            if quarantined[name] != account.dropped:
                _unbalanced(name, f"dropped {dict(account.dropped)}, but quarantined {dict(quarantined[name])}")
            _check_tokens(name, account.tokens)

    def to_json(self) -> dict[str, Any]:
        """Return the books as plain JSON values: `sources` by name, and `totals`."""
        return {
            "sources": {name: _account_json(account) for name, account in self.sources.items()},
            "totals": _account_json(self.totals),
        }

    def write(self, path: str | Path, *, quarantine: str | Path | None = None) -> None:
        """Write the books as JSON, and the quarantine as one JSON object a line."""
        write_json(path, self.to_json())
        if quarantine is not None:
            jsonl.write(quarantine, (vars(entry) for entry in self.quarantine))

    def table(self) -> Table:
        """Return the books as a table for people."""
        return ledger_table(self.to_json())


def ledger_table(books: Mapping[str, Any]) -> Table:
    """Return the books (as made by `Ledger.to_json`) as a rich table: one row a source, one column a reason."""
    from rich.table import Table  # the command line's library; not wanted where nothing is shown

    reasons = sorted(books["totals"]["dropped"])
    table = Table(title="rows", title_justify="left")
    table.add_column("source")
    for heading in ("rows", "kept", *reasons):
        table.add_column(heading, justify="right")
    accounts = dict(books["sources"])
    if len(accounts) > 1:
        accounts["total"] = books["totals"]
    for name, account in accounts.items():
        counts = (account["rows"], account["kept"], *(account["dropped"].get(reason, 0) for reason in reasons))
        table.add_row(name, *(f"{count:,}" for count in counts), end_section=False)
    return table


def _account_json(account: SourceAccount) -> dict[str, Any]:
    return {
        "path": account.path,
        "files": dict(account.files),
        "left_out": list(account.left_out),
        "kind": account.kind,
        "taken_as": account.taken_as,
        "rows": account.rows,
        "kept": account.kept,
        "blank_lines": account.blank_lines,
        "dropped": dict(sorted(account.dropped.items())),
        "retrieved": dict(sorted(account.retrieved.items())),
        "tokens": {stage: dict(vars(count)) for stage, count in account.tokens.items()},
    }


_RULES = frozenset(reason.value for reason in Reason if not reason.is_fault)


def _check_tokens(name: str, tokens: Mapping[str, TokenCount]) -> None:
    for whole, parts in TOKEN_BALANCES:
        booked = [tokens[part] for part in parts if part in tokens]
        if whole not in tokens or not booked:
            continue
        for unit in ("tokens", "supervised"):
            left = getattr(tokens[whole], unit)
            right = sum(getattr(count, unit) for count in booked)
            if left != right:
                _unbalanced(name, f"{left} {unit} {whole}, but {right} in {' + '.join(parts)}")


def _unbalanced(source: str, problem: str) -> None:
    raise DataError(
        f"the ledger of source {source!r} does not balance: {problem}",
        mend="this is a fault of tutelage, not of the data; please report it with the ledger file",
    )
