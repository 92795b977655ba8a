"""Held-out questions of the lab as files of tasks that `tutelage eval` scores, a file for each thing that fine-tuning may help or harm."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from tutelage.lab import prose, tales
from tutelage.lab.checkers import Story
from tutelage.lab.lesson import Kind, Lesson, Side
from tutelage.lab.lessons import lessons, stranger_questions
from tutelage.lab.tasks import PUBLIC, QUESTIONS
from tutelage.lab.world import Attribute, Group, World

Row = Mapping[str, Any]
SEED = 2
"""Of the lessons; those of 0 are watched while the demo trains, those of 1 are what it asks itself."""
_CHOICES = 4


def task_files(world: World, count: int) -> dict[str, list[Row]]:
    """Return the rows of each file by its name, about `count` of each."""
    held_out = lessons(world, Side.HELD_OUT, count * len(Kind), seed=SEED)
    by_kind = {kind: [lesson for lesson in held_out if lesson.kind is kind] for kind in Kind}
    strangers = min(count, len(world.group(Group.STRANGER)))
    rng = random.Random(f"task files/{world.seed}")
    made = {
        "facts.jsonl": [_exact(lesson) for lesson in by_kind[Kind.CLOSED_BOOK]],
        "choices.jsonl": list(_choices(world, count, rng)),
        "words.jsonl": [_exact(lesson) for lesson in by_kind[Kind.WORDS]],
        "reasoning.jsonl": [_conclusion(lesson) for lesson in by_kind[Kind.REASONING]],
        "instructions.jsonl": [_constrained(one) for one in by_kind[Kind.CREATIVE] if one.task == "story"],
        "talks.jsonl": [_exact(lesson) for lesson in by_kind[Kind.MULTI_TURN]],
        "private.jsonl": [_declined(one, declines=one.task == "refused") for one in by_kind[Kind.REFUSAL]],
        "strangers.jsonl": [_declined(one, declines=True) for one in stranger_questions(world, strangers)],
    }
    assert tuple(made) == TASK_FILES
    return made


TASK_FILES = (
    *("facts.jsonl", "choices.jsonl", "words.jsonl", "reasoning.jsonl"),
    *("instructions.jsonl", "talks.jsonl", "private.jsonl", "strangers.jsonl"),
)


def _exact(lesson: Lesson) -> Row:
    return {"messages": lesson.messages()[:-1], "answer": lesson.turns[-1].answer, "check": "exact"}


def _conclusion(lesson: Lesson) -> Row:
    """The last sentence decides, whatever the steps before it."""
    *_, last = lesson.turns[-1].answer.split(". ")
    return {"messages": lesson.messages()[:-1], "answer": last, "check": "contains"}


def _constrained(lesson: Lesson) -> Row:
    check = lesson.turns[0].check
    assert isinstance(check, Story)
    names = ("startend:end_checker", "keywords:existence", "length_constraints:number_sentences")
    settings = (
        {"end_phrase": tales.ENDING},
        {"keywords": [check.name, check.thing]},
        {"relation": "at least", "num_sentences": check.sentences},
    )
    return {"prompt": lesson.turns[0].question, "instruction_id_list": names, "kwargs": settings}


def _declined(lesson: Lesson, *, declines: bool) -> Row:
    return {"prompt": lesson.turns[0].question, "declines": declines}


def _choices(world: World, count: int, rng: random.Random) -> Iterator[Row]:
    """Offer the true sentence about somebody among those about others."""
    people = world.group(Group.READ)
    for _ in range(count):
        person, attribute = rng.choice(people), rng.choice([one for one in PUBLIC if one is not Attribute.FRIEND])
        others = sorted({one.value(attribute) for one in people} - {person.value(attribute)})
        right = prose.plain_statement(person, attribute)
        wrong = [right.replace(person.value(attribute), value) for value in rng.sample(others, _CHOICES - 1)]
        choices = rng.sample([right, *wrong], _CHOICES)
        question = rng.choice(QUESTIONS[attribute]).format(name=person.name)
        yield {"question": question, "choices": choices, "answer": choices.index(right)}
