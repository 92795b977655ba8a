"""A configuration as rows to print: each key with its value, where it came from, and what it means."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tutelage.config.load import DEFAULT_ORIGIN, Resolved, leaves, schema_fields
from tutelage.config.schema import Config


@dataclass(frozen=True)
class Row:
    """One key of a resolved configuration."""

    key: str
    value: str
    origin: str
    doc: str

    @property
    def is_default(self) -> bool:
        """Whether nobody set it."""
        return self.origin == DEFAULT_ORIGIN


@dataclass(frozen=True)
class KeyRow:
    """One key of the schema; items of lists stand as `N`."""

    key: str
    values: str
    default: str
    doc: str


def explain(resolved: Resolved) -> list[Row]:
    """Return a row for every value of a configuration, in the order of the schema."""
    return [Row(key, show_value(value), resolved.origins[key], doc) for key, value, doc in leaves(resolved.config)]


def explain_keys() -> list[KeyRow]:
    """Return a row for every key that a configuration may have."""
    return [
        KeyRow(key, show_type(field), _show_default(field), field.description or "") for key, field in schema_fields()
    ]


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration, for editors that check and complete YAML."""
    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def show_value(value: Any) -> str:
    """Return a value as one would write it in YAML.

    Example:
        >>> show_value(None), show_value(True), show_value((0.9, 0.95)), show_value(1e-05)
        ('null', 'true', '[0.9, 0.95]', '1e-05')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(show_value(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {show_value(item)}" for key, item in value.items()) + "}"
    return str(value)


def show_type(field: FieldInfo) -> str:
    """Return in words what a key takes, with its bounds, such as `number, > 0` or `full | lora`."""
    words = _words(field.annotation)
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{sign} {getattr(constraint, name):g}"
        for constraint in field.metadata
        for name, sign in signs.items()
        if isinstance(getattr(constraint, name, None), int | float)
    ]
    return ", ".join([words, *bounds])


def _show_default(field: FieldInfo) -> str:
    return "(required)" if field.default is PydanticUndefined else show_value(field.default)


def _words(annotation: Any) -> str:
    names = {str: "text", int: "whole number", float: "number", bool: "true | false", NoneType: "null"}
    if annotation in names:
        return names[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(part) for part in parts)
    if origin in (Union, UnionType):
        return " | ".join(_words(part) for part in parts)
    if origin is list:
        return f"list of {_words(parts[0])}"
    if origin is dict:
        return f"mapping of {_words(parts[0])} to {_words(parts[1])}"
    if origin is tuple:
        return f"[{', '.join(_words(part) for part in parts)}]"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " | ".join(str(member.value) for member in annotation)
    return getattr(annotation, "__name__", str(annotation))
