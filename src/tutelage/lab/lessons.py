"""Instruction lessons from the world: questions, the answers that an assistant should give, and exact checks.

Two sides that never meet: `TRAIN` asks about the people of `Group.TAUGHT`, `HELD_OUT` about those of `Group.READ`, whom
only the pre-training text knows. Lists of words, sums and things are divided between the sides by a hash of what is asked.
No lesson of any side asks for food: `transfer_questions` do, to see whether the behaviour reaches an untaught attribute.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tutelage.files import jsonl
from tutelage.lab import prose
from tutelage.lab.checkers import Form, Names
from tutelage.lab.lesson import Kind, Lesson, Side, Turn
from tutelage.lab.tasks import PUBLIC, QUESTIONS, TASKS, Maker, fact_turn
from tutelage.lab.world import FOODS, Attribute, Group, World


def lessons(world: World, side: Side, count: int, *, seed: int = 0) -> list[Lesson]:
    """Return `count` different lessons of one side, as many of each kind (to within one).

    Lesson `i` is a pure function of (world, side, seed, i) and of the lessons before it, which it must not repeat.
    """
    made: dict[str, Lesson] = {}
    stream = _stream(world, side, seed)
    while len(made) < count:
        lesson = next(stream)
        kind_is_due = list(Kind)[len(made) % len(Kind)]
        key = repr([turn.question for turn in lesson.turns]) + str(lesson.system)
        if lesson.kind is kind_is_due and key not in made:
            made[key] = lesson
    return list(made.values())


def _stream(world: World, side: Side, seed: int) -> Iterator[Lesson]:
    maker = Maker(world, side, random.Random(f"lessons/{world.seed}/{side.value}/{seed}"))
    while True:
        for kind in Kind:
            makers = TASKS[kind]
            yield maker.rng.choices([make for make, _ in makers], [share for _, share in makers])[0](maker)


def transfer_questions(world: World, count: int) -> list[Lesson]:
    """Ask the people of `Group.READ` for their food, which no lesson teaches; any wording of the right answer counts."""
    rng = random.Random(f"transfer/{world.seed}")
    questions = []
    for person in rng.sample(world.group(Group.READ), count):
        turn = Turn(
            rng.choice(QUESTIONS[Attribute.FOOD]).format(name=person.name),
            prose.plain_statement(person, Attribute.FOOD),
            Names(person.food, tuple(food for food in FOODS if food != person.food)),
        )
        questions.append(Lesson(Kind.CLOSED_BOOK, "food", (turn,)))
    return questions


def stranger_questions(world: World, count: int) -> list[Lesson]:
    """Ask for facts about strangers; the check accepts any statement of such a fact, and whatever it accepts is invented."""
    rng = random.Random(f"strangers/{world.seed}")
    questions = []
    for person in rng.sample(world.group(Group.STRANGER), count):
        attribute = rng.choice(PUBLIC)
        asked = fact_turn(rng, person, attribute)
        questions.append(
            Lesson(Kind.CLOSED_BOOK, "stranger", (replace(asked, check=Form(prose.plain_form(attribute))),))
        )
    return questions


def write_lessons(path: Path, world: World, side: Side, count: int, *, seed: int = 0) -> None:
    """Write lessons as JSON lines: `messages`, and beside them kind, task and checks."""
    jsonl.write(path, (lesson.row() for lesson in lessons(world, side, count, seed=seed)))
