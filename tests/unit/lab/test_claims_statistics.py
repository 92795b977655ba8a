"""Intervals over seeds, and the rule that turns them into verdicts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.lab.claims.statistics import (
    _QUANTILES,
    Expectation,
    Interval,
    Verdict,
    interval_of,
    verdict_of,
    verdict_of_all,
)

VALUES = st.lists(st.floats(-10, 10), min_size=3, max_size=8)
MIRROR = {
    Expectation.HIGHER: Expectation.LOWER,
    Expectation.LOWER: Expectation.HIGHER,
    Expectation.NO_LOWER: Expectation.NO_HIGHER,
    Expectation.NO_HIGHER: Expectation.NO_LOWER,
    Expectation.SAME: Expectation.SAME,
}


def test_the_quantiles_leave_a_fortieth_of_the_distribution_above() -> None:
    x = np.linspace(0, 200, 2_000_001)
    for freedom, quantile in enumerate(_QUANTILES, start=1):
        density = (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
        beyond = density[x > quantile].sum() + (200.0**-freedom * freedom ** ((freedom + 1) / 2) / freedom) / (
            x[1] - x[0]
        )
        assert beyond / (2 * (density.sum() - density[0] / 2)) == pytest.approx(0.025, abs=2e-4), freedom


def test_a_single_value_has_no_interval_and_none_has_no_mean() -> None:
    assert interval_of([2.0]) == Interval(2.0, None, None, 1)
    assert interval_of([]) is None


def test_nineteen_of_twenty_intervals_hold_the_true_mean() -> None:
    draws = np.random.default_rng(0).normal(1.5, 2.0, size=(2000, 5))
    found = [interval_of(list(row)) for row in draws]
    held = sum(one is not None and one.low <= 1.5 <= one.high for one in found)  # type: ignore[operator]
    assert 0.935 < held / 2000 < 0.965


@pytest.mark.parametrize(
    ("expectation", "low", "high", "verdict"),
    [
        (Expectation.HIGHER, 0.01, 0.11, Verdict.SEEN),
        (Expectation.HIGHER, 0.01, 0.03, Verdict.UNDECIDED),  # surely higher, but by less than matters
        (Expectation.HIGHER, -0.01, 0.15, Verdict.UNDECIDED),
        (Expectation.HIGHER, -0.09, -0.01, Verdict.CONTRADICTED),
        (Expectation.LOWER, -0.11, -0.01, Verdict.SEEN),
        (Expectation.LOWER, 0.01, 0.02, Verdict.CONTRADICTED),
        (Expectation.SAME, -0.02, 0.04, Verdict.SEEN),
        (Expectation.SAME, -0.06, 0.04, Verdict.UNDECIDED),
        (Expectation.SAME, 0.06, 0.09, Verdict.CONTRADICTED),
        (Expectation.NO_LOWER, -0.04, 0.5, Verdict.SEEN),
        (Expectation.NO_LOWER, -0.06, 0.5, Verdict.UNDECIDED),
        (Expectation.NO_LOWER, -0.5, -0.06, Verdict.CONTRADICTED),
        (Expectation.NO_HIGHER, -0.5, 0.04, Verdict.SEEN),
        (Expectation.NO_HIGHER, 0.06, 0.5, Verdict.CONTRADICTED),
    ],
)
def test_the_rule_decides(expectation: Expectation, low: float, high: float, verdict: Verdict) -> None:
    assert verdict_of(Interval((low + high) / 2, low, high, 5), expectation, 0.05) is verdict


@given(VALUES, st.sampled_from(list(Expectation)), st.floats(0.01, 3))
def test_turning_the_difference_round_turns_the_expectation_round(
    values: list[float], expectation: Expectation, margin: float
) -> None:
    there, back = interval_of(values), interval_of([-value for value in values])
    assert verdict_of(there, expectation, margin) is verdict_of(back, MIRROR[expectation], margin)


@given(VALUES, st.sampled_from(list(Expectation)), st.floats(0.01, 3), st.floats(1.0, 10))
def test_a_margin_that_asks_for_more_sees_a_difference_less_often_and_a_likeness_more_often(
    values: list[float], expectation: Expectation, margin: float, factor: float
) -> None:
    found = interval_of(values)
    narrow, wide = (verdict_of(found, expectation, size) for size in (margin, margin * factor))
    asks_for_difference = expectation in (Expectation.HIGHER, Expectation.LOWER)
    stricter, laxer = (wide, narrow) if asks_for_difference else (narrow, wide)
    assert stricter is not Verdict.SEEN or laxer is Verdict.SEEN


@pytest.mark.parametrize("expectation", list(Expectation))
def test_two_seeds_decide_nothing(expectation: Expectation) -> None:
    assert verdict_of(interval_of([5.0, 5.1]), expectation, 1.0) is None
    assert verdict_of(None, expectation, 1.0) is None


def test_a_difference_that_could_be_nothing_cannot_matter() -> None:
    with pytest.raises(ValueError, match="above 0"):
        verdict_of(interval_of([1.0, 2.0, 3.0]), Expectation.SAME, 0.0)


def test_one_contradiction_outweighs_and_one_doubt_leaves_open() -> None:
    seen, open_, against = Verdict.SEEN, Verdict.UNDECIDED, Verdict.CONTRADICTED
    assert verdict_of_all([seen, seen]) is seen
    assert verdict_of_all([seen, open_]) is open_
    assert verdict_of_all([seen, open_, against]) is against
    assert verdict_of_all([seen, against, None]) is None
