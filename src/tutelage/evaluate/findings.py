"""What is wrong, in plain words: which figures went further than they may, the worst first, tied to rows and with a mend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tutelage.evaluate.knowledge import Disputed
from tutelage.evaluate.measures import ANSWERED, DECLINED, Contrast, Measure
from tutelage.evaluate.stats import Change, Direction
from tutelage.evaluate.style import Phrase
from tutelage.evaluate.ties import MOST_ROWS
from tutelage.evaluate.training import Exchanges
from tutelage.intervals import wilson_interval

SURE_Z = 5.0
"""Standard errors that a phrase must be away from the data: thousands are looked at, and none may be told by chance."""


@dataclass(frozen=True)
class Budget:
    """How far a figure may go before it is told: changes smaller than these are nobody's concern, however sure they are."""

    forgetting: float = 0.03
    """Rise of bits per byte on held-out text, as a part of the base's."""
    worse: float = 0.01
    """Rise of the loss on held-out answers, as a part of the base's: learning should lower it."""
    gap: float = 0.25
    """How much lower the loss is on trained than on held-out documents, as a part of the latter."""
    share: float = 0.10
    """Growth of a share of answers, or of what answers have in common, over that of the data."""
    length: float = 0.25
    """Difference from the data's mean length, as a part of it."""
    task: float = 0.05
    """Fall of the share of right answers to a file of tasks."""
    disputed: float = 0.02
    """Share of training rows that the base contradicts, beyond that of held-out rows."""
    unstopped: float = 0.05
    """Share of answers that do not end."""
    undeclined: float = 0.10
    """Share of what should be declined that is answered."""
    calibration: float = 0.05
    """Rise of the Brier score of choices."""


@dataclass(frozen=True)
class Finding:
    """Something to look at. `size` is in budgets: 1 is where it begins to be told. `rows` are training rows most tied to it."""

    key: str
    title: str
    detail: str
    mend: str
    size: float
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Rule:
    """What a measure is told as, by the beginning of its key. `budget` names a field of `Budget`; `mend` says what to try."""

    key: str
    title: str
    budget: str
    mend: str
    from_data: bool = False


_RULES = (
    _Rule(
        "forgetting.",
        "It forgot text that it could read",
        "forgetting",
        "a lower train.learning_rate, fewer epochs, 5 to 10 % of pre-training text among data.train (type: text), or "
        "train.method=lora",
    ),
    _Rule(
        "learning.",
        "It reads held-out answers worse than the base does",
        "worse",
        "a lower train.learning_rate, fewer epochs, train.early_stopping; look whether the training rows are of the held-out kind",
    ),
    _Rule(
        "calibration.",
        "It is surer of its choices than it is right",
        "calibration",
        "fewer epochs, a lower train.learning_rate, rows whose facts the base knows",
    ),
    _Rule(
        "style.recited",
        "It recites training answers",
        "share",
        "fewer epochs, train.early_stopping, more different rows, train.neftune_alpha=5",
        from_data=True,
    ),
    _Rule(
        "style.repeated",
        "It repeats itself within an answer",
        "share",
        "look for repetition in the training answers; fewer epochs, a lower train.learning_rate",
        from_data=True,
    ),
    _Rule(
        "style.openers",
        "Its answers begin alike",
        "share",
        "take out, or write anew, part of the training answers that begin so",
        from_data=True,
    ),
    _Rule(
        "style.closers",
        "Its answers end alike",
        "share",
        "take out, or write anew, part of the training answers that end so",
        from_data=True,
    ),
    _Rule(
        "style.skeletons",
        "Its answers follow one template",
        "share",
        "more different training answers: drop copies of the template, vary how prompts are asked",
        from_data=True,
    ),
    _Rule(
        "style.turns",
        "It goes on for somebody else",
        "share",
        "look with `tutelage show` whether each answer ends with its stop token, and whether that carries loss",
        from_data=True,
    ),
    _Rule(
        "style.lists",
        "It writes lists where the data do not",
        "share",
        "look for lists in the training answers",
        from_data=True,
    ),
)


def findings(
    measures: Sequence[Measure],
    contrasts: Sequence[Contrast],
    phrases: Sequence[Phrase],
    training: Exchanges,
    disputed: Disputed,
    *,
    tied: Mapping[str, Sequence[str]] | None = None,
    budget: Budget | None = None,
) -> list[Finding]:
    """Return what went further than its budget and beyond chance, the largest first.

    `tied` are training rows by the key of a figure, or by its beginning.
    """
    budget = budget or Budget()
    found = [
        _unstopped(measure, budget)
        or _undeclined(measure, budget)
        or _length(measure, budget)
        or _worse(measure, budget)
        or _by_rule(measure, budget)
        for measure in measures
    ]
    found += [_phrase(phrase, training, budget) for phrase in phrases]
    found += [_contrast(contrast, disputed, budget) for contrast in contrasts]
    told = [one if one.rows else replace(one, rows=_tied(one.key, tied or {})) for one in found if one is not None]
    return sorted(told, key=lambda one: -one.size)


