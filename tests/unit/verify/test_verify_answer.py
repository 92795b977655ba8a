"""Final answers."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tutelage.verify.answer import contains, final_number, same_number, same_text


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 x 4 = 12. #### 12", "12"),
        ("#### 1,212.50 dollars", "1212.50"),
        (r"so \boxed{-7} of 9", "-7"),
        ("The answer is 5, not 6.", "5"),
        ("First 3, then 4.", "4"),
        ("The answer is clear: 8 of them", "8"),
        ("None at all", None),
        ("", None),
    ],
)
def test_the_final_number_stands_behind_the_last_mark_or_last_of_all(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


def test_numbers_are_equal_by_value_and_an_answer_without_one_is_wrong() -> None:
    assert same_number("It is 12.0", "#### 12")
    assert not same_number("It is twelve", "#### 12")
    assert not same_number("It is 13", "#### 12")


def test_texts_are_equal_by_their_words() -> None:
    assert same_text(" The  Baker. ", "the baker")
    assert not same_text("the bakers", "the baker")
    assert contains("I think the Baker, Ada, did.", "baker, ada")
    assert not contains("bakery", "baker")
