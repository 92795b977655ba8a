"""JSON as the standard has it: what other readers let through or change silently is refused here with a named reason.

Refused: NaN and Infinity (also as a number too large for a double), duplicate keys, lone surrogates, nesting deeper than
`MAX_DEPTH`, integers with more than `MAX_DIGITS` digits, text after the value. Control characters must be escaped, as in
the standard; escaped ones are kept.
"""

from __future__ import annotations

import json
import math
import re
from typing import NoReturn

from tutelage.data.conversation import Json
from tutelage.data.reasons import Reason, RowError

MAX_DEPTH = 64
MAX_DIGITS = 400

# A string that is never closed matches up to the end of the text, so that the scan stays linear.
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)'
_STRING_OR_BRACKET = re.compile(rf"{_STRING}|[\[\]{{}}]", re.DOTALL)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89abAB]|\\u[dD][c-fC-F]")


def parse_json(text: str) -> Json:
    """Return the value of one JSON text.

    Raises: RowError with the reason and, where there is one, the column of the fault.
    """
    _check_depth(text)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        reason = Reason.SEVERAL_VALUES if error.msg == "Extra data" else Reason.BAD_JSON
        raise RowError(reason, f"{error.msg} at {_place(error)}") from None
    if _SURROGATE_ESCAPE.search(text):
        _check_surrogates(value)
    return value


def parse_json_bytes(data: bytes) -> Json:
    """Return the value of one JSON text in UTF-8.

    Raises: RowError as `parse_json`, and for bytes that are not UTF-8.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(Reason.INVALID_UTF8, f"byte {data[error.start]:#04x} at column {error.start + 1}") from None
    return parse_json(text)


def _place(error: json.JSONDecodeError) -> str:
    return f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno} column {error.colno} of the value"


def _check_depth(text: str) -> None:
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        token = match.group()
        if token in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise RowError(Reason.TOO_DEEP, f"more than {MAX_DEPTH} levels at column {match.start() + 1}")
        elif token in "]}":
            depth -= 1


def _check_surrogates(value: Json) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise RowError(Reason.LONE_SURROGATE, f"\\u{code:04x} is half of a character") from None


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowError(Reason.DUPLICATE_KEY, f"{twice[:60]!r} occurs {keys.count(twice)} times in one object")
    return result


def _constant(name: str) -> NoReturn:
    raise RowError(Reason.NON_FINITE_NUMBER, f"{name} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RowError(Reason.NON_FINITE_NUMBER, f"{text[:40]} is larger than a double can hold")
    return value


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise RowError(Reason.HUGE_NUMBER, f"{len(text)} digits, of which {MAX_DIGITS} are accepted")
    return int(text)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int)
