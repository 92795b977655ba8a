"""How a claim is decided: paired differences over seeds, their interval, and a rule that is fixed before anything is looked at.

The unit is the seed. With it everything is drawn anew that chance decides: lessons, their order, new embeddings, the questions asked
afterwards and the text whose loss is measured. Both sides of a difference have the same seed, so what they share drops out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

LEAST_SEEDS = 3
"""Fewer give no verdict."""
_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
"""The 97.5 % quantiles of Student's t distribution with 1, 2, ... degrees of freedom; the last one serves for more, and is too large."""


class Verdict(StrEnum):
    """What an experiment says of a claim."""

    SEEN = "seen here"
    UNDECIDED = "not distinguishable here"
    CONTRADICTED = "contradicted here"


class Expectation(StrEnum):
    """What a claim says of the difference between two arms: `treated` less `control`."""

    HIGHER = "higher"
    LOWER = "lower"
    SAME = "the same"
    NO_LOWER = "not lower"
    NO_HIGHER = "not higher"


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % interval, which is None for a single seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


def interval_of(values: Sequence[float]) -> Interval | None:
    """Return the mean and its t interval; None without a value.

    Source: Student 1908, "The probable error of a mean".

    Example:
        >>> found = interval_of([1.0, 2.0, 3.0])
        >>> found.mean, round(found.low, 2), round(found.high, 2)
        (2.0, -0.48, 4.48)
    """
    if not values:
        return None
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, None, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = _QUANTILES[min(count - 1, len(_QUANTILES)) - 1] * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def verdict_of(difference: Interval | None, expectation: Expectation, margin: float) -> Verdict | None:
    """Return what a difference says of an expectation; `margin`, above 0, is the smallest difference that would matter.

    HIGHER      seen: the whole interval lies above 0, and the mean is at least the margin. Contradicted: it lies below 0.
    SAME        seen: the whole interval lies within the margin, on both sides. Contradicted: it lies wholly outside.
    NO_LOWER    seen: the whole interval lies above minus the margin. Contradicted: it lies wholly below that.
    LOWER and NO_HIGHER are their mirror images. Anything else is not distinguishable. Fewer than three seeds have no verdict: None.
    """
    if margin <= 0:
        raise ValueError(f"the smallest difference that matters must be above 0, not {margin}")
    if difference is None or difference.seeds < LEAST_SEEDS or difference.low is None or difference.high is None:
        return None
    low, mean, high = difference.low, difference.mean, difference.high
    if expectation in (Expectation.LOWER, Expectation.NO_HIGHER):
        low, mean, high = -high, -mean, -low
    if expectation is Expectation.SAME:
        return _decide(-margin < low and high < margin, low > margin or high < -margin)
    if expectation in (Expectation.HIGHER, Expectation.LOWER):
        return _decide(low > 0 and mean >= margin, high < 0)
    return _decide(low > -margin, high < -margin)


def verdict_of_all(verdicts: Iterable[Verdict | None]) -> Verdict | None:
    """Return the verdict on a claim of several predictions: seen where all are, contradicted where one is, none where one has none."""
    found = set(verdicts)
    if None in found:
        return None
    if Verdict.CONTRADICTED in found:
        return Verdict.CONTRADICTED
    return Verdict.SEEN if found == {Verdict.SEEN} else Verdict.UNDECIDED


def _decide(is_seen: bool, is_contradicted: bool) -> Verdict:
    return Verdict.SEEN if is_seen else Verdict.CONTRADICTED if is_contradicted else Verdict.UNDECIDED
