"""What the model to be trained knows already of the facts in its training data, in the categories of SliCK.

A fact is the short answer to a single question, with a few words of its own: neither the question has them, nor most answers that
begin as it does. The base reads a few other such questions with their answers, then the question and the answer up to its own words,
and goes on by itself: it is asked for the fact, not for the way of putting it. A reply is right that has all of these words before it
is longer than the answer.

Source: Gekhman et al. 2024, arXiv 2405.05904, section 3, with fewer prompts, and samples only where no greedy answer is right: there
alone they decide.
"""

from __future__ import annotations

import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from tutelage.chat.rendered import Rendered
from tutelage.chat.tokenizer import ChatTokenizer
from tutelage.data.conversation import Role
from tutelage.data.order import permutation
from tutelage.evaluate.observe import ROWS_AT_ONCE, Progress
from tutelage.evaluate.style import words_at, words_of
from tutelage.evaluate.subject import Subject
from tutelage.evaluate.training import MOST_DOCUMENTS, Exchange, exchanges_of
from tutelage.generate.local import generate
from tutelage.intervals import wilson_interval
from tutelage.train.trainee import context_tokens

MOST_ANSWER_WORDS, MOST_OWN_WORDS, MOST_QUESTION_WORDS = 20, 6, 60
SHOTS, PROMPTS, SAMPLES = 3, 4, 4
"""Exemplars before a question; times it is asked greedily, each with others; samples after each of these. (4, 10 and 16 in the paper.)"""
TEMPERATURE = 0.5
LONGEST_REPLY = 4
"""Tokens that a reply may have beyond those of the answer."""
LEAST_FACTS = 2 * SHOTS
"""Facts below which there are no exemplars to ask with."""
SURE = 0.9
"""Share of samples that must say what all greedy answers say for the base to be sure of it."""
FORMS = ('"{question}" "{answer}"\n', "Question: {question}\nAnswer: {answer}\n", "{question}\n{answer}\n\n")
"""How a text may tell a question and its answer. The one in which the base knows most is used."""
_TRIED_FACTS = 24
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_ALIKE, _OF_ALIKE, _OF_ALL = 20, 0.5, 0.05


class Knowledge(StrEnum):
    """What a model knows of a fact, by the names of the paper."""

    HIGHLY = "highly known"
    """Every greedy answer is right."""
    MAYBE = "maybe known"
    """Some greedy answer is right."""
    WEAKLY = "weakly known"
    """No greedy answer is right, but a sample is."""
    UNKNOWN = "unknown"
    """No answer is right."""


@dataclass(frozen=True)
class Fact:
    """A question with a short answer, which has `own` words; `begun` is the answer up to the first of them."""

    question: str
    answer: str
    where: str
    own: frozenset[str]
    begun: str

    @property
    def rest(self) -> str:
        """The answer from the first of its own words on."""
        return self.answer[len(self.begun) :]

    def said(self, reply: str) -> tuple[str, ...]:
        """Return the words of a reply, which goes on from `begun`, as far as the answer goes."""
        return tuple(words_of(reply)[: len(words_of(self.rest))])

    def is_right(self, reply: str) -> bool:
        """Whether a reply says what the answer does in as many words."""
        return self.own <= set(self.said(reply))


@dataclass(frozen=True)
class Judged:
    """What the base knows of a fact; `reply` is what it said first.

    `agreement` is the share of its samples that say so too, where all greedy answers did; otherwise, and where there are no samples, 0.
    """

    fact: Fact
    knowledge: Knowledge
    reply: str
    agreement: float

    @property
    def is_otherwise(self) -> bool:
        """Whether the base is sure of something else than the data say."""
        return self.knowledge is Knowledge.UNKNOWN and self.agreement >= SURE

    def __str__(self) -> str:
        """Return it in one line."""
        return f'{self.fact.where}: "{self.fact.question}" - "{self.fact.answer}" (base: "{self.reply}")'


@dataclass(frozen=True)
class Known:
    """What the base knows of `judged`, chosen by chance from `num_facts` facts in the `num_rows` conversations that were looked at.

    `by_chance` is the share of greedy replies that would be right for another fact whose answer is written alike; None where there is none.
    """

    judged: tuple[Judged, ...]
    num_facts: int
    num_rows: int
    form: str = ""
    by_chance: float | None = None

    def count(self, *knowledge: Knowledge) -> int:
        """Return how many are known so."""
        return sum(one.knowledge in knowledge for one in self.judged)

    def share(self, *knowledge: Knowledge) -> tuple[float, float, float] | None:
        """Return the share that is known so, and its 95 % interval; None where no fact was judged."""
        if not self.judged:
            return None
        count = self.count(*knowledge)
        return (count / len(self.judged), *wilson_interval(count, len(self.judged)))

    @property
    def unknown(self) -> tuple[Judged, ...]:
        """The facts that are unknown."""
        return tuple(one for one in self.judged if one.knowledge is Knowledge.UNKNOWN)

    def to_json(self) -> dict[str, object]:
        """Return shares with intervals."""
        return {
            "rows": self.num_rows,
            "facts": self.num_facts,
            "judged": len(self.judged),
            "form": self.form,
            "right_by_chance": self.by_chance,
            **{
                kind.value: None if share is None else dict(zip(("share", "low", "high"), share, strict=True))
                for kind in Knowledge
                for share in [self.share(kind)]
            },
        }


