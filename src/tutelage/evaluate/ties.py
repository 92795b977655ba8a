"""Training rows that are most tied to a figure: where to look first when it went too far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tutelage.chat.rendered import Rendered
from tutelage.evaluate import style
from tutelage.evaluate.measures import Read
from tutelage.evaluate.training import Exchanges

Rows = tuple[str, ...]

MOST_ROWS = 5
FORGETTING = "forgetting."
"""Beginning of the keys of text that the model read; what was learned is tied to each of them."""


def to_losses(trained: Mapping[str, Read], documents: Mapping[str, Sequence[Rendered]]) -> dict[str, Rows]:
    """Return rows by the keys, or their beginnings, of figures that are losses.

    Forgetting is tied to the conversations that became more likely by most nats: what the weights moved for. Knowing by heart is tied to
    the rows of the source that cost least a token.
    """
    rows: dict[str, Rows] = {}
    learned: list[tuple[float, str]] = []
    for source, read in trained.items():
        where = [document.where for document in documents[source]]
        per_token = read.tuned.nats / read.tuned.tokens
        rows[f"by_heart.{source}"] = tuple(where[int(one)] for one in np.argsort(per_token, kind="stable")[:MOST_ROWS])
        if not read.is_text:
            learned += zip((read.base.nats - read.tuned.nats).tolist(), where, strict=True)
    rows[FORGETTING] = tuple(one for gain, one in sorted(learned, key=lambda pair: -pair[0])[:MOST_ROWS] if gain > 0)
    return rows


def to_answers(training: Exchanges, tuned: Sequence[str], data: Sequence[str]) -> dict[str, Rows]:
    """Return rows by the keys of figures of style: those whose answers do what the `tuned` ones do more than those of the `data`."""
    common = style.common_words(tuned)
    edges: dict[str, Callable[[str], str]] = {
        "style.openers": style.opener,
        "style.closers": style.closer,
        "style.skeletons": lambda text: style.skeleton(text, common),
    }
    rows = {key: _alike(training, edge, _grown(edge, tuned, data)) for key, edge in edges.items()}
    rows["style.repeated"] = _most(training, lambda text: _share(style.repeated(text)))
    rows["style.lists"] = _most(training, lambda text: _share(style.list_lines(text)))
    longer = sum(map(len, tuned)) > sum(map(len, data))
    rows["style.words"] = _most(training, lambda text: style.length(text)[0] if longer else 1 / (1 + len(text)))
    recited = frozenset(run for text in tuned for run in style.runs_of(style.words_of(text), style.COPIED_WORDS))
    rows["style.recited"] = _most(
        training,
        lambda text: float(not recited.isdisjoint(style.runs_of(style.words_of(text), style.COPIED_WORDS))),
    )
    return rows


def _grown(edge: Callable[[str], str], tuned: Sequence[str], data: Sequence[str]) -> str:
    """Return the edge that most more of the tuned answers have than of the data's own."""
    grown = Counter(map(edge, tuned))
    grown.subtract(Counter(map(edge, data)))
    return max(grown, key=lambda one: (grown[one], one), default="")


def _alike(training: Exchanges, edge: Callable[[str], str], sought: str) -> Rows:
    found = (one.where for one in training.each if sought and edge(one.answer) == sought)
    return tuple(where for where, _ in zip(found, range(MOST_ROWS), strict=False))


def _most(training: Exchanges, of: Callable[[str], float]) -> Rows:
    scored = sorted(((of(one.answer), one.where) for one in training.each), key=lambda pair: -pair[0])
    return tuple(where for score, where in scored[:MOST_ROWS] if score > 0)


def _share(counted: tuple[float, float]) -> float:
    part, whole = counted
    return part / whole if whole else 0.0
