"""What choosing the best of several answers gains, and what it costs: score, length, diversity, distance from the model.

Everything is measured against a choice without judgement among the same answers.
"""

# P prompts, K answers of a prompt, R runs of words

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tutelage.data.conversation import Json
from tutelage.evaluate.stats import Change, Tallies, change
from tutelage.evaluate.style import opener, runs_of, shared, words_of
from tutelage.synthesize.select import Candidate, Choice, Group

_SHUFFLES = 400


def expected_best(proxy: Sequence[float], gold: Sequence[float], draws: int) -> float:
    """Return the mean of `gold` at the answer with the highest `proxy`, over all sets of `draws` of the answers.

    Of answers with the same proxy each is as likely to be taken. Both are [K], and `draws` at most K.

    Source: the estimator of Nakano et al. 2021 (arXiv 2112.09332), appendix I.

    Example:
        >>> expected_best([0.0, 1.0, 0.0], [5.0, 8.0, 5.0], 2)  # two sets of three hold the second
        7.0
    """
    size = len(proxy)
    if not 1 <= draws <= size:
        raise ValueError(f"{draws} answers cannot be drawn from {size}")
    order = sorted(range(size), key=lambda place: proxy[place])
    total, start = 0.0, 0
    while start < size:
        end = start
        while end < size and proxy[order[end]] == proxy[order[start]]:
            end += 1
        tied = [gold[place] for place in order[start:end]]
        sets = math.comb(end, draws) - math.comb(start, draws)  # sets whose highest proxy is this one
        total += sets * sum(tied) / len(tied)
        start = end
    return total / math.comb(size, draws)


def kl_bound(draws: int) -> float:
    """Return what the best of `draws` answers is at most away from the model, in nats.

    Source: Beirami et al. 2024, "Theoretical guarantees on the best-of-n alignment policy" (arXiv 2401.01879), theorem 1.
    """
    return math.log(draws) - (draws - 1) / draws


def kl_estimate(log_probability: float, draws: int) -> float:
    """Return an estimate of the same distance from how likely the model finds the chosen answer, in nats.

    Source: Beirami et al. 2024, the estimator of section 4.
    """
    chance = math.exp(min(log_probability, 0.0))
    if chance >= 1.0:
        return 0.0
    if chance < 1e-12:  # the limit; below it the formula has no digits left
        return kl_bound(draws)
    missed = (1 - chance) ** draws
    found = -math.expm1(draws * math.log1p(-chance))
    spread = math.log(draws) + (draws - 1) * math.log1p(-chance) - (draws - 1) / draws
    return missed * spread + found * math.log(found / chance)


def distinct_share(texts: Sequence[str], length: int) -> float | None:
    """Return distinct-n: different runs of `length` words as a share of all; None where there are none.

    Source: Li et al. 2016, "A diversity-promoting objective function for neural conversation models" (arXiv 1510.03055).
    """
    runs = [run for text in texts for run in runs_of(words_of(text), length)]
    return len(set(runs)) / len(runs) if runs else None


@dataclass(frozen=True)
class Diversity:
    """Distinct-n of the chosen answers and of the random ones, and between what the difference would lie by chance alone.

    By chance means: with chosen and random exchanged for each prompt by a coin; 95 % of the differences lie between `low` and `high`.
    """

    length: int
    chosen: float | None
    random: float | None
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, Json]:
        """Return every figure and what it means."""
        difference = None if self.chosen is None or self.random is None else self.chosen - self.random
        direction = None
        if difference is not None and self.low is not None and self.high is not None:
            direction = "up" if difference > self.high else "down" if difference < self.low else "not distinguishable"
        return {
            "distinct": self.length,
            "chosen": self.chosen,
            "random": self.random,
            "difference": difference,
            "by_chance": None if self.low is None else [self.low, self.high],
            "direction": direction,
        }


