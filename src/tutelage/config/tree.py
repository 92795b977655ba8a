"""YAML as a tree that remembers where each value was written.

Scalars follow the core schema of YAML 1.2, not PyYAML's YAML 1.1: `1e-5` is a number, and `no`, `on`, `12:30` and
`2024-01-01` are text. Duplicate keys, tags and anything else that could surprise are errors with file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from tutelage.errors import ConfigError

_MOST_NODES = 100_000  # aliases can make a small file expand without end
_MOST_LEVELS = 50


@dataclass(frozen=True)
class Leaf:
    """A scalar: its value, the text it was written as, where (`file:line`), and the folder of that file."""

    value: Any
    text: str
    origin: str
    folder: Path | None = None


@dataclass(frozen=True)
class Items:
    """A sequence."""

    items: tuple[Tree, ...]
    origin: str


@dataclass(frozen=True)
class Branch:
    """A mapping; `key_origins` says where each key was written."""

    entries: Mapping[str, Tree]
    key_origins: Mapping[str, str]
    origin: str


Tree: TypeAlias = Leaf | Items | Branch

EMPTY = Branch({}, {}, "default")


class Loader(yaml.SafeLoader):
    """PyYAML's parser with the scalars of YAML 1.2."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads back as the same value."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)
for _name, _pattern, _first in _SCALARS:
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


def read_tree(text: str, *, name: str, folder: Path | None = None) -> Tree:
    """Return the tree of a YAML text; `name` is the file's name in messages and origins.

    Raises: ConfigError for text that is not YAML, for duplicate keys, tags, and keys that are not text.
    """
    try:
        node = _compose(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{_place(error, name)}: not YAML: {_reason(error)}", mend=_yaml_mend(text, error)) from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply", mend="a configuration is a few levels deep") from None
    return EMPTY if node is None else _Reader(name, folder).tree(node)


def read_value(text: str, *, origin: str) -> Tree:
    """Return the tree of a value given on the command line; every part of it has the same origin."""
    try:
        node = _compose(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"{origin}: not a YAML value: {_reason(error)}", mend="quote the whole argument for the shell"
        ) from None
    return Leaf(None, "", origin) if node is None else _Reader(origin, None, lines=False).tree(node)


def _compose(text: str) -> yaml.Node | None:
    loader = Loader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
    finally:
        loader.dispose()
    return node


def dump_yaml(value: Any) -> str:
    """Return `value` (plain dicts, lists and scalars) as YAML that `read_tree` reads back unchanged."""
    text: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def merge(base: Tree, over: Tree) -> Tree:
    """Return `base` with the values of `over` on top: mappings are merged, anything else is replaced."""
    if not isinstance(base, Branch) or not isinstance(over, Branch):
        return over
    entries = dict(base.entries)
    for key, value in over.entries.items():
        entries[key] = merge(entries[key], value) if key in entries else value
    return Branch(entries, {**base.key_origins, **over.key_origins}, over.origin)


