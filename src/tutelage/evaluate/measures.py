"""From what both models did to figures: each a change with an interval, and the same figure of the data's own answers beside it."""

# D documents, N answers, L tokens of an answer

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from tutelage.evaluate import diversity, style
from tutelage.evaluate.harness import HarnessScore
from tutelage.evaluate.knowledge import Disputed
from tutelage.evaluate.observe import Answer, Likelihoods, Losses, Task
from tutelage.evaluate.stats import Change, Tallies, change, change_between, change_left_out
from tutelage.evaluate.tasks import Check, Said, ScorableTask

UNSHIFTED_RANK, MARGINAL_RANK = 0, 2
"""Ranks in the base of what the tuned model says: its own choice, and up to its third. Source: Lin et al. 2023, arXiv 2312.01552."""


class Group(StrEnum):
    """What a figure is about."""

    LEARNING = "learning"
    FORGETTING = "forgetting"
    STYLE = "style"


class Better(StrEnum):
    """Which way is better; style has none."""

    LOWER = "lower"
    HIGHER = "higher"
    NEITHER = "neither"


@dataclass(frozen=True)
class Measure:
    """One figure of base and tuned model, of one `source` or, where that is empty, of all.

    `from_data` is the change from the data's own answers to the tuned model's, for the same prompts; None where there are none.
    `scale` is what a change is a part of when it is called large or small; None where the figure is a share already.
    """

    key: str
    title: str
    unit: str
    group: Group
    better: Better
    change: Change
    from_data: Change | None = None
    scale: float | None = None
    source: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the figure with its interval."""
        return {
            "key": self.key,
            "title": self.title,
            "unit": self.unit,
            "source": self.source,
            "group": self.group,
            "better": self.better,
            **self.change.to_json(),
            "data": self.from_data.base if self.from_data else None,
            "from_data": self.from_data.to_json() if self.from_data else None,
        }


@dataclass(frozen=True, eq=False)
class Read:
    """Losses of base and tuned model on the same documents, all of one source; `base_again` those of the base in other batches.

    Shapes: `num_bytes` [D], of the supervised text.
    """

    source: str
    is_text: bool
    base: Losses
    tuned: Losses
    base_again: Losses
    num_bytes: npt.NDArray[np.float64]

    def per_token(self, losses: Losses) -> Tallies:
        """Return nats and tokens of each document."""
        return Tallies(losses.nats, losses.tokens)

    def bits_per_byte(self, losses: Losses) -> Tallies:
        """Return bits and bytes of each document."""
        return Tallies(losses.nats / np.log(2), self.num_bytes)


def _noise(one: Tallies, other: Tallies) -> float | None:
    return None if one.value is None or other.value is None else abs(one.value - other.value)


def forgetting(read: Read) -> Measure:
    """Return bits per byte of plain text that is not trained on."""
    base, tuned, again = (read.bits_per_byte(losses) for losses in (read.base, read.tuned, read.base_again))
    found = change(base, tuned, noise=_noise(base, again))
    title = f"loss on text: {read.source}"
    key = f"forgetting.{read.source}"
    return Measure(
        key, title, "bits per byte", Group.FORGETTING, Better.LOWER, found, scale=found.base, source=read.source
    )


def learning(read: Read) -> Measure:
    """Return the loss on answers of the data that are not trained on."""
    base, tuned, again = (read.per_token(losses) for losses in (read.base, read.tuned, read.base_again))
    found = change(base, tuned, noise=_noise(base, again))
    title = f"loss on answers: {read.source}"
    key = f"learning.{read.source}"
    return Measure(
        key, title, "nats per token", Group.LEARNING, Better.LOWER, found, scale=found.base, source=read.source
    )


@dataclass(frozen=True)
class Contrast:
    """A figure of trained rows against held-out rows of the same kind: `change` goes from the held-out ones to those trained on.

    `scale` is what a difference is a part of when it is called large or small; None where the figure is a share already.
    """

    key: str
    title: str
    unit: str
    change: Change
    scale: float | None = None

    def to_json(self) -> dict[str, object]:
        """Return both figures and the interval of their difference."""
        return {
            "key": self.key,
            "title": self.title,
            "unit": self.unit,
            "held_out": self.change.base,
            "trained": self.change.tuned,
            "difference": self.change.difference,
            "low": self.change.low,
            "high": self.change.high,
            "direction": self.change.direction,
        }


def by_heart(trained: Read, held_out: Read) -> Contrast:
    """Return the tuned model's loss on trained and on held-out documents of one source, which differ in nothing else."""
    found = change_between(held_out.per_token(held_out.tuned), trained.per_token(trained.tuned))
    title = f"loss of the tuned model: {trained.source}"
    return Contrast(f"by_heart.{trained.source}", title, "nats per token", found, scale=found.base)