def diversity(chosen: Sequence[str], random: Sequence[str], length: int, *, seed: int = 0) -> Diversity:
    """Compare distinct-n of two answers to each prompt."""
    number_of: dict[tuple[str, ...], int] = {}
    runs, prompt, side = [], [], []
    for number, texts in enumerate((chosen, random)):
        for place, text in enumerate(texts):
            found = [number_of.setdefault(run, len(number_of)) for run in runs_of(words_of(text), length)]
            runs += found
            prompt += [place] * len(found)
            side += [number] * len(found)
    run_R, prompt_R, side_R = np.array(runs, dtype=np.int64), np.array(prompt, dtype=np.int64), np.array(side)
    differences = []
    for coin_P in np.random.default_rng(seed).integers(0, 2, size=(_SHUFFLES, len(chosen))):
        is_first_R = side_R == coin_P[prompt_R]
        shares = [_distinct(run_R[is_first_R]), _distinct(run_R[~is_first_R])]
        if shares[0] is not None and shares[1] is not None:
            differences.append(shares[0] - shares[1])
    low, high = np.quantile(differences, [0.025, 0.975]) if differences and len(chosen) > 1 else (None, None)
    return Diversity(length, distinct_share(chosen, length), distinct_share(random, length), _plain(low), _plain(high))


def _distinct(run_R: npt.NDArray[np.int64]) -> float | None:
    return np.count_nonzero(np.bincount(run_R)) / len(run_R) if len(run_R) else None


