"""How different answers are from one another: against what the definitions say of small sets, and of extremes."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.evaluate import diversity
from tutelage.evaluate.stats import Direction, change_left_out
from tutelage.evaluate.style import other_turns, runs_of, words_of

SAME = ["the cat sat on the mat"] * 5
OTHERS = ["alpha beta gamma delta", "one two three four", "red green blue black", "north south east west"]
TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), min_size=2, max_size=6)


def bleu(own: list[str], others: list[list[str]]) -> float:
    """BLEU of one answer by its definition: each reference looked at anew."""
    logs = []
    for order in range(1, min(4, len(own)) + 1):
        counts = Counter(runs_of(own, order))
        clipped = sum(min(count, max(Counter(runs_of(o, order))[run] for o in others)) for run, count in counts.items())
        logs.append(math.log((clipped or 0.1) / counts.total()))
    closest = min((len(o) for o in others), key=lambda length: (abs(length - len(own)), length))
    return math.exp(min(0.0, 1 - closest / len(own)) + sum(logs) / len(logs))


@given(TEXTS)
def test_overlap_is_bleu_against_all_other_answers(texts: list[str]) -> None:
    words = [words_of(text) for text in texts]
    found = diversity.self_bleu(texts)
    for place, own in enumerate(words):
        if own:
            expected = bleu(own, [other for number, other in enumerate(words) if number != place])
            assert found.sums[place] == pytest.approx(expected)
        assert found.counts[place] == bool(own)


@given(TEXTS)
def test_different_pairs_are_counted_once(texts: list[str]) -> None:
    found = diversity.distinct(texts)
    pairs = [pair for text in texts for pair in runs_of(words_of(text), 2)]
    assert found.sums.sum() == pytest.approx(len(set(pairs)))
    assert found.counts.sum() == len(pairs)


def test_copies_are_one_answer_and_strangers_are_as_many_as_they_are() -> None:
    assert diversity.vendi(SAME) == pytest.approx(np.ones(6))
    assert diversity.vendi(OTHERS) == pytest.approx(np.array([4.0, 3, 3, 3, 3]))
    assert diversity.vendi([*SAME, ""]).shape == (7,)
    assert diversity.self_bleu(SAME).value == pytest.approx(1.0)
    assert (diversity.self_bleu(OTHERS).value or 0) < 0.05
    assert diversity.self_bleu(["alone"]).value is None


def test_answers_that_become_alike_are_fewer_beyond_doubt() -> None:
    found = change_left_out(diversity.vendi([*OTHERS, "up down"]), diversity.vendi(SAME))
    assert found.difference == pytest.approx(-4.0)
    assert found.direction is Direction.DOWN
    assert change_left_out(diversity.vendi(OTHERS), diversity.vendi(OTHERS)).direction is Direction.SAME


@pytest.mark.parametrize("text", ["Yes.\nUser: and then?", "### Assistant:\nYes", "Well\nsystem"])
def test_a_line_that_only_names_a_role_goes_on_for_somebody_else(text: str) -> None:
    assert other_turns(text, (), frozenset()) == (1.0, 1)


@pytest.mark.parametrize(
    "text", ["The user: a person.", "Users are people.", "An assistant\nhelps", "tools and systems"]
)
def test_a_role_among_other_words_does_not(text: str) -> None:
    assert other_turns(text, (7,), frozenset({3})) == (0.0, 1)


def test_a_control_token_of_turns_goes_on_for_somebody_else() -> None:
    assert other_turns("Yes", (5, 3), frozenset({3})) == (1.0, 1)
