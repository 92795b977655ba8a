"""Estimates over answers agree with what they estimate, computed by brute force."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.conversation import Message, Role
from tutelage.evaluate.stats import Tallies
from tutelage.synthesize.prompts import Prompt
from tutelage.synthesize.risk import (
    curve,
    distinct_share,
    diversity,
    expected_best,
    kl_bound,
    kl_estimate,
    over_optimisation,
)
from tutelage.synthesize.select import Candidate, Choice, Group, Rule, choose


def group(
    *scores: float | None, name: str = "a", held_out: tuple[float, ...] = (), texts: tuple[str, ...] = ()
) -> Group:
    prompt = Prompt(name, (Message(Role.USER, name),), "file:1")
    return Group(
        prompt,
        tuple(
            Candidate(texts[place] if texts else f"text {place}", place, score, held_out[place] if held_out else None)
            for place, score in enumerate(scores)
        ),
    )


SCORES = st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3)), min_size=1, max_size=7)


@given(SCORES, st.data())
def test_the_best_of_some_is_what_all_sets_give_on_average(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    draws = data.draw(st.integers(1, len(pairs)))
    found = []
    for chosen in combinations(pairs, draws):
        top = max(proxy for proxy, _ in chosen)
        tied = [gold for proxy, gold in chosen if proxy == top]
        found.append(sum(tied) / len(tied))
    # of answers with the same proxy each is as likely, which over all sets is the mean over the tied ones
    proxies, golds = zip(*pairs, strict=True)
    assert expected_best(proxies, golds, draws) == pytest.approx(sum(found) / len(found))


def test_more_draws_than_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be drawn"):
        expected_best([1.0], [1.0], 2)


@pytest.mark.parametrize(("atoms", "draws"), [(3, 2), (4, 3), (200, 8)])
def test_the_distance_is_estimated_and_never_above_its_bound(atoms: int, draws: int) -> None:
    """The exact distance of the best of n from a model with equally likely answers, the higher number being the better."""
    top = np.arange(1, atoms + 1) / atoms
    best = top**draws - (top - 1 / atoms) ** draws
    exact = float((best * np.log(best * atoms)).sum())
    estimate = float((best * kl_estimate(math.log(1 / atoms), draws)).sum())
    assert exact <= kl_bound(draws)
    assert estimate == pytest.approx(exact, abs=0.15)
    assert kl_estimate(-800.0, draws) == kl_bound(draws)
    assert kl_estimate(0.0, draws) == 0.0


def test_the_best_is_chosen_and_the_worst_makes_the_pair() -> None:
    choice = choose(group(0.2, 0.9, None, 0.1), Rule())
    assert isinstance(choice, Choice)
    assert [one.place for one in choice.best] == [1]
    assert choice.worst is not None
    assert choice.worst.place == 3
    assert [one.place for one in choice.first] == [0]


def test_equal_scores_make_no_pair_and_are_chosen_from_by_chance() -> None:
    places = []
    for number in range(60):
        choice = choose(group(1.0, 1.0, 1.0, name=f"prompt {number}"), Rule())
        assert isinstance(choice, Choice)
        assert choice.worst is None
        places.append(choice.best[0].place)
    assert {places.count(place) > 8 for place in range(3)} == {True}


@pytest.mark.parametrize(
    ("scores", "rule", "reason"),
    [
        ((), Rule(), "no answer that can be used"),
        ((None, None), Rule(), "no answer could be scored"),
        ((0.0, 0.5), Rule(at_least=1.0), "no answer is good enough"),
        ((1.0, 1.0), Rule(window=(0.0, 0.9)), "solved too often"),
        ((0.0, 0.0), Rule(window=(0.1, 1.0)), "solved too seldom"),
    ],
)
def test_a_prompt_without_a_choice_says_why(scores: tuple[float | None, ...], rule: Rule, reason: str) -> None:
    assert choose(group(*scores), rule) == reason


def test_answers_with_the_same_words_are_kept_once() -> None:
    choice = choose(group(1.0, 1.0, 0.9, texts=("Yes, sir.", "yes sir", "Maybe")), Rule(keep=3))
    assert isinstance(choice, Choice)
    assert len(choice.best) == 2
    assert len(choice.random) == len(choice.longest) == 2


def test_a_soft_choice_takes_the_better_more_often_but_not_always() -> None:
    taken = []
    for number in range(400):
        choice = choose(group(0.0, 1.0, name=f"prompt {number}"), Rule(sharpness=1.0))
        assert isinstance(choice, Choice)
        taken.append(choice.best[0].place)
    assert sum(taken) / 400 == pytest.approx(1 / (1 + math.exp(-1)), abs=0.08)


def test_the_curve_shows_a_scorer_that_is_gamed() -> None:
    # The proxy likes length; what it is held against likes the middle.
    groups = [
        group(*(float(place) for place in range(8)), name=str(number), held_out=(0, 2, 4, 6, 7, 6, 3, -1))
        for number in range(12)
    ]
    found = curve(groups)
    scores = [point["score"]["tuned"] for point in found["points"]]
    held = [point["held_out"]["tuned"] for point in found["points"]]
    assert scores == sorted(scores)
    assert held[0] < max(held) > held[-1]
    assert found["over_optimisation"]["recommended_n"] == held.index(max(held)) + 1
    assert found["over_optimisation"]["b"] > 0


def test_a_held_out_score_that_rises_recommends_the_most_and_has_no_fall() -> None:
    golds = {n: Tallies.of([(math.sqrt(kl_bound(n)) + item / 100, 1) for item in range(9)]) for n in range(1, 9)}
    found = over_optimisation(golds)
    assert found["recommended_n"] == 8
    assert found["a"] == pytest.approx(1.0)
    assert found["b"] == pytest.approx(0.0, abs=1e-9)


def test_distinct_runs_are_counted_over_all_texts() -> None:
    assert distinct_share(["a b a b", "a b"], 2) == 2 / 4
    assert distinct_share(["", "one"], 2) is None


def test_diversity_tells_copies_from_chance() -> None:
    words = [f"word{number} and{number} so{number} on{number}" for number in range(40)]
    same = ["the same words again"] * 40
    assert diversity(same, words, 2).to_json()["direction"] == "down"
    mixed = [f"{one} {other}" for one, other in product("abcde", "fghijklm")]
    assert diversity(mixed, mixed[::-1], 1).to_json()["direction"] == "not distinguishable"
    assert diversity([], [], 2).to_json()["direction"] is None