def facts_of(documents: Sequence[Rendered], tokenizer: ChatTokenizer, *, most: int | None) -> tuple[list[Fact], int]:
    """Return the facts of conversations with one question and one answer, and how many conversations of any kind were looked at.

    Of more than `most` documents, this many are looked at, by chance; all where that is None.
    """
    chosen = [documents[int(number)] for number in sorted(permutation(len(documents), 0, 0)[:most])]
    each = exchanges_of([one for one in chosen if _is_single(one)], tokenizer, most=None).each
    short = [
        one
        for one in each
        if 0 < len(words_of(one.answer)) <= MOST_ANSWER_WORDS
        and 0 < len(words_of(one.prompt)) <= MOST_QUESTION_WORDS
        and "\n" not in one.answer
    ]
    return list(facts_in(short)), sum(bool(one.roles) for one in chosen)


def _is_single(document: Rendered) -> bool:
    roles = [role for role in document.roles if role != Role.SYSTEM]
    return document.stage == 0 and roles == [Role.USER, Role.ASSISTANT]


def facts_in(each: Sequence[Exchange]) -> Iterator[Fact]:
    """Yield the short exchanges whose answers have words of their own, as facts.

    Sentences that twenty different answers have word for word are form. Answers that begin, behind these, with the same two words are written
    alike where there are twenty of them: what half of them have is their form. The others are taken together, and their form is what a
    twentieth have.
    """
    sentences = Counter(part for answer in {one.answer for one in each} for part in _SENTENCE_END.split(answer))
    shared = {sentence for sentence, count in sentences.items() if count >= _ALIKE}
    alike: defaultdict[tuple[str, ...], list[Exchange]] = defaultdict(list)
    for one in each:
        told = [sentence for sentence in _SENTENCE_END.split(one.answer) if sentence not in shared]
        alike[tuple(words_of(" ".join(told))[:2])].append(one)
    groups = [(group, _OF_ALIKE) for group in alike.values() if len(group) >= _ALIKE]
    groups.append(([one for group in alike.values() if len(group) < _ALIKE for one in group], _OF_ALL))
    for group, share in groups:
        counts = Counter(word for one in group for word in set(words_of(one.answer)))
        form = {word for word, count in counts.items() if count >= max(2, share * len(group))}
        for one in group:
            said_by_many = shared.intersection(_SENTENCE_END.split(one.answer))
            asked = form.union(words_of(one.prompt), *map(words_of, said_by_many))
            own = [(word, start) for word, start in words_at(one.answer) if word not in asked]
            if 0 < len(own) <= MOST_OWN_WORDS:
                begun = one.answer[: own[0][1]]
                yield Fact(one.prompt.strip(), one.answer, one.where, frozenset(word for word, _ in own), begun)


def judge_facts(
    base: Subject, documents: Sequence[Rendered], progress: Progress, *, most: int | None, seed: int = 0
) -> Known:
    """Return what the base knows of the facts in `documents`, of at most `most` by chance; of every one where that is None.

    Nothing is judged where there are not enough facts to ask with.
    """
    facts, num_rows = facts_of(documents, base.renderer.tokenizer, most=MOST_DOCUMENTS if most else None)
    if len(facts) < LEAST_FACTS:
        return Known((), len(facts), num_rows)
    order = permutation(len(facts), seed, 0)
    chosen = [facts[int(number)] for number in order[:most]]
    interview = _Interview(base, facts, seed, progress)
    form = interview.best_form(chosen[:_TRIED_FACTS])
    greedy = interview.ask(chosen, form, samples=0)
    never = [number for number, fact in enumerate(chosen) if not any(map(fact.is_right, greedy[number]))]
    sampled = interview.ask([chosen[number] for number in never], form, samples=SAMPLES)
    samples = dict(zip(never, sampled, strict=True))
    judged = tuple(judge_replies(fact, greedy[number], samples.get(number, [])) for number, fact in enumerate(chosen))
    return Known(judged, len(facts), num_rows, form.split("\n")[0], _by_chance(judged))


