"""The resolved configuration with the origin of each value, and the environment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tutelage.report.markup import Markup, Section, facts, h, join, table
from tutelage.report.records import Run


def settings_section(run: Run) -> Section:
    """Return every setting, those that somebody chose first, then the environment."""
    parts = [h("h3", None, "Configuration"), _configuration(run), h("h3", None, "Environment"), _environment(run)]
    return Section("settings", "Settings", join(parts))


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every leaf; an empty mapping or list is a leaf."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for place, item in enumerate(value):
            yield from flatten(item, f"{prefix}.{place}")
    else:
        yield prefix, value


def show_value(value: Any) -> str:
    """Return a setting as one would write it in YAML."""
    return "null" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _configuration(run: Run) -> Markup:
    if not run.config:
        return h("p", {"class": "missing"}, "The configuration is not in the run directory.")
    rows = [(key, show_value(value), _origin(run.origins, key)) for key, value in flatten(run.config)]
    chosen = [row for row in rows if row[2] not in ("default", "")]
    rest = [row for row in rows if row[2] in ("default", "")]
    header = ("key", "value", "from")
    summary = h("summary", None, f"{len(rest)} settings at their default")
    defaults = h("details", None, summary, table(header, rest, css="settings")) if rest else None
    return join([table(header, chosen, css="settings") if chosen else None, defaults])


def _origin(origins: Mapping[str, str], key: str) -> str:
    """Return the origin of the key or of the nearest parent that has one."""
    while key:
        if key in origins:
            return str(origins[key])
        key = key.rpartition(".")[0]
    return ""


def _environment(run: Run) -> Markup:
    rows = [
        (key.replace("_", " ").replace(".", ": "), show_value(value)) for key, value in flatten(run.environment) if key
    ]
    return facts(rows) if rows else h("p", {"class": "missing"}, "The environment is not in the run directory.")