def disputed(found: Disputed) -> Contrast:
    """Return the share of rows in which the base is sure of something else."""
    sides = (Tallies.of([(one is not None, 1) for one in side]) for side in (found.held_out, found.trained))
    return Contrast("knowledge.disputed", "rows that the base contradicts", "share", change_between(*sides))


def of_answers(
    tasks: Sequence[Task],
    base: Sequence[Answer],
    tuned: Sequence[Answer],
    known: frozenset[tuple[str, ...]],
    controls: frozenset[int],
) -> list[Measure]:
    """Return how the answers of both are written.

    `known` are the runs of words in answers of the training data, `controls` the tokens that begin and end turns.
    """
    texts = [answer.text for answer in base], [answer.text for answer in tuned], [task.reference for task in tasks]
    measures = []

    def add(key: str, title: str, unit: str, sides: Sequence[Tallies], better: Better, group: Group) -> None:
        of_base, of_tuned, *of_data = sides
        from_data = change(of_data[0], of_tuned) if of_data else None
        measures.append(Measure(key, title, unit, group, better, change(of_base, of_tuned), from_data))

    others = [Tallies.of([style.other_turns(one.text, one.ids, controls) for one in side]) for side in (base, tuned)]
    others.append(Tallies.of([style.other_turns(text, (), controls) for text in texts[2]]))
    add("style.turns", "answers that go on for another role", "share", others, Better.LOWER, Group.STYLE)
    stops = [Tallies.of([(answer.stopped, 1) for answer in side]) for side in (base, tuned)]
    add("style.stopped", "answers that end", "share", stops, Better.HIGHER, Group.LEARNING)
    counts = (
        ("style.words", "length of an answer", "words", style.length, Better.NEITHER),
        ("style.repeated", "four words said before", "share", style.repeated, Better.LOWER),
        ("style.lists", "lines of lists", "share", style.list_lines, Better.NEITHER),
        ("style.bold", "passages in bold", "per 1,000 words", style.bold, Better.NEITHER),
    )
    for key, title, unit, count, better in counts:
        add(key, title, unit, [style.tallies(side, count) for side in texts], better, Group.STYLE)
    edges = (
        ("style.openers", "two answers begin alike", style.opener),
        ("style.closers", "two answers end alike", style.closer),
    )
    for key, title, edge in edges:
        add(key, title, "share", [style.shared(side, edge) for side in texts], Better.NEITHER, Group.STYLE)
    outlines = []
    for side in texts:
        common = style.common_words(side)
        outlines.append(style.shared(side, lambda text, common=common: style.skeleton(text, common)))  # type: ignore[misc]
    title = "two answers have one skeleton"
    add("style.skeletons", title, "share", outlines, Better.NEITHER, Group.STYLE)
    add(
        "style.distinct",
        "different pairs of words",
        "share",
        list(map(diversity.distinct, texts)),
        Better.NEITHER,
        Group.STYLE,
    )
    add(
        "style.self_bleu",
        "overlap with other answers",
        "self-BLEU",
        list(map(diversity.self_bleu, texts)),
        Better.NEITHER,
        Group.STYLE,
    )
    measures.append(_vendi(*texts))
    prompts = [task.messages[-1].content for task in tasks]
    copies = [
        Tallies.of([style.copied(text, prompt, known) for text, prompt in zip(side, prompts, strict=True)])
        for side in texts
    ]
    title = f"answers that recite {style.COPIED_WORDS} words"
    add("style.recited", title, "share", copies, Better.NEITHER, Group.STYLE)
    return measures


