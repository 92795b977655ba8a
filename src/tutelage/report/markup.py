"""HTML built so that text cannot become markup: every child is escaped unless it is `Markup` already."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

_VOID = {"meta", "br", "hr", "img", "input", "col"}
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


class Markup(str):
    """A string that is HTML already and goes into the page as it is."""

    __slots__ = ()


Child: TypeAlias = "str | Markup | int | Iterable[Child] | None"
Attributes: TypeAlias = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Section:
    """A part of the page with its own place in the navigation bar, where `label` stands for a long title."""

    anchor: str
    title: str
    body: Markup
    label: str = ""

    def html(self) -> Markup:
        """Return the section with its heading."""
        return h("section", {"id": self.anchor}, h("h2", None, self.title), self.body)


def escape(text: str) -> Markup:
    """Return `text` as HTML that shows it.

    Control characters, lone surrogates and direction overrides, which could break the file or disguise what a row
    says, are shown as their code point.
    """
    return Markup(html.escape(_UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text), quote=True))


def h(tag: str, attributes: Attributes | None = None, *children: Child) -> Markup:
    """Return the element `tag`; an attribute that is None or False is left out, True stands without a value.

    Example:
        >>> print(h("p", {"class": "note", "hidden": True}, "a < b ", h("b", None, "c")))
        <p class="note" hidden>a &lt; b <b>c</b></p>
    """
    opening = f"<{tag}{''.join(_attribute(name, value) for name, value in (attributes or {}).items())}>"
    if tag in _VOID:
        return Markup(opening)
    return Markup(f"{opening}{join(children)}</{tag}>")


def join(children: Iterable[Child]) -> Markup:
    """Return the children one after another, each escaped unless it is `Markup`; None is left out."""
    return Markup("".join(_child(child) for child in children))


def table(
    header: Iterable[Child], rows: Iterable[Iterable[Child]], *, numeric: Iterable[int] = (), css: str = ""
) -> Markup:
    """Return a table that scrolls sideways when it is too wide; `numeric` are the columns set flush right."""
    right = set(numeric)

    def cells(tag: str, values: Iterable[Child]) -> Markup:
        return join(h(tag, {"class": "n" if i in right else None}, value) for i, value in enumerate(values))

    head = h("thead", None, h("tr", None, cells("th", header)))
    body = h("tbody", None, (h("tr", None, cells("td", row)) for row in rows))
    return h("div", {"class": "scroll"}, h("table", {"class": css or None}, head, body))


def facts(rows: Iterable[tuple[str, Child]]) -> Markup:
    """Return a two-column table of names and values."""
    body = (h("tr", None, h("td", None, name), h("td", None, value)) for name, value in rows)
    return h("div", {"class": "scroll"}, h("table", {"class": "facts"}, h("tbody", None, body)))


def missing(text: str = "not measured") -> Markup:
    """Return `text` in the style of something that is absent."""
    return h("span", {"class": "missing"}, text)


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return escape(child)
    if isinstance(child, int):
        return str(child)
    return join(child)


def _attribute(name: str, value: str | int | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    return f' {name}="{escape(str(value))}"'
