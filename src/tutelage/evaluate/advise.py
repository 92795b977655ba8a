"""Advice before training: the data are read through the model that is to be trained, and every recommendation has its figure.

What is recommended follows from few rules, which stand here with where they come from. What rests on the data is told apart from
rules of thumb, and what no reading of the data can tell is said beside both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import torch

from tutelage.chat.documents import lengths_of
from tutelage.chat.rendered import Rendered
from tutelage.config.load import DEFAULT_ORIGIN, Resolved, load_config
from tutelage.config.schema import Config, Method, TooLong
from tutelage.config.tree import dump_yaml
from tutelage.data.order import permutation
from tutelage.data.reasons import Reason
from tutelage.errors import ConfigError, DataError
from tutelage.evaluate.advise_cost import Cost, plan_cost, seconds_a_token
from tutelage.evaluate.advise_risks import data_risks
from tutelage.evaluate.facts import Knowledge, Known, judge_facts
from tutelage.evaluate.findings import Finding
from tutelage.evaluate.measures import Shift, token_shift
from tutelage.evaluate.observe import Answer, Likelihoods, Progress, likelihoods
from tutelage.evaluate.subject import Subject, load_base
from tutelage.evaluate.training import exchanges_of
from tutelage.files.encode import encode_json
from tutelage.model.load import read_config
from tutelage.model.locate import locate_model
from tutelage.train.chunks import TRAIN
from tutelage.train.environment import choose_device
from tutelage.train.prepare import Prepared, prepare

MOST_FACTS = 100
"""Facts that the base is asked for, unless somebody says otherwise."""
MOST_ANSWERS = 200
"""Answers of the data that the base reads token by token."""
KNOWLEDGE_ROWS = 0.25
"""Part of the conversations that must teach unknown facts, by the lower end of the interval, for the change to be one of knowledge."""
BITS_A_WEIGHT = 2.0
"""What a trained weight can hold (Allen-Zhu and Li 2024, arXiv 2404.05405)."""
RANKS = (16, 32, 64, 128, 256)
FULL_RATE, LORA_TIMES = 2e-5, 10
"""Learning rate of full fine-tuning from a billion weights on (below, it rises with the root of how many fewer there are), and how many
times larger that of LoRA is (Schulman et al. 2025, "LoRA Without Regret")."""
EPOCHS = {2000: 3, 50_000: 2}
"""Passes over the data up to so many different rows; one beyond. Three are usual for thousands (arXiv 2203.02155 trains sixteen)."""
KNOWLEDGE_EPOCHS = 10
"""Passes that unknown facts take: they are learned far later than known ones (Gekhman et al. 2024, arXiv 2405.05904, figure 1)."""
STEPS, BATCH_TOKENS = 200, (2048, 16384)
"""Optimiser steps that a run should have at least, and between which tokens of a step are chosen to that end."""
REPLAY = {Method.FULL: 0.1, Method.LORA: 0.05}
"""Share of pre-training text in what is trained; a few per cent keep most (Ibrahim et al. 2024, arXiv 2403.08763)."""
FORGETTING = 0.03
"""Rise of the loss on held-out plain text that is told, as a part of it."""

NOT_KNOWN = (
    "whether the answers are true, or good: the base is asked what it knows, and it can be wrong",
    "what the model will be asked in use, and whether these rows are like it",
    "the best learning rate and number of epochs: try a third and three times this rate in short runs, and compare held-out losses",
    "how much of what is in no row will be forgotten: `tutelage eval` measures it after the run",
    "facts in long answers, and in conversations of several turns: only short answers to single questions are asked for",
)


class Goal(StrEnum):
    """What training on the data would change."""

    BEHAVIOUR = "behaviour"
    KNOWLEDGE = "knowledge"
    UNCLEAR = "unclear"


class Basis(StrEnum):
    """What a recommendation rests on."""

    MEASURED = "measured"
    """The base read these data."""
    COUNTED = "counted"
    """The data and the model's configuration were counted."""
    RULE = "rule of thumb"
    """Neither says so; others found it useful."""


