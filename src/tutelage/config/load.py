"""Read a configuration: presets, a YAML file, then `key=value` overrides; each value remembers where it came from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from tutelage.config.problems import Problem, raise_all, secret, unknown_key, wrong_value
from tutelage.config.schema import Config, Section
from tutelage.config.tree import (
    EMPTY,
    Branch,
    Items,
    Leaf,
    Tree,
    assign,
    dump_yaml,
    find,
    merge,
    read_tree,
    read_value,
    remove,
)
from tutelage.config.unread import overruled
from tutelage.errors import ConfigError
from tutelage.redact import secret_in

PRESETS = Path(__file__).parent.parent / "presets"
DEFAULT_ORIGIN = "default"
_MOST_BYTES = 1 << 18  # YAML takes seconds a megabyte


@dataclass(frozen=True)
class Resolved:
    """A checked configuration and, for every dotted key of it, where its value came from."""

    config: Config
    origins: dict[str, str]

    def to_yaml(self) -> str:
        """Return every value as YAML; reading it back gives an equal configuration."""
        return dump_yaml(self.config.model_dump(mode="json"))


def load_config(
    path: str | Path | None = None, overrides: Sequence[str] = (), *, preset: str | None = None
) -> Resolved:
    """Return the configuration of a YAML file on top of a preset, with `key.sub=value` overrides on top of both.

    Relative paths of data and models in a file are taken from that file's folder where they exist there, otherwise
    from the working directory.

    Raises: ConfigError that names every unknown key (with the nearest known one), every bad value and every secret, with file
    and line.

    Example:
        >>> load_config(None, ["train.learning_rate=1e-4"]).origins["train.learning_rate"]
        'command line'
    """
    tree: Tree = EMPTY
    if preset is not None:
        tree = merge(tree, _read_file(_preset_path(preset), name=f"preset {preset}", folder=None))
    if path is not None:
        tree = merge(tree, _read_file(Path(path), name=str(path), folder=Path(path).parent))
    for override in overrides:
        tree = _override(tree, override)
    resolved = _resolved(tree)
    for key in overruled(resolved.config, resolved.origins):
        tree = remove(tree, key.split("."))
    return _resolved(tree)


def _resolved(tree: Tree) -> Resolved:
    problems: list[Problem] = []
    values = _plain(tree, Config, "", problems)
    raise_all(problems)
    config = _validate(values, tree)
    origins = {key: _origin_of(tree, key) for key, _, _ in leaves(config)}
    raise_all([secret(key, origins[key], kind) for key, value, _ in leaves(config) for kind in _secrets_in(value)])
    return Resolved(config, origins)


def _secrets_in(value: Any) -> Iterator[str]:
    """Yield what kinds of secrets stand in a value, lists and mappings included."""
    if isinstance(value, str):
        kind = secret_in(value)
        if kind is not None:
            yield kind
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets_in(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _secrets_in(name)
            yield from _secrets_in(item)


def preset_names() -> list[str]:
    """Return the names of the presets that ship with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_text(name: str) -> str:
    """Return the YAML of a preset that ships.

    Raises: ConfigError, with the nearest name, when there is none of that name.
    """
    return _preset_path(name).read_text(encoding="utf-8")


def launch_names() -> list[str]:
    """Return the names of the launch files that ship with the package."""
    return sorted(path.name for path in (PRESETS / "launch").iterdir())


def launch_text(name: str) -> str:
    """Return a launch file that ships.

    Raises: ConfigError, with the nearest name, when there is none of that name.
    """
    _require_known("launch file", name, launch_names())
    return (PRESETS / "launch" / name).read_text(encoding="utf-8")


def known_keys() -> list[str]:
    """Return every dotted key of the schema; items of lists stand as `N`, as in `data.train.N.path`."""
    return [key for key, _ in schema_fields()]


def schema_fields() -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, pydantic field) for every key of the schema that holds a value of its own."""
    yield from _fields_of(Config, "")


def leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield (dotted key, value, one-line doc) of everything a configuration holds, in the order of the schema."""
    for name, field in type(section).model_fields.items():
        key, value = prefix + name, getattr(section, name)
        if isinstance(value, Section):
            yield from leaves(value, f"{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], Section):
            for index, item in enumerate(value):
                yield from leaves(item, f"{key}.{index}.")
        else:
            yield key, value, field.description or ""


def _fields_of(section: type[Section], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        nested, in_list = _section_in(field.annotation)
        if nested is None:
            yield prefix + name, field
        else:
            yield from _fields_of(nested, f"{prefix}{name}.N." if in_list else f"{prefix}{name}.")


def _preset_path(name: str) -> Path:
    _require_known("preset", name, preset_names())
    return PRESETS / f"{name}.yaml"


def _require_known(what: str, name: str, names: list[str]) -> None:
    if name not in names:
        close = get_close_matches(name, names, 1)
        mend = f"did you mean `{close[0]}`?" if close else f"there are: {', '.join(names)}"
        raise ConfigError(f"there is no {what} `{name}`", mend=mend)


def _read_file(path: Path, *, name: str, folder: Path | None) -> Tree:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path} is larger than any configuration", mend="give the YAML file of a run")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}",
            mend="give the path of a YAML file; see `tutelage config presets`",
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start})", mend="save the file as UTF-8") from None
    tree = read_tree(text, name=name, folder=folder)
    if not isinstance(tree, Branch):
        raise ConfigError(f"{tree.origin}: a configuration is a mapping of sections", mend="begin with `model:`")
    return tree