def judge_replies(fact: Fact, greedy: Sequence[str], samples: Sequence[str]) -> Judged:
    """Put a fact into its category by the greedy replies, and by the `samples` where none of those is right."""
    right = sum(map(fact.is_right, greedy))
    said = fact.said(greedy[0])
    insists = bool(said) and all(fact.said(reply) == said for reply in greedy)
    agreement = float(np.mean([fact.said(reply) == said for reply in samples])) if insists and samples else 0.0
    if right:
        knowledge = Knowledge.HIGHLY if right == len(greedy) else Knowledge.MAYBE
    else:
        knowledge = Knowledge.WEAKLY if any(map(fact.is_right, samples)) else Knowledge.UNKNOWN
    return Judged(fact, knowledge, greedy[0], agreement)


def _by_chance(judged: Sequence[Judged]) -> float | None:
    """Return the share of replies that are right for the next fact with another answer that begins as the own one does."""
    alike: defaultdict[tuple[str, ...], list[Judged]] = defaultdict(list)
    for one in judged:
        alike[tuple(words_of(one.fact.answer)[:2])].append(one)
    pairs = [
        (one, other.fact)
        for group in alike.values()
        for place, one in enumerate(group)
        for other in [group[(place + 1) % len(group)]]
        if other.fact.own != one.fact.own
    ]
    return float(np.mean([other.is_right(one.reply) for one, other in pairs])) if pairs else None


@dataclass(frozen=True, eq=False)
class _Interview:
    """Asks the base, with exemplars drawn from `facts`."""

    base: Subject
    facts: Sequence[Fact]
    seed: int
    progress: Progress
    stop_ids: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Find the tokens that end a line."""
        tokenizer = self.base.renderer.tokenizer
        ends = [number for number in range(tokenizer.vocab_size) if "\n" in tokenizer.decode([number])]
        object.__setattr__(self, "stop_ids", (*ends, *tokenizer.eos_ids))

    def best_form(self, facts: Sequence[Fact]) -> str:
        """Return the form in which most facts are answered right; of equals the first."""
        return max(FORMS, key=lambda form: self._num_right(facts, form))

    def _num_right(self, facts: Sequence[Fact], form: str) -> int:
        said = self._ask_once(facts, form, 0, samples=0, what="choosing how to ask", done=0, count=len(facts))
        return sum(fact.is_right(replies[0]) for fact, replies in zip(facts, said, strict=True))

    def ask(self, facts: Sequence[Fact], form: str, *, samples: int) -> list[list[str]]:
        """Return what the base says to each fact: after each set of exemplars one greedy reply, or `samples` at the temperature."""
        what, each = ("asking again for facts not known" if samples else "asking for facts"), max(1, samples)
        count = PROMPTS * each * len(facts)
        by_prompt = [
            self._ask_once(
                facts, form, prompt, samples=samples, what=what, done=prompt * each * len(facts), count=count
            )
            for prompt in range(PROMPTS)
        ]
        return [[reply for of in by_prompt for reply in of[number]] for number in range(len(facts))]

    def _ask_once(
        self, facts: Sequence[Fact], form: str, prompt: int, *, samples: int, what: str, done: int, count: int
    ) -> list[list[str]]:
        """Return the replies after the exemplars of the number `prompt`. Those for which the context has no room are left out."""
        tokenizer = self.base.renderer.tokenizer
        times = max(1, samples)
        longest = LONGEST_REPLY + max((len(tokenizer.encode_text(fact.rest)) for fact in facts), default=0)
        room = (context_tokens(self.base.model) or sys.maxsize) - longest
        ids = [one for fact in facts for one in [self._prompt_ids(fact, form, prompt, room)] * times]
        replies: list[str] = []
        for start in range(0, len(ids), ROWS_AT_ONCE):
            said = generate(
                self.base.model,
                tokenizer,
                ids[start : start + ROWS_AT_ONCE],
                stop_ids=self.stop_ids,
                batch_rows=ROWS_AT_ONCE,
                max_new_tokens=longest,
                temperature=TEMPERATURE if samples else 0.0,
                seed=self.seed + start,
            )
            replies += [one.text.strip() for one in said]
            self.progress(what, done + len(replies), count)
        return [replies[start : start + times] for start in range(0, len(replies), times)]

    def _prompt_ids(self, fact: Fact, form: str, prompt: int, room: int) -> tuple[int, ...]:
        """Return exemplars and question as tokens, of which there are at most `room`."""
        draw = random.Random(f"exemplars/{self.seed}/{prompt}/{fact.where}")
        candidates = draw.sample(self.facts, min(len(self.facts), 8 * SHOTS))
        others = [one for one in candidates if not fact.own <= set(words_of(one.answer))][:SHOTS]  # none that tells it
        told = [form.format(question=one.question, answer=one.answer) for one in others]
        asked = form.split("{answer}")[0].format(question=fact.question) + fact.begun
        tokenizer = self.base.renderer.tokenizer
        before, _ = tokenizer.text_ends
        for first in range(len(told) + 1):
            text = "".join(told[first:]) + asked
            ids = (*before, *map(int, tokenizer.encode_inert(text.rstrip(" "), after_control=bool(before)).ids))
            if len(ids) <= room:
                break
        return ids[:room]
