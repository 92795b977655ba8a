"""Paired intervals: right about as often as they say, silent where nothing changed."""

from __future__ import annotations

import numpy as np
import pytest

from tutelage.evaluate.stats import Direction, Tallies, change, change_between


def drawn(seed: int, items: int, shift: float) -> tuple[Tallies, Tallies]:
    """Return base and tuned figures of items with a common part of their own, the tuned ones higher by `shift` a count."""
    random = np.random.default_rng(seed)
    counts = random.integers(5, 50, items).astype(float)
    common = random.normal(3.0, 1.0, items)
    base = Tallies(counts * (common + random.normal(0, 0.2, items)), counts)
    tuned = Tallies(counts * (common + shift + random.normal(0, 0.2, items)), counts)
    return base, tuned


def test_a_ratio_is_of_sums_and_not_a_mean_of_ratios() -> None:
    found = change(Tallies.of([(1, 1), (1, 9)]), Tallies.of([(2, 1), (1, 9)]))
    assert (found.base, found.tuned, found.difference) == (pytest.approx(0.2), pytest.approx(0.3), pytest.approx(0.1))


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(150):
        found = change(*drawn(seed, 60, 0.1), seed=seed)
        assert found.low is not None and found.high is not None
        held += found.low <= 0.1 <= found.high
    assert 0.89 <= held / 150 <= 0.99


def test_pairing_finds_a_change_that_items_alone_would_hide() -> None:
    base, tuned = drawn(0, 200, 0.1)
    assert change(base, tuned).direction is Direction.UP
    shuffled = np.random.default_rng(1).permutation(200)
    apart = change(base, Tallies(tuned.sums[shuffled], tuned.counts[shuffled]))
    assert apart.direction is Direction.SAME


def test_a_model_is_not_distinguishable_from_itself() -> None:
    base, _ = drawn(0, 50, 0.0)
    found = change(base, base)
    assert (found.difference, found.low, found.high, found.direction) == (0, 0, 0, Direction.SAME)


def test_a_change_within_the_noise_of_the_base_goes_nowhere() -> None:
    base, tuned = drawn(0, 200, 0.1)
    assert change(base, tuned, noise=0.01).direction is Direction.UP
    assert change(base, tuned, noise=0.5).direction is Direction.SAME


def test_what_was_not_counted_is_not_measured() -> None:
    nothing = Tallies.of([(0, 0), (0, 0)])
    found = change(nothing, nothing)
    assert (found.base, found.tuned, found.difference, found.low, found.direction) == (None,) * 5
    assert change(Tallies.of([]), Tallies.of([])).to_json()["base"] is None


def test_models_measured_on_different_items_are_not_compared() -> None:
    with pytest.raises(ValueError, match="2 and 1 items"):
        change(Tallies.of([(1, 1), (2, 1)]), Tallies.of([(1, 1)]))


def test_items_of_two_kinds_are_compared_without_pairs() -> None:
    one, other = Tallies.of([(1.0, 10)] * 50 + [(2.0, 10)] * 50), Tallies.of([(2.0, 10)] * 30 + [(3.0, 10)] * 30)
    found = change_between(one, other)
    assert (found.direction, found.difference) == (Direction.UP, pytest.approx(0.1))
    assert change_between(one, one).direction is Direction.SAME