@dataclass(frozen=True)
class Recommendation:
    """A `value` for the dotted `key`, why, and what that rests on; `yours` is what somebody set, which stays.

    `needs` says what only you have and the configuration lacks, so that it cannot have the value either.
    """

    key: str
    value: Any
    reason: str
    basis: Basis
    yours: Any = None
    needs: str = ""

    @property
    def is_set(self) -> bool:
        """Whether the recommended configuration has the value."""
        return self.yours is None and not self.needs


@dataclass(frozen=True)
class Expected:
    """What the recommended run would take on this machine: seconds of its steps alone, from the fastest and the slowest that were timed."""

    steps: int
    tokens: int
    seconds: tuple[float, float]
    peak_bytes: int | None
    device: str


@dataclass(frozen=True)
class Advice:
    """What was found out about data and base, what to set, what it would cost, and what may go wrong."""

    base: str
    goal: Goal
    why: str
    recommendations: tuple[Recommendation, ...]
    risks: tuple[Finding, ...]
    known: Known
    shift: Shift | None
    expected: Expected
    resolved: Resolved
    not_known: tuple[str, ...] = NOT_KNOWN

    @property
    def yaml(self) -> str:
        """The configuration, for `tutelage train`."""
        return dump_yaml(self.resolved.config.model_dump(mode="json", exclude_defaults=True))

    def to_json(self) -> dict[str, object]:
        """Return everything."""
        return {
            "base": self.base,
            "goal": self.goal.value,
            "why": self.why,
            "recommendations": [vars(one) for one in self.recommendations],
            "expected": vars(self.expected),
            "risks": [vars(one) for one in self.risks],
            "facts": self.known.to_json(),
            "token_shift": vars(self.shift) if self.shift else None,
            "not_known": self.not_known,
            "config": self.resolved.config.model_dump(mode="json", exclude_defaults=True),
        }


def advise(
    resolved: Resolved, *, device: torch.device, progress: Progress, most_facts: int | None = MOST_FACTS
) -> Advice:
    """Read the training data of a configuration through its model and recommend how to train; every fact is asked for where `most_facts` is None.

    Raises: DataError when there is no conversation to train on; ConfigError where no run fits; whatever preparing and loading raise.
    """
    read = read_data(resolved.config, device=device, progress=progress, most_facts=most_facts)
    goal, why = change_of(read.known)
    exchanges = exchanges_of(read.prepared.documents, read.prepared.tokenizer).each
    risks = data_risks(exchanges, read.known)
    method = _method(goal, why, resolved)
    settings = _Settings(resolved, read, goal, (method, *_necessary(resolved.config, read)))
    plan = plan_cost(settings.resolved().config)
    if plan.problem and settings.method is Method.FULL and method.yours is None:
        reason = f"full fine-tuning would learn better, as {why}, but does not fit: {plan.problem}"
        method = Recommendation("train.method", Method.LORA.value, reason, Basis.COUNTED)
        settings = replace(settings, chosen=(method, *settings.chosen[1:]))
        plan = plan_cost(settings.resolved().config)
    if plan.problem:
        raise ConfigError(plan.problem, mend="a smaller model, a smaller data.max_tokens, or another machine")
    settings = replace(settings, chosen=(*settings.chosen, *_recommended(settings, plan)))
    chosen = settings.resolved()
    plan = plan_cost(chosen.config)
    tokens = plan.plan["computed_tokens"]
    least, most = seconds_a_token(chosen.config, plan, progress)
    place = choose_device(chosen.config.train)
    return Advice(
        resolved.config.model.path,
        goal,
        why,
        settings.chosen,
        tuple(risks),
        read.known,
        token_shift(read.answers, read.answers),
        Expected(plan.plan["steps"], tokens, (least * tokens, most * tokens), plan.peak_bytes, str(place)),
        chosen,
    )


