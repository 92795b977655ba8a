"""What the report knows about a run: one frozen dataclass for each kind of run file. None means not measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def divide(total: float | None, weight: float | None) -> float | None:
    """Return a mean from its sums, or None when either is unknown or nothing was counted."""
    return total / weight if total is not None and weight else None


@dataclass(frozen=True)
class Step:
    """One optimiser step. `loss_sum` and `weight_sum` are sums over the supervised tokens of the whole step."""

    step: int
    epoch: float | None
    loss: float | None
    loss_sum: float | None
    weight_sum: float | None
    tokens: float | None
    supervised_tokens: float | None
    documents: float | None
    packs: float | None
    fill: float | None
    seconds: float | None
    learning_rate: float | None
    grad_norm: float | None
    replay_weight: float | None
    per_source: Mapping[str, tuple[float | None, float | None]]
    per_slice: Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class HeldOutSums:
    """Held-out sums of one source, or of one slice."""

    loss_sum: float | None
    weight_sum: float | None
    correct: float | None
    tokens: float | None

    @property
    def loss(self) -> float | None:
        """Mean loss in nats per supervised token."""
        return divide(self.loss_sum, self.weight_sum)

    @property
    def accuracy(self) -> float | None:
        """Share of supervised tokens that greedy decoding would get right."""
        return divide(self.correct, self.tokens)


@dataclass(frozen=True)
class Probed:
    """What the gate saw: nats per token of text, habits of answers as (share, the data's own share), right answers out of all."""

    text_loss: float | None = None
    habits: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    right_share: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """One pass over the held-out documents, after `step` optimiser steps."""

    step: int
    loss: float | None
    perplexity: float | None
    seconds: float | None
    per_source: Mapping[str, HeldOutSums]
    per_slice: Mapping[str, HeldOutSums]
    probed: Probed = field(default_factory=Probed)

    @property
    def accuracy(self) -> float | None:
        """Share of supervised tokens of all sources that greedy decoding would get right."""
        counts = [(s.correct, s.tokens) for s in self.per_source.values()]
        known = [(correct, tokens) for correct, tokens in counts if correct is not None and tokens is not None]
        if not known or len(known) < len(counts):
            return None
        return divide(sum(correct for correct, _ in known), sum(tokens for _, tokens in known))


@dataclass(frozen=True)
class Sample:
    """An answer to a fixed prompt, given after `step` optimiser steps."""

    step: int
    prompt: tuple[tuple[str, str], ...]
    answer: str
    stopped: bool | None
    num_tokens: float | None


@dataclass(frozen=True)
class Check:
    """One line of the receipt; `passed` is None when the check was not made."""

    law: str
    name: str
    passed: bool | None
    figures: Mapping[str, Any]
    detail: str


@dataclass(frozen=True)
class MaskToken:
    """One token of a mask picture."""

    piece: str
    weight: float
    message: int
    role: str
    part: str


@dataclass(frozen=True)
class MaskDocument:
    """The first tokens of one document, with what each weighs and where it came from."""

    where: str
    source: str
    why: str
    num_tokens: float | None
    supervised_tokens: float | None
    tokens: tuple[MaskToken, ...]


@dataclass(frozen=True)
class SourceLedger:
    """What became of the rows of one source, its tokens at each stage (tokens, supervised tokens), and its files' SHA-256."""

    name: str
    taken_as: str
    rows: float | None
    kept: float | None
    dropped: Mapping[str, float]
    tokens: Mapping[str, tuple[float | None, float | None]]
    files: Mapping[str, str]


@dataclass(frozen=True)
class Share:
    """Part of one source in the trained tokens, asked and realised."""

    source: str
    asked: float | None
    realised: float | None
    documents: float | None
    tokens: float | None
    supervised_tokens: float | None


@dataclass(frozen=True)
class Histogram:
    """Counts of values between consecutive edges: one edge more than counts."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True)
class Choice:
    """Something the run decided, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What the run set out to do."""

    documents: float | None = None
    held_out_documents: float | None = None
    tokens: float | None = None
    supervised_tokens: float | None = None
    packs: float | None = None
    fill: float | None = None
    steps: float | None = None
    epochs: float | None = None
    parameters: float | None = None
    trainable_parameters: float | None = None
    layout: Choice | None = None
    attention: Choice | None = None
    shared_prefixes: str | None = None
    memory_bytes: Mapping[str, float | None] | None = None
    memory_predicted_bytes: float | None = None
    histograms: Mapping[str, Histogram] | None = None
    shares: tuple[Share, ...] = ()


@dataclass(frozen=True)
class Count:
    """Right answers out of all."""

    correct: int
    total: int


@dataclass(frozen=True)
class KindScore:
    """Answers of one kind of question, before and after."""

    name: str
    base: Count | None
    tuned: Count | None


@dataclass(frozen=True)
class LossScore:
    """Loss on some text, before and after, in nats per token."""

    name: str
    base: float | None
    tuned: float | None


@dataclass(frozen=True)
class ScoredAnswer:
    """One question with both answers."""

    kind: str
    question: str
    expected: str
    base: str | None
    tuned: str | None
    base_correct: bool | None
    tuned_correct: bool | None


@dataclass(frozen=True)
class Scores:
    """Exactly scored answers of the base and the tuned model."""

    title: str
    command: str
    kinds: tuple[KindScore, ...]
    losses: tuple[LossScore, ...]
    answers: tuple[ScoredAnswer, ...]


@dataclass(frozen=True)
class Finding:
    """Something that fine-tuning did and should not have; `size` is in budgets, 1 where it begins to be told."""

    title: str
    detail: str
    mend: str
    size: float | None
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Changed:
    """A figure of base and tuned model with the interval of its change; `data` is that of the data's own answers."""

    key: str
    title: str
    unit: str
    better: str
    direction: str
    base: float | None
    tuned: float | None
    low: float | None
    high: float | None
    items: float | None
    data: float | None

    @property
    def difference(self) -> float | None:
        """Tuned less base."""
        return None if self.base is None or self.tuned is None else self.tuned - self.base


@dataclass(frozen=True)
class Contrasted:
    """A figure of trained rows against held-out rows of the same kind, with the interval of the difference."""

    title: str
    unit: str
    direction: str
    held_out: float | None
    trained: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class TokenShift:
    """Shares of the tokens of the tuned model's answers by their rank in the base, and the mean divergence from it by position, in nats."""

    unshifted: float | None
    marginal: float | None
    shifted: float | None
    by_position: tuple[float | None, ...]


@dataclass(frozen=True)
class AnswerPair:
    """A held-out prompt with the data's own answer, the base's and the tuned model's."""

    prompt: str
    where: str
    data: str
    base: str
    tuned: str


@dataclass(frozen=True)
class Effect:
    """What fine-tuning did to a model, from `evaluation.json`."""

    base: str
    tuned: str
    findings: tuple[Finding, ...]
    figures: tuple[Changed, ...]
    contrasts: tuple[Contrasted, ...]
    shift: TokenShift | None
    answers: tuple[AnswerPair, ...]


@dataclass(frozen=True)
class Run:
    """Everything the report knows about one run."""

    folder: Path
    status: str | None
    started: str | None
    ended: str | None
    result: Any
    config: Mapping[str, Any]
    origins: Mapping[str, str]
    environment: Mapping[str, Any]
    plan: Plan
    ledger: tuple[SourceLedger, ...]
    steps: tuple[Step, ...]
    evaluations: tuple[Evaluation, ...]
    samples: tuple[Sample, ...]
    masks: tuple[MaskDocument, ...]
    checks: tuple[Check, ...]
    scores: Scores | None
    effect: Effect | None
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.folder.resolve().name

    def setting(self, key: str) -> Any:
        """Return the resolved configuration value at a dotted key, or None."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value
