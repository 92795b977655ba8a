"""How different answers are from one another: pairs of words that are new, overlap with the others, how many answers there are in effect."""

# N answers

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tutelage.evaluate.stats import Tallies
from tutelage.evaluate.style import runs_of, words_of

DISTINCT_WORDS = 2
BLEU_ORDERS = range(1, 5)
_NO_MATCH = 0.1
"""Matches that an order without any counts as. Source: Chen and Cherry 2014, "Smoothing Techniques for Sentence-Level BLEU", method 1."""


def distinct(texts: Sequence[str], length: int = DISTINCT_WORDS) -> Tallies:
    """Return the different runs of `length` words, and all of them; a run that k answers' words make has a k-th part in each place.

    Source: Li et al. 2016, arXiv 1510.03055, section 5.2 (distinct-2).
    """
    runs = [runs_of(words_of(text), length) for text in texts]
    counts = Counter(run for of in runs for run in of)
    return Tallies.of([(sum(1 / counts[run] for run in of), len(of)) for of in runs])


def self_bleu(texts: Sequence[str]) -> Tallies:
    """Return BLEU of each answer that has words, the other answers being its references: 1 where another one says the same.

    Source: Zhu et al. 2018, arXiv 1802.01886, section 4.2, of the orders 1 to 4 that an answer is long enough for.
    """
    words = [words_of(text) for text in texts]
    most = _TwoLargest(words)
    lengths = Counter(map(len, words))
    scores = []
    for own in words:
        if not own or len(texts) < 2:
            scores.append((0.0, 0.0))
            continue
        others = lengths - Counter([len(own)])
        closest = min(others, key=lambda length: (abs(length - len(own)), length))
        brevity = min(0.0, 1 - closest / len(own))
        logs = [
            math.log(most.matched(own, order) / (len(own) - order + 1)) for order in BLEU_ORDERS if order <= len(own)
        ]
        scores.append((math.exp(brevity + sum(logs) / len(logs)), 1.0))
    return Tallies.of(scores)


class _TwoLargest:
    """For each run of words how often it stands in the answer that has it most, and in the next one: so that an answer can be left out."""

    def __init__(self, words: Sequence[Sequence[str]]) -> None:
        self._found: dict[tuple[str, ...], tuple[int, int]] = {}
        for own in words:
            for order in BLEU_ORDERS:
                for run, count in Counter(runs_of(own, order)).items():
                    largest, next_one = self._found.get(run, (0, 0))
                    self._found[run] = (max(largest, count), max(next_one, min(largest, count)))

    def matched(self, own: Sequence[str], order: int) -> float:
        """Return how many runs of one of these answers another one has, counted as often as the one that has it most."""
        total = 0
        for run, count in Counter(runs_of(own, order)).items():
            largest, next_one = self._found[run]
            total += min(count, next_one if count == largest else largest)
        return total or _NO_MATCH


def vendi(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return the effective number of different answers: of all [0], and with each of them left out in turn [1:]. Shape: [1 + N].

    It is exp of the entropy of the eigenvalues of K / N, where K holds the cosines of the counts of words and pairs of words.

    Source: Friedman and Dieng 2023, arXiv 2210.02410, definition 3.1.
    """
    counts = [Counter([*runs_of(words, 1), *runs_of(words, 2)]) or Counter({(): 1}) for words in map(words_of, texts)]
    column = {run: number for number, run in enumerate(dict.fromkeys(run for of in counts for run in of))}
    table = np.zeros((len(texts), len(column)))
    for row, of in zip(table, counts, strict=True):
        row[[column[run] for run in of]] = list(of.values())
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    cosines_NN = table @ table.T
    left_out = (np.delete(np.delete(cosines_NN, place, 0), place, 1) for place in range(len(texts)))
    return np.array([_effective_number(cosines_NN), *map(_effective_number, left_out)])


def _effective_number(cosines: npt.NDArray[np.float64]) -> float:
    shares = np.linalg.eigvalsh(cosines / max(1, len(cosines)))
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))