@dataclass(frozen=True, eq=False)
class DataRead:
    """What the base knows of the data, and how likely it finds some of their answers."""

    prepared: Prepared
    known: Known
    answers: list[Likelihoods]
    longest_context: int

    @property
    def bits_a_token(self) -> float | None:
        """Mean surprise of the base at a token of an answer; None without a token."""
        log = np.concatenate([one.log_probability for one in self.answers]) if self.answers else np.zeros(0)
        return float(-log.mean() / math.log(2)) if len(log) else None


def read_data(config: Config, *, device: torch.device, progress: Progress, most_facts: int | None) -> DataRead:
    """Let the model of `config` read its training data, of which nothing is held out.

    Raises: DataError when no row is a conversation that can be trained on.
    """
    architecture: Any = read_config(locate_model(config.model.path, revision=config.model.revision))
    context = getattr(architecture.get_text_config(), "max_position_embeddings", None) or config.data.max_tokens
    whole: dict[str, Any] = {
        "max_tokens": min(config.data.max_tokens, context),
        "held_out_fraction": 0.0,
        "held_out": [],
    }
    config = config.model_copy(update={"data": config.data.model_copy(update=whole)})
    prepared = prepare(config, progress=progress, lenient=True)
    if not any(document.roles for document in prepared.documents):
        raise DataError(
            "no row of the data is a conversation that can be trained on", mend="look at the rows with `tutelage check`"
        )
    base = load_base(config, prepared.renderer, prepared.documents[:3], device)
    known = judge_facts(base, prepared.documents, progress, most=most_facts, seed=config.train.seed)
    return DataRead(prepared, known, _read_answers(base, prepared.documents, progress), context)


def _read_answers(base: Subject, documents: Sequence[Rendered], progress: Progress) -> list[Likelihoods]:
    """Let the base read the last answer of some conversations, in the template that it would be trained in."""
    talks = (one for one in (documents[int(at)] for at in permutation(len(documents), 0, 0)) if one.roles)
    answers = []
    for document, _ in zip(talks, range(MOST_ANSWERS), strict=False):
        supervised = document.weights > 0
        own = np.flatnonzero(supervised & (document.message == document.message[supervised].max(initial=-1)))
        if len(own):
            start, end, ids = int(own[0]), int(own[-1]) + 1, document.ids.tolist()
            answers.append(Answer(tuple(ids[:start]), tuple(ids[start:end]), "", True))
    return likelihoods(base, answers, progress)


def change_of(known: Known) -> tuple[Goal, str]:
    """Return what training would change, and the figures that say so."""
    share = known.share(Knowledge.UNKNOWN)
    if share is None:
        return (
            Goal.UNCLEAR,
            f"there are {known.num_facts} short facts in {known.num_rows:,} conversations, too few to ask",
        )
    of_rows = known.num_facts / known.num_rows
    middle, low, high = (of_rows * part for part in share)
    why = (
        f"{known.count(Knowledge.UNKNOWN):,} of {len(known.judged):,} facts asked for are unknown to the base, so that {middle:.0%} "
        f"({low:.0%} to {high:.0%}) of the conversations teach it new ones"
    )
    if low >= KNOWLEDGE_ROWS:
        return Goal.KNOWLEDGE, why
    return (Goal.BEHAVIOUR if high < KNOWLEDGE_ROWS else Goal.UNCLEAR), why


def _method(goal: Goal, why: str, resolved: Resolved) -> Recommendation:
    method = Method.FULL if goal is Goal.KNOWLEDGE else Method.LORA
    reason = {
        Goal.BEHAVIOUR: f"a change of behaviour, which adapters hold and which forgets less so: {why}",
        Goal.KNOWLEDGE: f"a change of knowledge, which adapters learn worse: {why}",
        Goal.UNCLEAR: f"the cautious choice, as the data do not tell: {why}",
    }
    basis = Basis.RULE if goal is Goal.UNCLEAR else Basis.MEASURED
    return _with_yours(Recommendation("train.method", method.value, reason[goal], basis), resolved)


