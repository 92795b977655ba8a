"""Which of several answers to a prompt are kept, and what a choice without any judgement would have kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tutelage.data.conversation import normalised_words
from tutelage.data.order import hash64
from tutelage.synthesize.prompts import Prompt, number_of

RIGHT = 1.0
"""The score of a verified answer that is right."""


@dataclass(frozen=True)
class Candidate:
    """One answer. `place` is its number among those of its prompt; `request` the key of what asked for it, if it was asked here.

    `held_out` is the score of a second scorer that chooses nothing. Scores are None where they could not be told.
    """

    text: str
    place: int
    score: float | None
    held_out: float | None = None
    request: str | None = None
    log_probability: float | None = None


@dataclass(frozen=True)
class Group:
    """A prompt with its answers that can be used, in the order of their places."""

    prompt: Prompt
    candidates: tuple[Candidate, ...]

    @property
    def scored(self) -> list[Candidate]:
        """Those that have a score."""
        return [candidate for candidate in self.candidates if candidate.score is not None]


@dataclass(frozen=True)
class Rule:
    """How many answers are kept, from which score on, and of which prompts.

    `window` is the share of right answers that a prompt must have, both ends included: it leaves out prompts that are solved always
    or hardly ever. With `sharpness` an answer is drawn with probability proportional to exp(sharpness x score), in place of the best.
    """

    keep: int = 1
    at_least: float | None = None
    window: tuple[float, float] = (0.0, 1.0)
    sharpness: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Choice:
    """What is kept of a prompt, and the controls: as many answers, taken without looking at the scores. `worst` makes the pair."""

    group: Group
    best: tuple[Candidate, ...]
    worst: Candidate | None
    random: tuple[Candidate, ...]
    first: tuple[Candidate, ...]
    longest: tuple[Candidate, ...]


def distinct(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the candidates, in order, without those whose words an earlier one has."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault(normalised_words(candidate.text) or candidate.text, candidate)
    return tuple(first.values())


def choose(group: Group, rule: Rule) -> Choice | str:
    """Return the choice among the answers to a prompt, or why there is none."""
    scored = group.scored
    if not group.candidates:
        return "no answer that can be used"
    if not scored:
        return "no answer could be scored"
    share = sum(_score(candidate) >= RIGHT for candidate in scored) / len(scored)
    if not rule.window[0] <= share <= rule.window[1]:
        return "solved too seldom" if share < rule.window[0] else "solved too often"
    chance = _chances(group, rule.seed)
    good = [candidate for candidate in scored if rule.at_least is None or _score(candidate) >= rule.at_least]
    if not good:
        return "no answer is good enough"
    ranked = sorted(good, key=lambda candidate: (-_worth(candidate, rule.sharpness, chance), chance(candidate)))
    best = distinct(ranked)[: rule.keep]
    lowest = min(scored, key=lambda candidate: (_score(candidate), chance(candidate)))
    size = len(best)
    return Choice(
        group=group,
        best=best,
        worst=lowest if _score(lowest) < _score(best[0]) else None,
        random=tuple(sorted(scored, key=lambda candidate: hash64(*_key(group, rule.seed), candidate.place, 1))[:size]),
        first=tuple(sorted(scored, key=lambda candidate: candidate.place)[:size]),
        longest=tuple(sorted(scored, key=lambda candidate: (-len(candidate.text), candidate.place))[:size]),
    )


def _score(candidate: Candidate) -> float:
    assert candidate.score is not None  # only those with a score get here
    return candidate.score


def _key(group: Group, seed: int) -> tuple[int, int]:
    return seed, number_of(group.prompt)


def _chances(group: Group, seed: int) -> Callable[[Candidate], float]:
    """Return a number in (0, 1) for each candidate: what breaks ties, so that neither place nor length does."""
    key = _key(group, seed)
    return lambda candidate: (hash64(*key, candidate.place, 0) + 0.5) * 2.0**-64


def _worth(candidate: Candidate, sharpness: float | None, chance: Callable[[Candidate], float]) -> float:
    """Return what candidates are ranked by: the score, or the score with Gumbel noise, whose order is a draw without replacement.

    Source: Kool, van Hoof and Welling 2019, "Stochastic Beams and Where to Find Them" (arXiv 1903.06059), section 2.3.
    """
    if sharpness is None:
        return _score(candidate)
    return sharpness * _score(candidate) - math.log(-math.log(chance(candidate)))
