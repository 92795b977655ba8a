"""Score a model on lessons: ask, turn by turn, and let the checkers decide.

A conversation of several turns is right when every answer is, each given in the context of the model's own earlier
answers. An answer that did not end by itself is wrong: stopping is part of what an assistant learns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tutelage.data.conversation import Message, Role
from tutelage.lab.lesson import Lesson


class Completion(Protocol):
    """What a model answers."""

    @property
    def text(self) -> str: ...
    @property
    def stopped(self) -> bool: ...


Ask = Callable[[Sequence[Sequence[Message]]], Sequence[Completion]]
"""Answers many conversations, each of which ends with a user's message."""


@dataclass(frozen=True)
class Answered:
    """A lesson and what a model made of it."""

    lesson: Lesson
    answers: tuple[str, ...]
    correct: bool


@dataclass(frozen=True)
class Tally:
    """How many of how many were right."""

    correct: int
    total: int

    @property
    def share(self) -> float | None:
        """Part that was right; None when nothing was asked."""
        return self.correct / self.total if self.total else None


def answer_lessons(lessons: Sequence[Lesson], ask: Ask) -> list[Answered]:
    """Ask every turn of every lesson; all conversations go forward together, one turn at a time."""
    histories: list[list[Message]] = [
        [Message(Role.SYSTEM, lesson.system)] if lesson.system else [] for lesson in lessons
    ]
    answers: list[list[str]] = [[] for _ in lessons]
    correct = [True] * len(lessons)
    for turn_number in range(max((len(lesson.turns) for lesson in lessons), default=0)):
        asked = [number for number, lesson in enumerate(lessons) if turn_number < len(lesson.turns)]
        for number in asked:
            histories[number].append(Message(Role.USER, lessons[number].turns[turn_number].question))
        for number, completion in zip(asked, ask([histories[number] for number in asked]), strict=True):
            text = completion.text.strip()
            histories[number].append(Message(Role.ASSISTANT, text))
            answers[number].append(text)
            correct[number] &= completion.stopped and lessons[number].turns[turn_number].check.accepts(text)
    return [
        Answered(lesson, tuple(given), right) for lesson, given, right in zip(lessons, answers, correct, strict=True)
    ]


def tally(answered: Iterable[Answered], key: Callable[[Lesson], str]) -> dict[str, Tally]:
    """Count right answers by `key` of the lesson, in order of first appearance."""
    counts: dict[str, list[int]] = {}
    for item in answered:
        count = counts.setdefault(key(item.lesson), [0, 0])
        count[0] += item.correct
        count[1] += 1
    return {name: Tally(correct, total) for name, (correct, total) in counts.items()}


def total(answered: Sequence[Answered]) -> Tally:
    """Count right answers over all lessons."""
    return Tally(sum(item.correct for item in answered), len(answered))


def asker(model: Any, renderer: Any, *, max_new_tokens: int = 64) -> Ask:
    """Return a function that lets `model` answer conversations greedily, rendered by `renderer`."""
    from tutelage.generate.local import generate

    def ask(conversations: Sequence[Sequence[Message]]) -> Sequence[Completion]:
        prompts = [renderer.prompt_ids(tuple(conversation)) for conversation in conversations]
        return generate(
            model,
            renderer.tokenizer,
            prompts,
            stop_ids=renderer.stop_ids,
            max_new_tokens=max_new_tokens,
            batch_rows=128,
        )

    return ask