def _with_yours(one: Recommendation, resolved: Resolved) -> Recommendation:
    """Return a recommendation with what somebody set for its key, if anybody did."""
    section: Any = resolved.config.model_dump(mode="json")
    own = [origin for key, origin in resolved.origins.items() if f"{key}.".startswith(f"{one.key}.")]
    if all(origin == DEFAULT_ORIGIN for origin in own):
        return one
    for part in one.key.split("."):
        section = section[int(part) if part.isdigit() else part]
    return replace(one, yours=section)


@dataclass(frozen=True, eq=False)
class _Settings:
    """What is set so far: what is `given`, and what was `chosen`, the method first, which gives way to it."""

    given: Resolved
    read: DataRead
    goal: Goal
    chosen: tuple[Recommendation, ...]

    @property
    def method(self) -> Method:
        """The method in force."""
        return Method(self.chosen[0].value if self.chosen[0].yours is None else self.chosen[0].yours)

    @property
    def num_rows(self) -> int:
        """Conversations that differ."""
        return len({document.record_id for document in self.read.prepared.documents if document.roles})

    @property
    def supervised_tokens(self) -> int:
        """Tokens of conversations that carry loss."""
        accounts = self.read.prepared.ledger.sources.values()
        return sum(one.tokens[TRAIN].supervised for one in accounts if one.kind != "text" and TRAIN in one.tokens)

    @property
    def text_sources(self) -> list[int]:
        """Numbers of the sources that are plain text."""
        accounts = list(self.read.prepared.ledger.sources.values())
        return [number for number, account in enumerate(accounts) if account.kind == "text"]

    def resolved(self) -> Resolved:
        """Return the whole configuration."""
        given = self.given.config.model_dump(mode="json", exclude_defaults=True)
        words = [f"{key}={encode_json(value)}" for key, value in given.items()]
        words += [f"{one.key}={encode_json(one.value)}" for one in self.chosen if one.is_set]
        return load_config(None, words)


def _necessary(given: Config, read: DataRead) -> Iterator[Recommendation]:
    """Yield what makes these data trainable at all, so that it goes over what somebody set."""
    data, books = given.data, read.prepared.ledger.totals
    if read.longest_context < data.max_tokens:
        yield Recommendation("data.max_tokens", read.longest_context, "the context of the base", Basis.COUNTED)
    if books.dropped[Reason.TOO_LONG.value] and data.too_long is TooLong.ERROR:
        reason = f"{books.dropped[Reason.TOO_LONG.value]:,} rows are longer; drop_oldest_turns keeps the ends of them"
        yield Recommendation("data.too_long", TooLong.DROP.value, reason, Basis.COUNTED)
    if books.num_faulty > data.max_bad_fraction * books.rows:
        part = min(1.0, math.ceil(1000 * books.num_faulty / books.rows) / 1000)
        reason = f"{books.num_faulty:,} of {books.rows:,} rows are faulty; `tutelage check` shows them"
        yield Recommendation("data.max_bad_fraction", part, reason, Basis.COUNTED)


def _recommended(settings: _Settings, plan: Cost) -> list[Recommendation]:
    """Return all that follows once the method is known."""
    found = [_rate(settings.method, plan.base_parameters), _epochs(settings)]
    found.append(_batch(settings, _value(_with_yours(found[-1], settings.given))))
    if settings.method is Method.LORA:
        found += _rank(settings, plan)
    found += _held_out(settings)
    found += _replay(settings)
    return [_with_yours(one, settings.given) for one in found]


def _value(one: Recommendation) -> Any:
    return one.value if one.yours is None else one.yours


def _rate(method: Method, parameters: int) -> Recommendation:
    rate = FULL_RATE * math.sqrt(max(1.0, 1e9 / parameters)) * (LORA_TIMES if method is Method.LORA else 1)
    times = f", and {LORA_TIMES} times that for adapters" if method is Method.LORA else ""
    reason = f"{FULL_RATE:g} from 1e9 weights on, more for the {parameters:,} of this base{times}"
    return Recommendation("train.learning_rate", float(f"{rate:.1e}"), reason, Basis.RULE)