def assign(tree: Tree, keys: Sequence[str], value: Tree, *, origin: str) -> Tree:
    """Return `tree` with `value` at the dotted place `keys`; digits index lists, one past the end appends."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if key.isdecimal() and not isinstance(tree, Branch):
        return _assign_item(tree, int(key), rest, value, origin)
    branch = tree if isinstance(tree, Branch) else Branch({}, {}, origin)
    child = assign(branch.entries.get(key, Leaf(None, "", origin)), rest, value, origin=origin)
    return Branch({**branch.entries, key: child}, {**branch.key_origins, key: origin}, branch.origin)


def remove(tree: Tree, keys: Sequence[str]) -> Tree:
    """Return `tree` without what stands at the dotted place `keys`; digits index lists, whose other items stay in place."""
    key, rest = keys[0], keys[1:]
    if isinstance(tree, Branch) and key in tree.entries:
        entries = dict(tree.entries)
        if rest:
            entries[key] = remove(entries[key], rest)
        else:
            del entries[key]
        return Branch(entries, {name: tree.key_origins[name] for name in entries}, tree.origin)
    if isinstance(tree, Items) and rest and key.isdecimal():
        items = [remove(item, rest) if index == int(key) else item for index, item in enumerate(tree.items)]
        return Items(tuple(items), tree.origin)
    return tree


def find(tree: Tree, keys: Sequence[str | int]) -> tuple[Tree, int]:
    """Return the deepest node on the way along `keys`, and how many of the keys led to it."""
    for depth, key in enumerate(keys):
        if isinstance(tree, Branch) and key in tree.entries:
            tree = tree.entries[str(key)]
        elif isinstance(tree, Items) and str(key).isdecimal() and int(key) < len(tree.items):
            tree = tree.items[int(key)]
        else:
            return tree, depth
    return tree, len(keys)


def _assign_item(tree: Tree, index: int, rest: Sequence[str], value: Tree, origin: str) -> Tree:
    items = list(tree.items) if isinstance(tree, Items) else []
    if index > len(items):
        raise ConfigError(
            f"{origin}: there is no item {index}; the list has {len(items)}",
            mend=f"use {len(items)} to append one, or give the whole list as key='[...]'",
        )
    old = items[index] if index < len(items) else Leaf(None, "", origin)
    items[index : index + 1] = [assign(old, rest, value, origin=origin)]
    return Items(tuple(items), tree.origin)


class _Reader:
    """Turns the nodes of one text into a tree."""

    def __init__(self, name: str, folder: Path | None, *, lines: bool = True) -> None:
        self._name, self._folder, self._lines = name, folder, lines
        self._count = 0
        self._open: list[int] = []  # nodes being read, to notice an alias inside of what it names

    def tree(self, node: yaml.Node) -> Tree:
        origin = self._origin(node)
        self._count += 1
        if self._count > _MOST_NODES or id(node) in self._open:
            raise ConfigError(f"{origin}: aliases expand without end", mend="write the values out")
        if len(self._open) > _MOST_LEVELS:
            raise ConfigError(f"{origin}: nested too deeply", mend="a configuration is a few levels deep")
        self._open.append(id(node))
        try:
            return self._convert(node, origin)
        finally:
            self._open.pop()

    def _convert(self, node: yaml.Node, origin: str) -> Tree:
        if isinstance(node, yaml.ScalarNode):
            return Leaf(_scalar(node, origin), node.value, origin, self._folder)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            raise ConfigError(f"{origin}: the tag {node.tag!r} is not allowed", mend="give plain values only")
        if isinstance(node, yaml.SequenceNode):
            return Items(tuple(self.tree(item) for item in node.value), origin)
        return self._branch(node, origin)

    def _branch(self, node: yaml.Node, origin: str) -> Branch:
        entries: dict[str, Tree] = {}
        origins: dict[str, str] = {}
        for key, place, value in self._pairs(node):
            if key in entries:
                raise ConfigError(
                    f"{place}: the key {key!r} stands here a second time; the first is at {origins[key]}",
                    mend="keep one of them",
                )
            origins[key] = place
            entries[key] = self.tree(value)
        return Branch(entries, origins, origin)

    def _pairs(self, node: yaml.Node) -> Iterator[tuple[str, str, yaml.Node]]:
        for key, value in node.value:
            place = self._origin(key)
            if not isinstance(key, yaml.ScalarNode) or key.value == "":
                raise ConfigError(f"{place}: a key must be a word", mend="quote it if it contains { or [")
            yield key.value, place, value

    def _origin(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}" if self._lines else self._name


def _scalar(node: yaml.ScalarNode, origin: str) -> Any:
    text: str = node.value
    try:
        return _read_scalar(node.tag.removeprefix(_TAG), text)
    except ValueError:
        raise ConfigError(f"{origin}: {text[:40]!r} cannot be read as a number", mend="give a shorter one") from None
    except KeyError:
        raise ConfigError(f"{origin}: the tag {node.tag!r} is not allowed", mend="give plain values only") from None


def _read_scalar(kind: str, text: str) -> Any:
    match kind:
        case "str" | "!":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        case "float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    raise KeyError(kind)


def _place(error: Exception, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    return name if mark is None else f"{name}:{mark.line + 1}"


def _reason(error: Exception) -> str:
    parts = [part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part]
    return ", ".join(parts) or str(error).splitlines()[0]


def _yaml_mend(text: str, error: yaml.YAMLError) -> str:
    if "\t" in text and "'\\t'" in _reason(error):
        return "indent with spaces, not tabs"
    return "write `key: value` with a space after the colon, and the same indent for all keys of a section"