def _override(tree: Tree, override: str) -> Tree:
    key, equals, text = override.partition("=")
    if not equals or not key or any(not part for part in key.split(".")):
        raise ConfigError(f"`{override}` is not an override", mend="write key.sub=value, such as train.epochs=2")
    origin = "command line"
    value = read_value(text, origin=f"{origin}: {override}" if len(override) < 80 else origin)
    return assign(tree, key.split("."), _with_origin(value, origin), origin=origin)


def _with_origin(tree: Tree, origin: str) -> Tree:
    if isinstance(tree, Leaf):
        return Leaf(tree.value, tree.text, origin)
    if isinstance(tree, Items):
        return Items(tuple(_with_origin(item, origin) for item in tree.items), origin)
    entries = {key: _with_origin(value, origin) for key, value in tree.entries.items()}
    return Branch(entries, dict.fromkeys(entries, origin), origin)


def _plain(tree: Tree, annotation: Any, key: str, problems: list[Problem]) -> Any:
    """Return plain values for pydantic, noting unknown keys and booleans where a number belongs."""
    section, in_list = _section_in(annotation)
    if isinstance(tree, Branch):
        if section is None or in_list:
            return {name: _plain(value, Any, f"{key}.{name}", problems) for name, value in tree.entries.items()}
        return _plain_section(tree, section, key, problems)
    if isinstance(tree, Items):
        item = section if in_list else _item_type(annotation)
        return [_plain(value, item, f"{key}.{index}", problems) for index, value in enumerate(tree.items)]
    return _plain_leaf(tree, annotation, key, problems)


def _plain_section(tree: Branch, section: type[Section], key: str, problems: list[Problem]) -> dict[str, Any]:
    fields = section.model_fields
    values: dict[str, Any] = {}
    for name, value in tree.entries.items():
        full = f"{key}.{name}" if key else name
        if name not in fields:
            problems.append(unknown_key(name, key, fields, known_keys(), tree.key_origins[name]))
            continue
        values[name] = _plain(value, fields[name].annotation, full, problems)
    return values


def _plain_leaf(leaf: Leaf, annotation: Any, key: str, problems: list[Problem]) -> Any:
    kinds = _scalar_kinds(annotation)
    section, in_list = _section_in(annotation)
    if leaf.value is None:
        # A section whose lines are all commented out is an empty section, not a wrong value.
        return None if NoneType in kinds else [] if in_list else {} if section is not None else None
    if isinstance(leaf.value, bool) and kinds and kinds <= {int, float, NoneType}:
        # pydantic would take true for 1
        problems.append(Problem(leaf.origin, f"`{key}` is {leaf.text}, but must be a number", "give a number"))
    if str in kinds and not isinstance(leaf.value, str) and not kinds & {int, float, bool}:
        return leaf.text  # `name: 007` and `name: true` mean the text that was typed
    if isinstance(leaf.value, str):
        return _located(leaf, key)
    return leaf.value


def _located(leaf: Leaf, key: str) -> str:
    """Return a path relative to its file's folder when it exists there; other text as it is."""
    text: str = leaf.value
    parts = key.split(".")
    is_template = key == "model.template" and text.endswith(".jinja")
    if parts[-1] != "path" and key != "data.retrieve.corpus" and not is_template:
        return text
    if text.startswith("~"):
        return str(Path(text).expanduser())
    if leaf.folder is None or text.startswith("hub:") or (key == "model.path" and text == "lab"):
        return text
    beside = leaf.folder / text
    found = beside.exists() or (any(sign in text for sign in "*?[") and any(leaf.folder.glob(text)))
    return os.path.normpath(beside) if found and not Path(text).is_absolute() else text


def _validate(values: dict[str, Any], tree: Tree) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_problem_of(entry, tree) for entry in error.errors(include_url=False)]
    raise_all(problems)  # outside of the handler: a traceback would show pydantic's words, with parts of the values
    raise AssertionError("pydantic refuses nothing without saying what")


def _problem_of(entry: Any, tree: Tree) -> Problem:
    node, depth = find(tree, entry["loc"])
    # Steps beyond the tree are the branches of a union that pydantic tried, or a key that is missing.
    keys = entry["loc"] if entry["type"] == "missing" else entry["loc"][:depth]
    origin = node.origin
    if isinstance(node, Branch | Items) and depth:
        parent, _ = find(tree, entry["loc"][: depth - 1])
        origin = parent.key_origins.get(str(entry["loc"][depth - 1]), origin) if isinstance(parent, Branch) else origin
    return wrong_value(".".join(str(part) for part in keys), entry, origin)


def _origin_of(tree: Tree, key: str) -> str:
    parts = key.split(".")
    node, depth = find(tree, parts)
    if depth == len(parts):
        parent, _ = find(tree, parts[:-1])
        return parent.key_origins[parts[-1]] if isinstance(parent, Branch) else node.origin
    return DEFAULT_ORIGIN


def _section_in(annotation: Any) -> tuple[type[Section] | None, bool]:
    """Return the section that an annotation holds, and whether as the items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    is_list = get_origin(annotation) is list
    for part in get_args(annotation):
        section, in_list = _section_in(part)
        if section is not None:
            return section, is_list or in_list
    return None, False


def _item_type(annotation: Any) -> Any:
    """Return what the items of a list or tuple annotation are; Any when that is not one thing."""
    candidates = [annotation, *get_args(annotation)]
    for candidate in candidates:
        if get_origin(candidate) in (list, tuple):
            return get_args(candidate)[0]
    return Any


def _scalar_kinds(annotation: Any) -> set[Any]:
    """Return the plain types that an annotation names, looking into unions but not into lists."""
    if get_origin(annotation) in (list, tuple, dict):
        return set()
    parts: Iterable[Any] = get_args(annotation)
    if not parts:
        return {annotation} if isinstance(annotation, type) else set()
    return set().union(*(_scalar_kinds(part) for part in parts))
