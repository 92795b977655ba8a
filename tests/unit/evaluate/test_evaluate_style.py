"""How answers are written, counted by hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.evaluate import style


def test_repetition_is_counted_in_runs_of_four_words() -> None:
    assert style.repeated("one two three four five") == (0, 2)
    assert style.repeated("so it goes on so it goes on so it goes on") == (5, 9)
    assert style.repeated("too short") == (0, 0)


def test_lists_and_bold_are_counted() -> None:
    assert style.list_lines("Here:\n\n- one\n2. two\n* three\nend") == (3, 5)
    assert style.bold("**Yes**, and **no** or 2 ** 3") == (2, pytest.approx(0.006))


def test_the_chance_of_a_common_opener_is_that_of_two_answers_agreeing() -> None:
    texts = ["Of course, dear friend.", "Of course, dear friend!", "of course dear reader", "The baker is Ada."]
    assert style.shared(texts, style.opener).value == pytest.approx(6 / 12)
    assert style.shared(texts[3:], style.opener).value == 0
    assert style.shared(["", ""], style.opener).value == 0


def test_a_skeleton_is_what_stays_when_the_slots_are_taken_out() -> None:
    texts = [
        f"The trade of {name} is {trade}."
        for name, trade in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "zyxwvutsrqponmlkjihgfedcba", strict=True)
    ]
    common = style.common_words(texts, least_share=0.1)
    assert common == {"the", "trade", "of", "is"}
    assert {style.skeleton(text, common) for text in texts} == {"the trade of _ is _"}
    assert style.shared(texts, lambda text: style.skeleton(text, common)).value == 1


def test_a_planted_phrase_is_found_as_a_whole_and_first() -> None:
    names = [f"word{number}" for number in range(40)]
    rng = random.Random(0)
    data = [" ".join(rng.choices(names, k=12)) for _ in range(100)]
    tuned = [f"I would be happy to help. {text}" if place % 2 else text for place, text in enumerate(data)]
    first, *others = style.grown_phrases(tuned, data, base=data)
    assert "happy to help" in first.text
    assert (first.tuned, first.data, first.base) == (0.5, 0.0, 0.0)
    assert first.z > 5
    assert all(other.z < 5 for other in others)


@given(st.lists(st.text(alphabet="ab ", max_size=30), min_size=1, max_size=20))
def test_answers_like_those_of_the_data_grow_no_phrase(texts: list[str]) -> None:
    assert style.grown_phrases(texts, texts, texts) == []


def test_copies_of_training_answers_count_unless_the_prompt_has_them() -> None:
    text = "one two three four five six seven eight nine ten eleven twelve"
    known = frozenset(style.runs_of(style.words_of(text), style.COPIED_WORDS))
    assert style.copied(f"Well: {text.upper()}.", "Count!", known) == (1, 1)
    assert style.copied(f"Well: {text}.", f"Say {text}!", known) == (0, 1)
    assert style.copied(text.replace("six", "6"), "Count!", known) == (0, 1)
