"""Checkers accept what is right, refuse what is nearly right, and survive a file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.lab.checkers import Check, Exactly, Form, Letter, Names, Rhyme, Story, check_from_json, check_to_json

STORY = Story("Mira Dell", "lamp", 2)
LETTER = Letter("Mira Dell", "Tom Hale", "lamp")
CHECKS: list[Check] = [
    Exactly("Twelve."),
    Names("soup", ("bread",)),
    Form("The home of {} is in {}."),
    STORY,
    LETTER,
    Rhyme("cat"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: type(check).__name__)
def test_a_check_survives_json(check: Check) -> None:
    assert check_from_json(check_to_json(check)) == check


@given(st.text(), st.text())
def test_exactly_accepts_its_text_and_nothing_else(expected: str, answer: str) -> None:
    assert Exactly(expected).accepts(expected)
    assert Exactly(expected).accepts(answer) == (answer == expected)


@given(st.text())
def test_no_check_fails_on_any_text(answer: str) -> None:
    for check in CHECKS:
        assert check.accepts(answer) in (True, False)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("One day, Mira Dell found a lamp. She was glad. The end.", True),
        ("One day, Mira Dell found a lamp. She was glad.", False),  # no ending
        ("One day, Mira Dell found a lamp. The end.", False),  # one sentence
        ("One day, Tom Hale found a lamp. He was glad. The end.", False),  # another person
        ("One day, Mira Dell found a clamp. She was glad. The end.", False),  # another thing
    ],
)
def test_a_story_is_held_to_every_constraint(answer: str, right: bool) -> None:
    assert STORY.accepts(answer) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Dear Tom Hale,\nI have bought a lamp. Come soon.\nYours, Mira Dell", True),
        ("Dear Mira Dell,\nI have bought a lamp. Come soon.\nYours, Tom Hale", False),
        ("Dear Tom Hale,\nI have bought a lamp.\nYours, Mira Dell", False),
        ("Dear Tom Hale, I have bought a lamp. Come soon. Yours, Mira Dell", False),
        ("Dear Tom Hale,\nI have bought a hat. Come soon.\nYours, Mira Dell", False),
    ],
)
def test_a_letter_is_held_to_its_form(answer: str, right: bool) -> None:
    assert LETTER.accepts(answer) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("I saw a little cat\nand next to it a hat.", True),
        ("I saw a little cat\nand next to it a cat.", False),
        ("I saw a little hat\nand next to it a cat.", False),
        ("I saw a little cat\nand next to it a spoon.", False),
        ("I saw a little cat and next to it a hat.", False),
    ],
)
def test_a_rhyme_needs_two_lines_and_two_words_that_rhyme(answer: str, right: bool) -> None:
    assert Rhyme("cat").accepts(answer) is right


def test_a_form_leaves_its_gaps_open_and_nothing_else() -> None:
    form = Form("The home of {} is in {}.")
    assert form.accepts("The home of Tom Hale is in Marsh End.")
    assert not form.accepts("The home of Tom Hale is in .")
    assert not form.accepts("I do not know the home of Tom Hale.")
