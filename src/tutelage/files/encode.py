"""One way of writing JSON: strict, the same on every machine, and never with a NaN in it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def encode_json(value: Any, *, indent: int | None = None) -> str:
    """Return `value` as strict JSON.

    Dataclasses, pydantic models, paths, tuples, sets and NumPy or torch scalars and arrays are written as the nearest
    JSON type. A float that is not finite becomes null: a figure that cannot be computed is absent, not a default.

    Raises: TypeError for a value that has no JSON form.

    Example:
        >>> encode_json({"loss": float("nan"), "step": 3})
        '{"loss": null, "step": 3}'
    """
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _without_lone_surrogates(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain(_unwrap(value))


def _unwrap(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):  # pydantic
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):  # NumPy and torch scalars and arrays
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__} has no JSON form: {value!r:.80}")


def _without_lone_surrogates(text: str) -> str:
    """Return `text` with half characters escaped: they cannot be encoded, and a quarantined row may contain them."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