def _plain(value: float | None) -> float | None:
    return None if value is None else float(value)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Spearman's correlation, ties sharing their mean rank; None where a side does not vary.

    Example:
        >>> rank_correlation([1.0, 2.0, 3.0], [5.0, 9.0, 8.0])
        0.5
    """
    ranks = [_ranks(side) for side in (one, other)]
    deviations = [side - side.mean() for side in ranks]
    size = math.sqrt(float((deviations[0] ** 2).sum() * (deviations[1] ** 2).sum()))
    return float(deviations[0] @ deviations[1]) / size if size else None


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    below = (array[None, :] < array[:, None]).sum(axis=1)
    same = (array[None, :] == array[:, None]).sum(axis=1)
    return np.asarray(below + (same - 1) / 2)


def report(groups: Sequence[Group], choices: Sequence[Choice]) -> dict[str, Json]:
    """Return every figure of a selection; one that could not be measured is null."""
    scored = [group for group in groups if group.scored]
    chosen = [candidate.text for choice in choices for candidate in choice.best]
    random = [candidate.text for choice in choices for candidate in choice.random]
    return {
        "score": _score_change(scored, _best_score).to_json(),
        "score_of_longest": _score_change(scored, _longest_score).to_json(),
        "curve": curve(scored),
        "length": {
            "words": _length_change(choices).to_json(),
            "score_by_length": _length_bias(scored).to_json(),
        },
        "diversity": [diversity(chosen, random, length).to_json() for length in (1, 2, 3)],
        "openers_shared": {"chosen": shared(chosen, opener).value, "random": shared(random, opener).value},
    }


def _scores(group: Group, of: Callable[[Candidate], float | None] = lambda candidate: candidate.score) -> list[float]:
    return [score for candidate in group.scored if (score := of(candidate)) is not None]


def _best_score(group: Group) -> float:
    return max(_scores(group))


def _longest_score(group: Group) -> float:
    longest = max(group.scored, key=lambda candidate: (len(candidate.text), -candidate.place))
    assert longest.score is not None  # it is one of those that are scored
    return longest.score


def _score_change(groups: Sequence[Group], chosen: Callable[[Group], float]) -> Change:
    """Return the change from a random answer's score (its mean over all of a prompt's) to that of the chosen, over prompts."""
    random = Tallies.of([(float(np.mean(_scores(group))), 1) for group in groups])
    return change(random, Tallies.of([(chosen(group), 1) for group in groups]))


def _length_change(choices: Sequence[Choice]) -> Change:
    """Return the change in words from a random answer (the mean of its prompt's) to the chosen."""
    random = [(float(np.mean([len(words_of(one.text)) for one in choice.group.scored])), 1.0) for choice in choices]
    best = [(float(np.mean([len(words_of(one.text)) for one in choice.best])), 1.0) for choice in choices]
    return change(Tallies.of(random), Tallies.of(best))


def _length_bias(groups: Sequence[Group]) -> Change:
    """Return the correlation of score and length among the answers to one prompt, as a change from none, over prompts."""
    found = [
        rank_correlation(_scores(group), [float(len(words_of(one.text))) for one in group.scored]) for group in groups
    ]
    known = [(value, 1.0) for value in found if value is not None]
    return change(Tallies.of([(0.0, 1.0)] * len(known)), Tallies.of(known))


def curve(groups: Sequence[Group]) -> dict[str, Json]:
    """Return what the best of 1, 2, ... answers scores by the scorer and by the held-out one, with intervals over prompts.

    It is computed from the prompts that have as many scored answers as the one with the most, so that every point has the same prompts.
    """
    most = max((len(group.scored) for group in groups), default=0)
    whole = [group for group in groups if len(group.scored) == most]
    held = [group for group in whole if len(_scores(group, lambda one: one.held_out)) == most]
    points = []
    golds = {n: Tallies.of([(_held_out_best(group, n), 1) for group in held]) for n in range(1, most + 1)}
    for n in range(1, most + 1):
        own = Tallies.of([(expected_best(_scores(group), _scores(group), n), 1) for group in whole])
        one = Tallies.of([(expected_best(_scores(group), _scores(group), 1), 1) for group in whole])
        points.append(
            {
                "n": n,
                "score": change(one, own).to_json(),
                "held_out": change(golds[1], golds[n]).to_json() if held else None,
                "kl_bound_nats": kl_bound(n),
            }
        )
    return {
        "prompts": len(whole),
        "points": points,
        "kl_estimate_nats": _mean_kl(whole, most),
        "over_optimisation": over_optimisation(golds) if held else None,
    }


def _held_out_best(group: Group, draws: int) -> float:
    return expected_best(_scores(group), _scores(group, lambda one: one.held_out), draws)


def _mean_kl(groups: Sequence[Group], most: int) -> float | None:
    """Return the mean estimate for the best of all; None where the model's own likelihoods are not known."""
    found = []
    for group in groups:
        best = max(group.scored, key=lambda one: one.score if one.score is not None else -math.inf)
        if best.log_probability is None:
            return None
        found.append(kl_estimate(best.log_probability, most))
    return float(np.mean(found)) if found else None


def over_optimisation(golds: dict[int, Tallies]) -> dict[str, Json]:
    """Fit the held-out score as it rises and falls with the number of draws, and recommend a number.

    The gain over one draw is d(a - bd), with d the root of the KL bound. Recommended is the smallest number of draws that the held-out
    scorer cannot tell from the best of those measured.

    Source: Gao, Schulman and Hilton 2023 (arXiv 2210.10760), equation 1.
    """
    values = {n: tally.value for n, tally in golds.items()}
    known = {n: value for n, value in values.items() if value is not None}
    best = max(known, key=lambda n: (known[n], -n))
    recommended = next(n for n in sorted(known) if not _is_worse(golds[n], golds[best]))
    rise = fall = None
    if len(known) > 2:
        d = np.sqrt([kl_bound(n) for n in sorted(known) if n > 1])
        gain = np.array([known[n] - known[1] for n in sorted(known) if n > 1])
        (rise, fall), *_ = np.linalg.lstsq(np.stack([d, -(d**2)], axis=1), gain, rcond=None)
    peak = float(rise / (2 * fall)) if rise is not None and fall is not None and fall > 0 else None
    return {"a": _plain(rise), "b": _plain(fall), "peak_root_nats": peak, "recommended_n": recommended}


def _is_worse(one: Tallies, best: Tallies) -> bool:
    low = change(one, best).low
    return low is not None and low > 0
