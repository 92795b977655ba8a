"""Every reason for which an input row may be left out, and the error that carries one.

A reason is either a fault of the row (it counts against `data.max_bad_fraction`) or a rule that the user asked for.
"""

from __future__ import annotations

from enum import StrEnum

from tutelage.errors import DataError


class Reason(StrEnum):
    """Why a row is not trained on. The text of each is what the ledger and the quarantine file show."""

    # the bytes
    INVALID_UTF8 = "invalid UTF-8"
    LINE_TOO_LONG = "line too long"
    TRUNCATED_FILE = "file ends too early"
    DAMAGED_FILE = "damaged file"
    # the JSON
    BAD_JSON = "bad JSON"
    SEVERAL_VALUES = "several JSON values in one line"
    NOT_AN_OBJECT = "not a JSON object"
    DUPLICATE_KEY = "duplicate key"
    NON_FINITE_NUMBER = "NaN or Infinity"
    HUGE_NUMBER = "number with too many digits"
    LONE_SURROGATE = "lone surrogate"
    TOO_DEEP = "nested too deeply"
    # the layout
    MISSING_COLUMN = "missing column"
    WRONG_TYPE = "wrong type"
    EMPTY_ROW = "empty row"
    EMPTY_MESSAGES = "no messages"
    MISSING_ROLE = "missing role"
    UNKNOWN_ROLE = "unknown role"
    UNSUPPORTED_CONTENT = "content that is not text"
    EMPTY_CONTENT = "empty content"
    EMPTY_ANSWER = "empty assistant turn"
    NO_ANSWER = "no assistant turn"
    NOT_TRAINABLE = "training asked of another role"
    ROLE_ORDER = "roles out of order"
    BAD_TOOL_CALL = "bad tool call"
    BAD_TOOLS = "bad tool list"
    SAME_ANSWERS = "chosen equals rejected"
    # rules, not faults
    LABELLED_UNDESIRABLE = "labelled undesirable"
    TOO_LONG = "longer than data.max_tokens"
    NOTHING_TO_TRAIN = "no token to train"
    CONTROL_STRING = "control string in the text"

    @property
    def is_fault(self) -> bool:
        """Whether it counts against `data.max_bad_fraction`."""
        return self not in _RULES


_RULES = frozenset({Reason.LABELLED_UNDESIRABLE, Reason.TOO_LONG, Reason.NOTHING_TO_TRAIN, Reason.CONTROL_STRING})


class RowError(DataError):
    """One row that cannot become a record: a named `reason`, and the `cause` in words with the value at fault."""

    def __init__(self, reason: Reason | str, cause: str, *, mend: str = "") -> None:
        super().__init__(f"{reason}: {cause}", mend=mend)
        self.reason = reason
        self.cause = cause

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.reason, self.cause, self.mend)


def _rebuild(reason: Reason | str, cause: str, mend: str) -> RowError:
    return RowError(reason, cause, mend=mend)