def _epochs(settings: _Settings) -> Recommendation:
    rows = settings.num_rows
    if settings.goal is Goal.KNOWLEDGE:
        reason = "unknown facts are learned long after known ones; each wants many passes, better still many wordings"
        return Recommendation("train.epochs", KNOWLEDGE_EPOCHS, reason, Basis.RULE)
    epochs = next((epochs for most, epochs in EPOCHS.items() if rows <= most), 1)
    reason = f"{rows:,} different conversations; more passes teach them by heart"
    return Recommendation("train.epochs", epochs, reason, Basis.RULE)


def _batch(settings: _Settings, epochs: float) -> Recommendation:
    tokens = epochs * float(lengths_of(settings.read.prepared.documents).sum())
    least, most = BATCH_TOKENS
    batch = 2 ** int(math.log2(min(most, max(least, tokens / STEPS))))
    longest = settings.read.prepared.longest_tokens
    batch = max(batch, 2 ** math.ceil(math.log2(max(2, longest))))
    reason = f"about {max(1.0, tokens / batch):,.0f} steps of the {tokens:,.0f} tokens of {epochs:g} epochs; {STEPS} are wanted, and {least:,} tokens each"
    return Recommendation("train.batch_tokens", batch, reason, Basis.COUNTED)


def _rank(settings: _Settings, plan: Cost) -> Iterator[Recommendation]:
    """Choose the least rank whose weights can hold what the answers tell the base, by its own surprise at them."""
    bits_a_token = settings.read.bits_a_token
    supervised = settings.supervised_tokens
    a_rank = plan.plan["trainable_parameters"] / settings.resolved().config.train.lora.rank
    bits = (bits_a_token or 0.0) * supervised
    rank = next((rank for rank in RANKS if BITS_A_WEIGHT * rank * a_rank >= bits), RANKS[-1])
    holds = BITS_A_WEIGHT * rank * a_rank
    said = "" if holds >= bits else ", which is too little: the rest cannot be learned by heart, and need not be"
    surprise = "no answer was read" if bits_a_token is None else f"{bits_a_token:.2f} bits of surprise a token"
    reason = f"{surprise} on {supervised:,.0f} tokens are {bits:,.0f} bits; rank {rank} holds about {holds:,.0f}{said}"
    yield Recommendation("train.lora.rank", rank, reason, Basis.MEASURED)
    yield Recommendation("train.lora.alpha", 2.0 * rank, "twice the rank", Basis.RULE)


def _held_out(settings: _Settings) -> Iterator[Recommendation]:
    if not settings.given.config.data.held_out:
        rows = settings.num_rows
        part = 0.1 if rows < 1000 else 0.05 if rows < 20_000 else 0.01
        reason = f"{part:.0%} of {rows:,} conversations show what is learned and what is known by heart"
        yield Recommendation("data.held_out_fraction", part, reason, Basis.RULE)
    if settings.goal is not Goal.KNOWLEDGE:
        reason = "the weights of the lowest held-out loss are kept"
        yield Recommendation("train.early_stopping", {"patience": 3}, reason, Basis.RULE)


def _replay(settings: _Settings) -> Iterator[Recommendation]:
    share = REPLAY[settings.method]
    if not settings.text_sources:
        key = f"data.train.{len(settings.given.config.data.train)}.share"
        reason = f"plain text keeps what the base knew; {settings.method.value} fine-tuning wants about so much of what is trained"
        yield Recommendation(
            key, share, reason, Basis.RULE, needs="a file of texts like those of pre-training, kind: text"
        )
    for number in settings.text_sources:
        if settings.given.config.data.train[number].weight is None:
            reason = f"plain text keeps what the base knew; {settings.method.value} fine-tuning wants about so much"
            part = share / len(settings.text_sources)
            yield Recommendation(f"data.train.{number}.share", part, reason, Basis.RULE)
    if settings.text_sources:
        reason = "more bits on held-out plain text than that, and the run says so"
        yield Recommendation("train.gate.forgetting", FORGETTING, reason, Basis.RULE)