def _vendi(base: Sequence[str], tuned: Sequence[str], data: Sequence[str]) -> Measure:
    of_base, of_tuned, of_data = map(diversity.vendi, (base, tuned, data))
    return Measure(
        "style.vendi",
        "answers as different as",
        "answers (Vendi score)",
        Group.STYLE,
        Better.NEITHER,
        change_left_out(of_base, of_tuned),
        change_left_out(of_data, of_tuned),
    )


STRICT, LOOSE, DECLINED, ANSWERED = "strict", "loose", "declined", "answered"
"""Last parts of the keys of a file's tasks: what is right, what should be declined and is, what should not be and is answered."""


def of_tasks(name: str, tasks: Sequence[ScorableTask], base: Sequence[Said], tuned: Sequence[Said]) -> list[Measure]:
    """Return the share of points that both reach in a file of tasks: apart what should be declined, and what should not.

    Of constraints also loosely; of choices also the Brier score; of what is written also what is no matter of length.
    """
    found = []
    sides = [[task.score(one.text) for task, one in zip(tasks, said, strict=True)] for said in (base, tuned)]
    kinds = [_kind_of(task.check) for task in tasks]
    for kind, title in ((STRICT, "right"), (LOOSE, "right, loosely"), (DECLINED, "declines"), (ANSWERED, "answers")):
        chosen = np.array([kind in own for own in kinds])
        if not chosen.any():
            continue
        before, after = (
            Tallies.of([(one.loose if kind == LOOSE else one.strict, one.points) for one in side]).take(chosen)
            for side in sides
        )
        changed = change(before, after)
        found.append(
            Measure(f"task.{name}.{kind}", f"{title}: {name}", "share", Group.LEARNING, Better.HIGHER, changed)
        )
    level = at_equal_length(name, tasks, base, tuned)
    found += [level] if level else []
    if any(one.brier is not None for one in base):
        before, after = (
            Tallies.of([(one.brier or 0.0, one.brier is not None) for one in said]) for said in (base, tuned)
        )
        title = f"error of its probabilities: {name}"
        changed = change(before, after)
        found.append(Measure(f"calibration.{name}", title, "Brier score", Group.LEARNING, Better.LOWER, changed))
    return found


def at_equal_length(
    name: str, tasks: Sequence[ScorableTask], base: Sequence[Said], tuned: Sequence[Said]
) -> Measure | None:
    """Return the share of points that the tuned model would reach with answers as long as the base's; None where all are of one length.

    The gain on a task is regressed on how much longer, in words, the answer became; what is left at zero is no matter of length.

    Source: the idea is that of Dubois et al. 2024, arXiv 2404.04475, with a linear model of the paired difference.
    """
    free = [
        (task, said)
        for task, said in zip(tasks, zip(base, tuned, strict=True), strict=True)
        if STRICT in _kind_of(task.check) and task.check is not Check.CHOICE
    ]
    scored = [[task.score(one.text) for one in said] for task, said in free]
    scores = np.array([[one.strict / max(1, one.points) for one in both] for both in scored])
    words = np.array([[style.length(one.text)[0] for one in said] for _, said in free])
    if len(free) < 3 or np.ptp(longer := words[:, 1] - words[:, 0]) == 0:
        return None
    gain, all_items = scores[:, 1] - scores[:, 0], np.arange(len(free))
    left_out = [all_items, *(np.delete(all_items, item) for item in all_items)]
    before = np.array([scores[items, 0].mean() for items in left_out])
    level = np.array([_at_zero(longer[items], gain[items]) for items in left_out])
    changed = change_left_out(before, before + level)
    return Measure(f"length.{name}", f"right at equal length: {name}", "share", Group.LEARNING, Better.HIGHER, changed)


