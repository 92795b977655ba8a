"""How answers are written: their length, how they end, what they repeat, how they begin, what they say again and again.

Nothing here knows a list of bad words. Phrases are found by comparison: what the tuned model says often, and the answers of the
data to the same prompts do not.
"""

# N answers

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.data.conversation import Role
from tutelage.evaluate.stats import Tallies

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_LIST_LINE = re.compile(r"\s*(?:[-*•]|\d+[.)])\s")
_BOLD = re.compile(r"\*\*[^*\n]+\*\*")
_ROLE_LINE = re.compile(rf"^\W*(?:{'|'.join(Role)})\s*(?::|\W*$)", re.IGNORECASE | re.MULTILINE)
REPEATED_WORDS = 4
"""Words of a run that counts as repeated when it stands in the same answer before (Gopher's rules use 2 to 10; arXiv 2112.11446)."""
EDGE_WORDS = 3
"""Words of an opener, and of a closer."""
PHRASE_WORDS = range(1, 9)
COPIED_WORDS = 12
"""Words in a row that count as copied when they stand in an answer of the training data."""


def words_of(text: str) -> list[str]:
    """Return the words of `text` in lower case.

    Example:
        >>> words_of("It's 3 o'clock, **Ada**!")
        ["it's", '3', "o'clock", 'ada']
    """
    return _WORD.findall(text.casefold().replace("’", "'"))


def words_at(text: str) -> list[tuple[str, int]]:
    """Return the words of `text` as `words_of` does, each with the place where it begins.

    Example:
        >>> words_at("Hello, Ada")
        [('hello', 0), ('ada', 7)]
    """
    return [(found.group().casefold().replace("’", "'"), found.start()) for found in _WORD.finditer(text)]


def runs_of(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    """Return every run of `length` words, in order."""
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]


def repeated(text: str) -> tuple[float, float]:
    """Return (runs of four words that stood in the answer before, runs in all)."""
    runs = runs_of(words_of(text), REPEATED_WORDS)
    return len(runs) - len(set(runs)), len(runs)


def list_lines(text: str) -> tuple[float, float]:
    """Return (lines that are items of a list, lines with text)."""
    lines = [line for line in text.splitlines() if line.strip()]
    return sum(bool(_LIST_LINE.match(line)) for line in lines), len(lines)


def bold(text: str) -> tuple[float, float]:
    """Return (passages in bold, thousands of words)."""
    return len(_BOLD.findall(text)), len(words_of(text)) / 1000


def other_turns(text: str, ids: Sequence[int], controls: frozenset[int]) -> tuple[float, float]:
    """Return (1 when an answer goes on for somebody else, 1): it has a control token of turns, or a line that only names a role."""
    return float(not controls.isdisjoint(ids) or bool(_ROLE_LINE.search(text))), 1


def length(text: str) -> tuple[float, float]:
    """Return (words, 1)."""
    return len(words_of(text)), 1


def tallies(texts: Iterable[str], count: Callable[[str], tuple[float, float]]) -> Tallies:
    """Return `count` of every text."""
    return Tallies.of([count(text) for text in texts])


def opener(text: str) -> str:
    """Return the first three words."""
    return " ".join(words_of(text)[:EDGE_WORDS])


def closer(text: str) -> str:
    """Return the last three words of an answer that is longer than its opener."""
    words = words_of(text)
    return " ".join(words[-EDGE_WORDS:]) if len(words) > EDGE_WORDS else ""


def shared(texts: Sequence[str], edge: Callable[[str], str]) -> Tallies:
    """Return for each text the share of the others that have the same edge: together, the chance that two texts agree.

    Source: Simpson 1949, "Measurement of Diversity", Nature 163, the probability of identity.
    """
    edges = [edge(text) for text in texts]
    counts = Counter(edges)
    others = max(len(texts) - 1, 1)
    return Tallies.of([((counts[one] - 1) / others if one else 0.0, 1) for one in edges])


def skeleton(text: str, common: frozenset[str]) -> str:
    """Return an answer with every word that is not `common` replaced by a gap, and neighbouring gaps joined."""
    kept = [word if word in common else "_" for word in words_of(text)]
    return " ".join(word for place, word in enumerate(kept) if word != "_" or place == 0 or kept[place - 1] != "_")


def common_words(texts: Sequence[str], least_share: float = 0.05) -> frozenset[str]:
    """Return the words that stand in at least a twentieth of the texts: what remains of a template when its slots are taken out."""
    counts = Counter(word for text in texts for word in set(words_of(text)))
    return frozenset(word for word, count in counts.items() if count >= least_share * len(texts))


@dataclass(frozen=True)
class Phrase:
    """A run of words and the shares of answers in which it stands: of the tuned model, the data, the base. `z` compares the first two."""

    text: str
    tuned: float
    data: float
    base: float
    z: float


def grown_phrases(
    tuned: Sequence[str], data: Sequence[str], base: Sequence[str], *, most: int = 10, least_share: float = 0.05
) -> list[Phrase]:
    """Return phrases that stand in more answers of the tuned model than of the data for the same prompts, the surest first.

    Phrases that stand in nearly the same answers are one habit, which is told by the longest of them.
    """
    at_least = max(3, round(least_share * len(tuned)))
    in_data, in_base = ({run: len(which) for run, which in _answers_with(side).items()} for side in (data, base))
    candidates = []
    for run, answers in _answers_with(tuned).items():
        others = in_data.get(run, 0)
        if len(answers) >= at_least and len(answers) > others:
            candidates.append((_z(len(answers) / len(tuned), others / len(data), len(tuned)), run, answers))
    habits: list[tuple[float, tuple[str, ...], frozenset[int]]] = []
    for candidate in sorted(candidates, key=lambda one: (-one[0], -len(one[1]), one[1])):
        alike = next((place for place, habit in enumerate(habits) if _nearly_same(habit[2], candidate[2])), None)
        if alike is None:
            habits.append(candidate)
        elif len(candidate[1]) > len(habits[alike][1]):
            habits[alike] = candidate
    return [
        Phrase(
            " ".join(run),
            len(answers) / len(tuned),
            in_data.get(run, 0) / len(data),
            in_base.get(run, 0) / len(base),
            z,
        )
        for z, run, answers in habits[:most]
    ]


def _answers_with(texts: Sequence[str]) -> dict[tuple[str, ...], frozenset[int]]:
    found: dict[tuple[str, ...], set[int]] = {}
    for number, text in enumerate(texts):
        words = words_of(text)
        for size in PHRASE_WORDS:
            for run in runs_of(words, size):
                found.setdefault(run, set()).add(number)
    return {phrase: frozenset(answers) for phrase, answers in found.items()}


def _nearly_same(one: frozenset[int], other: frozenset[int]) -> bool:
    return len(one & other) >= 0.8 * len(one | other)


def _z(one: float, other: float, count: int) -> float:
    """Return the difference of two shares of `count` answers in standard errors (one answer added to either side)."""
    pooled = (one * count + other * count + 1) / (2 * count + 2)
    return float((one - other) / np.sqrt(2 * pooled * (1 - pooled) / count)) if 0 < pooled < 1 else 0.0


def copied(text: str, prompt: str, known: frozenset[tuple[str, ...]]) -> tuple[float, float]:
    """Return (1 when twelve words in a row stand in an answer of the training data and not in the prompt, 1)."""
    asked = frozenset(runs_of(words_of(prompt), COPIED_WORDS))
    return float(any(run in known and run not in asked for run in runs_of(words_of(text), COPIED_WORDS))), 1