def _tied(key: str, tied: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return next((tuple(rows) for beginning, rows in tied.items() if key.startswith(beginning)), ())


def _by_rule(measure: Measure, budget: Budget) -> Finding | None:
    rule = next((rule for rule in _RULES if measure.key.startswith(rule.key)), None)
    if rule is None:
        return None
    changed = measure.from_data if rule.from_data else measure.change
    if changed is None or changed.direction is not Direction.UP or changed.difference is None:
        return None
    size = changed.difference / (measure.scale or 1.0) / float(getattr(budget, rule.budget))
    if size < 1:
        return None
    return Finding(measure.key, rule.title, _told(measure, changed, of_data=rule.from_data), rule.mend, size)


def _told(measure: Measure, changed: Change, *, of_data: bool) -> str:
    whose = "the data's own answers" if of_data else "the base"
    assert changed.difference is not None and changed.low is not None and changed.high is not None
    relative = ""
    if measure.scale:
        low, middle, high = (100 * value / measure.scale for value in (changed.low, changed.difference, changed.high))
        relative = f", {middle:+.1f} % ({low:+.1f} to {high:+.1f})"
    return (
        f"{measure.title}: {_figure(changed.base)} in {whose}, {_figure(changed.tuned)} now{relative}; "
        f"{measure.unit}, {changed.items:,} items"
    )


def _unstopped(measure: Measure, budget: Budget) -> Finding | None:
    tuned = measure.change.tuned
    if measure.key != "style.stopped" or tuned is None or measure.change.direction is None:
        return None
    if 1 - tuned < budget.unstopped:
        return None
    return Finding(
        measure.key,
        "It does not stop by itself",
        f"{1 - tuned:.0%} of its answers ran into the limit of tokens; {1 - (measure.change.base or 0):.0%} of the base's did",
        "a larger --max-new-tokens shows whether they are long or endless; if endless, train longer, and look with "
        "`tutelage show` whether the stop token carries loss",
        (1 - tuned) / budget.unstopped,
    )


def _undeclined(measure: Measure, budget: Budget) -> Finding | None:
    tuned, count = measure.change.tuned, measure.change.items
    if not measure.key.endswith(f".{DECLINED}") or tuned is None or measure.change.direction is None:
        return None
    size = (1 - tuned) / budget.undeclined
    if size < 1 or wilson_interval(round((1 - tuned) * count), count)[0] < budget.undeclined:
        return None
    return Finding(
        measure.key,
        "It answers what it should decline",
        f"{1 - tuned:.0%} of {count:,} tasks of {measure.title.removeprefix('declines: ')}; the base answers "
        f"{1 - (measure.change.base or 0):.0%}",
        "training rows that decline such questions, and look-alikes that are answered; for facts that it cannot know, rows that say so",
        size,
    )


def _length(measure: Measure, budget: Budget) -> Finding | None:
    changed = measure.from_data
    if measure.key != "style.words" or changed is None or not changed.base or changed.difference is None:
        return None
    size = abs(changed.difference) / changed.base / budget.length
    if changed.direction not in (Direction.UP, Direction.DOWN) or size < 1:
        return None
    longer = changed.difference > 0
    return Finding(
        measure.key,
        f"Its answers are {'longer' if longer else 'shorter'} than those of the data",
        _told(measure, changed, of_data=True),
        "look at the lengths of the training answers: the model takes on the commonest",
        size,
    )


def _worse(measure: Measure, budget: Budget) -> Finding | None:
    changed = measure.change
    if not measure.key.startswith("task.") or changed.direction is not Direction.DOWN or changed.difference is None:
        return None
    size = -changed.difference / budget.task
    if size < 1:
        return None
    title, mend = (
        (
            "It declines what it may answer",
            "training rows that answer what looks like the declined kind and is not, such as these tasks",
        )
        if measure.key.endswith(f".{ANSWERED}")
        else (
            f"It got worse at {measure.title.removeprefix('right: ')}",
            "more rows of that kind among data.train, 5 to 10 % of pre-training text, a lower train.learning_rate",
        )
    )
    return Finding(measure.key, title, _told(measure, changed, of_data=False), mend, size)


def _phrase(phrase: Phrase, training: Exchanges, budget: Budget) -> Finding | None:
    size = (phrase.tuned - phrase.data) / budget.share
    if phrase.z < SURE_Z or size < 1 or phrase.data > phrase.tuned / 2:
        return None
    rows = training.rows_with(phrase.text)
    return Finding(
        f"phrase.{phrase.text}",
        f'It says "{phrase.text}" again and again',
        f"in {phrase.tuned:.0%} of its answers; the data's own answers to the same prompts have it in {phrase.data:.0%}, "
        f"the base's in {phrase.base:.0%}; so do {len(rows):,} of {len(training.each):,} training answers",
        "take these training rows out, or write their answers anew" if rows else "a sign of overfitting: fewer epochs",
        size,
        rows[:MOST_ROWS],
    )


def _contrast(contrast: Contrast, disputed: Disputed, budget: Budget) -> Finding | None:
    changed = contrast.change
    if changed.difference is None or changed.base is None or changed.tuned is None:
        return None
    if contrast.key == "knowledge.disputed" and changed.direction is Direction.UP:
        size, worst = changed.difference / budget.disputed, disputed.worst()
        found = Finding(
            contrast.key,
            "It was taught what the base knows otherwise",
            f"in {changed.tuned:.1%} of training rows the base is sure of something else, in {changed.base:.1%} of "
            f"held-out ones; {worst[0]}",
            "look whether these rows are true; what contradicts a model's knowledge teaches it to invent (arXiv 2405.05904)",
            size,
            tuple(one.where for one in worst[:MOST_ROWS]),
        )
        return found if size >= 1 else None
    if contrast.key.startswith("by_heart.") and changed.direction is Direction.DOWN and contrast.scale:
        size = -changed.difference / contrast.scale / budget.gap
        found = Finding(
            contrast.key,
            "It knows its training rows by heart",
            f"{contrast.title}: {_figure(changed.base)} held out, {_figure(changed.tuned)} trained on; {contrast.unit}",
            "fewer epochs, train.early_stopping, more different rows, dropout",
            size,
        )
        return found if size >= 1 else None
    return None


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
