"""Training rows that are most tied to a figure: where to look first when it went too far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tutelage.chat.rendered import Rendered
from tutelage.evaluate import style
from tutelage.evaluate.measures import ANSWERED, DECLINED, LOOSE, STRICT, Read
from tutelage.evaluate.nearness import Nearness
from tutelage.evaluate.observe import Answer, Task
from tutelage.evaluate.tasks import Check, Said, ScorableTask
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


def to_tasks(
    near: Nearness,
    scorable: Mapping[str, Sequence[ScorableTask]],
    base: Mapping[str, Sequence[Said]],
    tuned: Mapping[str, Sequence[Said]],
) -> dict[str, Rows]:
    """Return rows by the keys of figures of tasks: those near to the tasks that the tuned model fails and, if there are any, the base does not."""
    rows: dict[str, Rows] = {}
    for name, tasks in scorable.items():
        for keys, kind in _TASK_KEYS.items():
            own = [
                (task, before, after)
                for task, before, after in zip(tasks, base[name], tuned[name], strict=True)
                if kind is None or task.check is kind
            ]
            failed = [(task, before, after) for task, before, after in own if _fails(task, after)]
            lost = [(task, before, after) for task, before, after in failed if not _fails(task, before)]
            said = [(task.messages[-1].content, after.text) for task, _, after in lost or failed]
            rows |= {key.format(name): near.rows(said, MOST_ROWS) for key in keys}
    return rows


_TASK_KEYS: dict[tuple[str, ...], Check | None] = {
    (f"task.{{}}.{DECLINED}",): Check.DECLINES,
    (f"task.{{}}.{ANSWERED}",): Check.ANSWERS,
    (f"task.{{}}.{STRICT}", f"task.{{}}.{LOOSE}", "calibration.{}"): None,
}


def _fails(task: ScorableTask, said: Said) -> bool:
    scored = task.score(said.text)
    return scored.strict < scored.points


def to_endings(
    near: Nearness, tasks: Sequence[Task], tuned: Sequence[Answer], controls: frozenset[int]
) -> dict[str, Rows]:
    """Return rows by the keys of figures of how answers end: near to those that do not, and to those that go on for another role."""
    said = [(task.messages[-1].content, answer.text) for task, answer in zip(tasks, tuned, strict=True)]
    endless = [pair for pair, answer in zip(said, tuned, strict=True) if not answer.stopped]
    turns = [pair for pair, one in zip(said, tuned, strict=True) if style.other_turns(one.text, one.ids, controls)[0]]
    return {"style.stopped": near.rows(endless, MOST_ROWS), "style.turns": near.rows(turns, MOST_ROWS)}


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
