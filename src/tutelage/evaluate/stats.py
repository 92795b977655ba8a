"""Changes between two models on the same items, with intervals: sums and counts of each item, never means of means.

An item is a document or a prompt. Its tokens, words or answers are not independent of one another, so what is drawn anew in the
bootstrap are whole items, and both models' figures of an item stay together.
"""

# N items, R resamples

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]

RESAMPLES = 4000
LEVEL = 0.95
_RESAMPLES_AT_ONCE = 500  # draws of N counts each, in memory


class Direction(StrEnum):
    """Where a figure went; a change whose interval holds zero, or that the base alone can show, went nowhere."""

    UP = "up"
    DOWN = "down"
    SAME = "not distinguishable"


@dataclass(frozen=True)
class Tallies:
    """A figure of one model as a sum and a count for each item, such as nats and bytes of a document.

    Shapes: both [N].
    """

    sums: Array
    counts: Array

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> Tallies:
        """Return the tallies of (sum, count) pairs, one for each item."""
        table = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
        return cls(table[:, 0], table[:, 1])

    @property
    def value(self) -> float | None:
        """Sum over sum; None where nothing was counted."""
        total = float(self.counts.sum())
        return float(self.sums.sum()) / total if total else None

    def take(self, chosen: npt.NDArray[np.bool_]) -> Tallies:
        """Return the tallies of the items that are `chosen` [N]."""
        return Tallies(self.sums[chosen], self.counts[chosen])


@dataclass(frozen=True)
class Change:
    """A figure of the base and of the tuned model on the same items, and their difference (tuned less base) with its interval.

    `noise` is how far the base was from itself when it was measured twice; None where it was measured once.
    Values are None where nothing was counted.
    """

    base: float | None
    tuned: float | None
    low: float | None
    high: float | None
    items: int
    noise: float | None = None

    @property
    def difference(self) -> float | None:
        """Tuned less base."""
        return None if self.base is None or self.tuned is None else self.tuned - self.base

    @property
    def direction(self) -> Direction | None:
        """Up or down where the whole interval lies on one side of zero and beyond the noise; None where nothing was measured."""
        if self.low is None or self.high is None or self.difference is None:
            return None
        if abs(self.difference) <= (self.noise or 0.0) or self.low <= 0 <= self.high:
            return Direction.SAME
        return Direction.UP if self.difference > 0 else Direction.DOWN

    def to_json(self) -> dict[str, object]:
        """Return every figure, and the direction."""
        return {
            "base": self.base,
            "tuned": self.tuned,
            "difference": self.difference,
            "low": self.low,
            "high": self.high,
            "items": self.items,
            "noise": self.noise,
            "direction": self.direction,
        }


def change(base: Tallies, tuned: Tallies, *, noise: float | None = None, seed: int = 0) -> Change:
    """Return the change of sum/count from `base` to `tuned`, with a paired percentile bootstrap over items.

    Both have the same items in the same order. With fewer than two items there is no interval.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    if len(base.sums) != len(tuned.sums):
        raise ValueError(f"the models were measured on {len(base.sums)} and {len(tuned.sums)} items")
    num_items = len(base.sums)
    low = high = None
    if num_items > 1 and base.value is not None and tuned.value is not None:
        differences = _resampled(tuned, base, seed=seed)
        low, high = (float(edge) for edge in np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Change(base.value, tuned.value, low, high, num_items, noise)


def change_between(first: Tallies, second: Tallies, *, seed: int = 0) -> Change:
    """Return the change of sum/count from the `first` items to the `second`, which are others and drawn anew independently."""
    low = high = None
    items = min(len(first.sums), len(second.sums))
    if items > 1 and first.value is not None and second.value is not None:
        one, other = (
            _resampled(side, Tallies(np.zeros_like(side.sums), np.ones_like(side.counts)), seed=seed + number)
            for number, side in enumerate((first, second))
        )
        size = min(len(one), len(other))
        low, high = (float(edge) for edge in np.quantile(other[:size] - one[:size], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Change(first.value, second.value, low, high, items)


def change_left_out(base: Array, tuned: Array) -> Change:
    """Return the change of a figure that is no ratio of sums, with the interval of the paired jackknife.

    Shapes: [1 + N], the figure of all items first, then that without each of them in turn.

    Source: Efron and Tibshirani 1993, chapter 11.
    """
    num_items = len(base) - 1
    low = high = None
    difference = tuned - base
    if num_items > 1:
        spread = math.sqrt((num_items - 1) / num_items * float(((difference[1:] - difference[1:].mean()) ** 2).sum()))
        reach = NormalDist().inv_cdf((1 + LEVEL) / 2) * spread
        low, high = float(difference[0]) - reach, float(difference[0]) + reach
    return Change(float(base[0]), float(tuned[0]), low, high, num_items)


def _resampled(over: Tallies, under: Tallies, *, seed: int) -> Array:
    """Return the difference of the ratios [R] when the items are drawn anew; draws that count nothing are left out."""
    num_items = len(over.sums)
    random = np.random.default_rng(seed)
    columns = np.stack([over.sums, over.counts, under.sums, under.counts], axis=1)
    found = []
    for start in range(0, RESAMPLES, _RESAMPLES_AT_ONCE):
        size = min(_RESAMPLES_AT_ONCE, RESAMPLES - start)
        drawn_RN = random.multinomial(num_items, np.full(num_items, 1 / num_items), size=size)
        found.append(drawn_RN @ columns)
    sums = np.concatenate(found)
    sums = sums[(sums[:, 1] > 0) & (sums[:, 3] > 0)]
    return np.asarray(sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3])
