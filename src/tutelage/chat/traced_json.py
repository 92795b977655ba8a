"""JSON text that knows where its strings came from: the filter `tojson` of chat templates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tutelage.chat import trace
from tutelage.chat.view import source_of


def traced_json(value: Any, text: str, *, options: Mapping[str, Any]) -> str:
    """Label `text`, the JSON form of `value`, by where its strings came from.

    Text of one source is labelled whole, with its quotes and braces; in a mixture, such as a whole message, each string
    is labelled by its own source.
    """
    source = source_of(value)
    if source is not None:
        return trace.of(text, source)
    if not isinstance(value, Mapping | list | tuple):
        return text
    traced = trace.concat(_json_pieces(value, "", options))
    return traced if traced == text else text


def _json_pieces(value: Any, margin: str, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the JSON form of `value` in pieces, labelled where a piece has a source. `margin`: current indentation."""
    source = source_of(value)
    if source is not None and not (options["indent"] and isinstance(value, Mapping | list | tuple)):
        yield trace.of(json.dumps(value, **options), source)
        return
    if not isinstance(value, Mapping | list | tuple) or not value:
        yield json.dumps(value, **options)
        return
    indent = options["indent"]
    item_separator, key_separator = options["separators"] or (", " if indent is None else ",", ": ")
    inner = margin + (" " * indent if isinstance(indent, int) else indent or "")
    line = "" if indent is None else "\n"
    is_mapping = isinstance(value, Mapping)
    items: Iterable[Any] = value.items() if isinstance(value, Mapping) else value
    yield "{" if is_mapping else "["
    for number, item in enumerate(sorted(items) if is_mapping and options["sort_keys"] else items):
        yield (item_separator if number else "") + (line and line + inner)
        if is_mapping:
            key, item = item
            yield from (*_json_pieces(key, inner, options), key_separator)
        yield from _json_pieces(item, inner, options)
    yield (line and line + margin) + ("}" if is_mapping else "]")
