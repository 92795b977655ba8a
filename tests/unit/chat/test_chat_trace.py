"""Strings know where their characters came from, whatever a template does to them."""

from __future__ import annotations

import pytest

from tutelage.chat import trace
from tutelage.chat.trace import Field, Mark, MarkKind, Source, Traced, concat, of, plain, spans_of

SAID = Source(1, Field.CONTENT)
THOUGHT = Source(1, Field.REASONING)


def letters(text: str) -> str:
    """Show each character as itself where it has no source, and as `*` where it came from SAID."""
    sourced = {at for start, end, label in spans_of(text) if label == SAID for at in range(start, end)}
    return "".join("*" if at in sourced else letter for at, letter in enumerate(plain(text)))


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda s: "<" + s + ">", "<********>"),
        (lambda s: s + "!", "********!"),
        (lambda s: "<" + s.strip() + ">", "<****>"),
        (lambda s: "<" + s.lstrip() + ">", "<******>"),
        (lambda s: "<" + s.rstrip() + ">", "<******>"),
        (lambda s: "<" + s[2:4] + ">", "<**>"),
        (lambda s: "<" + s[::-1] + ">", "<********>"),
        (lambda s: "<" + s[-3] + ">", "<*>"),
        (lambda s: "<" + s.split("b")[0] + ">", "<***>"),
        (lambda s: "<" + s.split()[0] + ">", "<****>"),
        (lambda s: "<" + s.rsplit("c", 1)[1] + ">", "<***>"),
        (lambda s: "<" + s.partition("b")[2] + ">", "<****>"),
        (lambda s: "<" + s.rpartition("b")[0] + ">", "<***>"),
        (lambda s: s.replace("b", "-"), "***-****"),
        (lambda s: trace.replace("a-b", "-", s), "a********b"),
        (lambda s: "<" + s.upper() + ">", "<********>"),
        (lambda s: "<" + s.strip().title() + ">", "<****>"),
        (lambda s: trace.join(", ", ["x", s]), "x, ********"),
        (lambda s: concat(["<", s, s, ">"]), "<" + "*" * 16 + ">"),
        (lambda s: s * 2, "*" * 16),
        (lambda s: trace.percent("<%s>", s), "<********>"),
        (lambda s: trace.percent("<%-10s|%d>", (s, 3)), "<********  |3>"),
        (lambda s: s % (), "********"),
        (lambda s: "<" + s.removeprefix("  ") + ">", "<******>"),
        (lambda s: "<" + s.removesuffix("  ") + ">", "<******>"),
        (lambda s: s.strip().ljust(6, "."), "****.."),
        (lambda s: s.strip().rjust(6, "."), "..****"),
        (lambda s: concat(["<", *s.splitlines(), ">"]), "<********>"),
    ],
)
def test_operations_keep_the_source_of_characters(made, expected) -> None:  # type: ignore[no-untyped-def]
    text = made(of("  abcd  ", SAID))
    assert plain(text) == made("  abcd  ")
    assert letters(text) == expected


def test_a_field_stripped_to_nothing_stays_visible() -> None:
    text = "<" + of("   ", SAID).strip() + ">"
    assert spans_of(text) == ((1, 1, SAID),)


def test_parts_of_a_field_with_two_sources_are_told_apart() -> None:
    both = concat([of("think", THOUGHT), of("say", SAID)])
    assert spans_of(both[3:7]) == ((0, 2, THOUGHT), (2, 4, SAID))


def test_marks_travel_with_the_text_they_stand_in() -> None:
    mark = Traced("", ((0, 0, Mark(MarkKind.ENTER, 2)),))
    text = "ab" + (mark + "cd")
    assert spans_of(text) == ((2, 2, Mark(MarkKind.ENTER, 2)),)


def test_a_traced_string_is_a_string_like_any_other() -> None:
    text = of("hello", SAID)
    assert text == "hello" and hash(text) == hash("hello") and {text: 1}["hello"] == 1
    assert str(text) is text and type(plain(text)) is str
    assert text.startswith("he") and "ell" in text and len(text) == 5 and text.find("l") == 2
    with pytest.raises(TypeError):
        text["key"]  # type: ignore[index]
    with pytest.raises(IndexError):
        text[5]


def test_letters_that_change_length_keep_the_source_of_the_whole() -> None:
    text = of("ß", SAID).upper()
    assert text == "SS" and spans_of(text) == ((0, 2, SAID),)


def test_what_is_added_to_safe_text_is_escaped_and_keeps_its_source() -> None:
    text = '{"' + trace.safe(of('"', SAID)) + of("<b>", SAID)
    assert plain(text) == '{&#34;"&lt;b&gt;'
    assert letters(text) == "{&#34;**********"