def _at_zero(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Return where the line of least squares through (x, y) [N] is at x = 0."""
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread else 0.0
    return float(y.mean() - slope * x.mean())


def _kind_of(check: Check) -> tuple[str, ...]:
    special = {Check.DECLINES: (DECLINED,), Check.ANSWERS: (ANSWERED,), Check.CONSTRAINTS: (STRICT, LOOSE)}
    return special.get(check, (STRICT,))


def of_harness(base: Mapping[str, HarnessScore], tuned: Mapping[str, HarnessScore]) -> list[Measure]:
    """Return the figures of lm-evaluation-harness that both models have."""
    return [_of_harness(name, base[name], tuned[name]) for name in base if name in tuned]


def _of_harness(name: str, base: HarnessScore, tuned: HarnessScore) -> Measure:
    is_share = base.is_higher_better and all(
        ((side.tallies.sums >= 0) & (side.tallies.sums <= side.tallies.counts)).all() for side in (base, tuned)
    )
    key, unit = (f"task.{name}", "share") if is_share else (f"harness.{name}", "mean")
    better = Better.HIGHER if base.is_higher_better else Better.LOWER
    return Measure(key, name, unit, Group.FORGETTING, better, change(base.tallies, tuned.tallies))


@dataclass(frozen=True)
class Shift:
    """How far what the tuned model says is from what the base would say after the same words.

    Shares of tokens: `unshifted` are the base's own choice, `marginal` among its first three, `shifted` beyond. `kl` is the mean divergence
    KL(tuned || base) in nats per token, of the tuned model's likeliest tokens each by itself and all others as one: at most the whole
    divergence. `by_position` holds that of the first tokens of an answer.
    """

    unshifted: float
    marginal: float
    shifted: float
    kl: float
    tokens: int
    by_position: tuple[float, ...]


def token_shift(base: Sequence[Likelihoods], tuned: Sequence[Likelihoods], *, positions: int = 32) -> Shift | None:
    """Return the shift on answers of the tuned model, read by both, the base asked for `others` of the tuned one; None without a token."""
    ranks = np.concatenate([one.rank for one in base]) if base else np.zeros(0)
    if not len(ranks):
        return None
    divergences = [_kl(t.log_others, b.log_others) for b, t in zip(base, tuned, strict=True)]
    unshifted, marginal = ranks <= UNSHIFTED_RANK, (ranks > UNSHIFTED_RANK) & (ranks <= MARGINAL_RANK)
    by_position = []
    for position in range(positions):
        at = [one[position] for one in divergences if len(one) > position]
        if len(at) >= max(2, len(divergences) // 10):  # a mean of few answers says nothing about the position
            by_position.append(float(np.mean(at)))
    return Shift(
        unshifted=float(unshifted.mean()),
        marginal=float(marginal.mean()),
        shifted=float(1 - unshifted.mean() - marginal.mean()),
        kl=float(np.concatenate(divergences).mean()),
        tokens=len(ranks),
        by_position=tuple(by_position),
    )


def _kl(log_p: npt.NDArray[np.float32], log_q: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return KL(p || q) [L] in nats, where both are given for the same K tokens [L, K] and what is left is one event."""
    of_p, of_q = _with_rest(log_p), _with_rest(log_q)
    return np.asarray((np.exp(of_p) * (of_p - of_q)).sum(axis=1))


def _with_rest(log_LK: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the logarithms [L, K + 1] with that of the remaining probability, at least 1e-9: fp32 tells no less from nothing."""
    found_LK = log_LK.astype(np.float64)
    rest_L = np.log(np.maximum(1 - np.exp(found_LK).sum(axis=1), 1e-9))
    return np.concatenate([found_LK, rest_L[:, None]], axis=1)
