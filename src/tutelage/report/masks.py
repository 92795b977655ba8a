"""Mask pictures: the tokens of a few documents, with those that carry loss marked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from tutelage.report.figures import count
from tutelage.report.markup import Markup, Section, h, join
from tutelage.report.records import MaskDocument, MaskToken, Run

_BARE_NEWLINE = re.compile(r"(?<!⏎)\n")
_INVISIBLE = str.maketrans({"\r": "␍", "\t": "⇥\t", "\u00a0": "⍽", "\u200b": "∅"})


def masks_section(run: Run) -> Section:
    """Return the picture of each document in masks.json."""
    if not run.masks:
        return Section("masks", "Masks", h("p", {"class": "missing"}, "No mask pictures are in the run directory."))
    why = (
        "What the model was asked to produce, token by token. Everything unmarked is read but never learned. "
        "The pointer over a token shows its place, turn, part and weight."
    )
    legend = h(
        "div",
        {"class": "keys tokens"},
        (h("span", {"class": css}, text) for css, text in (("on", "with loss"), ("some", "with a part of the loss"), ("stop", "stop token with loss"), ("head", "header or control token"), ("off", "no loss"))),
    )  # fmt: skip
    pictures = (_picture(document, opened=place < 2) for place, document in enumerate(run.masks))
    return Section("masks", "Masks", join([h("p", {"class": "why"}, why), legend, *pictures]))


def _picture(document: MaskDocument, *, opened: bool) -> Markup:
    shown = len(document.tokens)
    rest = document.num_tokens - shown if document.num_tokens is not None else 0
    note = f"{count(document.num_tokens)} tokens, {count(document.supervised_tokens)} with loss"
    title = " · ".join(part for part in (document.why, document.source, document.where) if part)
    turns = groupby(enumerate(document.tokens), key=lambda pair: (pair[1].message, pair[1].role))
    body = join(_turn(role, list(tokens)) for (_, role), tokens in turns)
    more = h("p", {"class": "why"}, f"... and {count(rest)} more tokens") if rest > 0 else None
    summary = h("summary", None, title or "document", " ", h("small", None, note))
    return h("details", {"open": opened}, summary, h("div", {"class": "tokens"}, body), more)


def _turn(role: str, tokens: Sequence[tuple[int, MaskToken]]) -> Markup:
    label = h("span", {"class": "turn"}, role) if role else None
    return join([label, *(_token(place, token) for place, token in tokens)])


def _token(place: int, token: MaskToken) -> Markup:
    about = f"{place}: {token.role or 'no message'}, {token.part.replace('_', ' ')}, weight {token.weight:g}"
    return h(
        "span",
        {"class": _style(token), "title": about},
        _BARE_NEWLINE.sub("⏎\n", token.piece.translate(_INVISIBLE)) or "∅",
    )


def _style(token: MaskToken) -> str:
    if token.weight:
        return "stop" if token.part == "stop" else "on" if token.weight >= 1 else "some"
    return "head" if token.part in ("header", "stop") else "off"
