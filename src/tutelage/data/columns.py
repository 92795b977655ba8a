"""The columns of a row: which of them holds what, by the configuration's mapping or by the names that are in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from tutelage.config.schema import Columns
from tutelage.data.conversation import Json
from tutelage.data.messages import kind_of
from tutelage.data.reasons import Reason, RowError

Row = Mapping[str, Json]

# Of each field, the names that are understood without a mapping, in the order in which they are looked for.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "question", "query", "problem", "input"),
    "completion": ("completion", "response", "answer", "solution", "output"),
    "instruction": ("instruction",),
    "input": ("input", "context"),
    "output": ("output", "response", "completion", "answer"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "tools": ("tools", "functions"),
    "text": ("text",),
}
# Of each kind of row, the fields that it may have.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages", "system", "tools"),
    "sharegpt": ("messages", "system", "tools"),
    "alpaca": ("instruction", "input", "output", "system", "history", "tools"),
    "prompt_completion": ("prompt", "completion", "system", "tools"),
    "preference": ("prompt", "messages", "instruction", "input", "chosen", "rejected", "system", "tools"),
    "text": ("text",),
}


class RowView:
    """A row seen through the names of its columns."""

    def __init__(self, row: Row, columns: Columns) -> None:
        self.row = row
        self.columns = columns
        self._found: dict[str, str] = {}

    def name(self, field: str) -> str:
        """Return the column that holds a field: the mapped one, or the first known name that the row has filled."""
        if field not in self._found:
            mapped: str | None = getattr(self.columns, field)
            self._found[field] = self._known_name(field) if mapped is None else mapped
        return self._found[field]

    def get(self, field: str) -> Json:
        """Return the value of a field, None when it is absent or null."""
        name = self.name(field)
        if name in self.row or "." not in name:
            return self.row.get(name)
        return _follow(self.row, name.split("."))

    def text(self, field: str, *, required: bool = True) -> str:
        """Return a field that must be text; an optional one is empty when absent."""
        value = self.get(field)
        if value is None and not required:
            return ""
        if value is None:
            raise self.missing(field)
        if not isinstance(value, str):
            raise RowError(Reason.WRONG_TYPE, f"column {self.name(field)!r} is {kind_of(value)}, not text")
        return value

    def missing(self, field: str) -> RowError:
        """Return the error of a field that is not there."""
        name = self.name(field)
        if name in self.row:
            return RowError(Reason.WRONG_TYPE, f"column {name!r} is null")
        return RowError(Reason.MISSING_COLUMN, f"no column {name!r}; the columns are {', '.join(list(self.row)[:12])}")

    def filled(self, field: str) -> bool:
        """Return whether a field has a value."""
        return self.get(field) is not None

    def has_column(self, field: str) -> bool:
        """Return whether there is a column for a field, whatever it holds."""
        return self.name(field) in self.row or self.filled(field)

    def used(self, kind: str) -> list[str]:
        """Return the fields of a kind that this row has."""
        return [field for field in FIELDS[kind] if self.filled(field)]

    def rest(self, fields: Sequence[str]) -> dict[str, Json]:
        """Return the columns that none of the fields uses."""
        names = [self.name(field) for field in fields]
        used = {*names, *(name.split(".")[0] for name in names)}
        return {name: value for name, value in self.row.items() if name not in used}

    def _known_name(self, field: str) -> str:
        present = [name for name in _NAMES[field] if name in self.row]
        filled = [name for name in present if self.row[name] is not None]
        return [*filled, *present, _NAMES[field][0]][0]


def check_columns_exist(rows: Sequence[Row], columns: Columns) -> None:
    """Check that every mapped column is in one of the rows at least.

    Raises: RowError with the nearest names.
    """
    for field, name in columns.model_dump(exclude_none=True).items():
        if not any(RowView(row, columns).has_column(field) for row in rows):
            names = list(dict.fromkeys(str(key) for row in rows for key in row))
            nearest = get_close_matches(name, names, n=3, cutoff=0.4) or names[:12]
            raise RowError(
                Reason.MISSING_COLUMN,
                f"columns.{field} is mapped to {name!r}, which no row has",
                mend=f"the nearest columns are {', '.join(nearest)}",
            )


def check_columns_used(kind: str, columns: Columns) -> None:
    """Check that every mapped column is one that rows of this kind have.

    Raises: RowError with the fields of the kind.
    """
    for field, name in columns.model_dump(exclude_none=True).items():
        if field not in FIELDS[kind]:
            raise RowError(
                Reason.MISSING_COLUMN,
                f"columns.{field} is mapped to {name!r}, but rows of kind {kind} have no {field}",
                mend=f"set kind, or map one of {', '.join(FIELDS[kind])}",
            )


def _follow(value: Json, path: Sequence[str]) -> Json:
    for step in path:
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, Sequence) and not isinstance(value, str) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value
