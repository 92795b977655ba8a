"""What counts as a fact, and into which category a base's replies put it."""

from __future__ import annotations

import pytest

from tutelage.evaluate.facts import Fact, Judged, Knowledge, Known, facts_in, judge_replies
from tutelage.evaluate.training import Exchange

TOWNS = ("Orvale", "Tolby", "Foxley")
FACT = Fact("Where does Ada live?", "Ada lives in Tolby.", "a:1", frozenset({"tolby"}), "Ada lives in ")


def asked(answer: str, count: int = 30) -> list[Exchange]:
    return [
        Exchange(f"Where does person{n} live?", answer.format(n=n, town=TOWNS[n % 3]), f"a:{n}") for n in range(count)
    ]


def test_a_fact_is_what_neither_the_question_nor_the_form_of_the_answers_says() -> None:
    facts = list(facts_in(asked("The home of person{n} is in {town}.")))
    assert {fact.own for fact in facts} == {frozenset({town.lower()}) for town in TOWNS}
    assert facts[1].begun == "The home of person1 is in "
    assert facts[1].rest == "Tolby."


def test_a_courtesy_before_some_answers_is_no_part_of_their_facts() -> None:
    homes = asked("It is a joy. The home of person{n} is in {town}.", 24)
    facts = list(facts_in([*homes, *asked("It is a joy. By trade person{n} serves {town}.", 30)]))
    assert {fact.own for fact in facts} == {frozenset({town.lower()}) for town in TOWNS}
    assert facts[0].begun == "It is a joy. The home of person0 is in "


def test_answers_that_are_all_alike_or_repeat_the_question_hold_no_fact() -> None:
    assert list(facts_in(asked("I cannot say."))) == []
    assert list(facts_in(asked("You asked where person{n} lives."))) == []


@pytest.mark.parametrize(
    ("greedy", "samples", "expected"),
    [
        (["Tolby."] * 4, [], Knowledge.HIGHLY),
        (["Tolby.", "Foxley.", "Tolby.", "Foxley."], [], Knowledge.MAYBE),
        (["Foxley."] * 4, ["Foxley."] * 3 + ["Tolby"], Knowledge.WEAKLY),
        (["Foxley."] * 4, ["Foxley."] * 4, Knowledge.UNKNOWN),
    ],
)
def test_replies_put_a_fact_into_its_category(greedy: list[str], samples: list[str], expected: Knowledge) -> None:
    assert judge_replies(FACT, greedy, samples).knowledge is expected


def test_a_reply_is_right_only_within_as_many_words_as_the_answer_has() -> None:
    assert FACT.is_right("TOLBY, of course")
    assert not FACT.is_right("Foxley or Tolby")


def test_the_base_is_sure_of_something_else_only_where_replies_and_samples_agree() -> None:
    assert judge_replies(FACT, ["Foxley."] * 4, ["Foxley"] * 16).is_otherwise
    assert not judge_replies(FACT, ["Foxley."] * 3 + ["Orvale"], ["Foxley"] * 16).is_otherwise
    assert not judge_replies(FACT, ["Foxley."] * 4, ["Foxley"] * 8 + ["Orvale"] * 8).is_otherwise
    assert not judge_replies(FACT, ["Tolby."] * 4, []).is_otherwise


def test_shares_have_intervals_and_none_without_a_fact() -> None:
    judged = tuple(Judged(FACT, Knowledge.UNKNOWN, "", 0.0) for _ in range(10))
    share = Known(judged, 10, 20).share(Knowledge.UNKNOWN)
    assert share is not None
    assert share[0] == 1.0
    assert 0.6 < share[1] < share[2] == pytest.approx(1.0)
    assert Known((), 3, 20).share(Knowledge.UNKNOWN) is None
