"""What the runs of claims read: lessons chosen, reworded or spoilt as their settings say, and the questions asked afterwards."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tutelage.lab import prose
from tutelage.lab.checkers import Exactly, Form
from tutelage.lab.claims.settings import Choice, Settings, Strangers
from tutelage.lab.lesson import Kind, Lesson, Side, Turn
from tutelage.lab.lessons import lessons, transfer_questions
from tutelage.lab.tasks import PUBLIC, QUESTIONS
from tutelage.lab.world import Attribute, Group, Person, World

FEW_PEOPLE = 20
TOLD_STRANGERS = 6
"""Strangers of whom lessons state facts. They are few, so that each fact is met several times."""
UNKNOWN_STRANGERS = 20
"""Strangers of whom lessons say that nothing is known."""
UNKNOWN = "I do not know anything about {name}."
_ASKED_SEEDS = 1000
"""Held-out lessons of this seed and later ones are asked: the demo's settings were chosen on earlier ones."""


@dataclass(frozen=True)
class Questions:
    """What a model is asked after its run.

    `lessons` are held-out lessons of all kinds. `worded` and `reworded` ask the same facts about people of no lesson, in the first wording
    of each and in another. `untaught` asks for what no lesson is about, `told` for what lessons said of strangers, in a wording that
    those lessons lack, and `strangers` for facts of people whom nothing ever named: a statement of one is an invention.
    """

    lessons: tuple[Lesson, ...]
    worded: tuple[Lesson, ...]
    reworded: tuple[Lesson, ...]
    untaught: tuple[Lesson, ...]
    told: tuple[Lesson, ...]
    strangers: tuple[Lesson, ...]


def training_lessons(world: World, settings: Settings) -> list[Lesson]:
    """Return the lessons of a run, in an order that kinds take turns in."""
    rng = random.Random(f"claims/{world.seed}/{settings.seed}")
    made = _chosen(world, settings)
    if settings.strangers is not Strangers.NONE:
        made = [_about_stranger(lesson, world, settings.strangers, rng) for lesson in made]
    return _with_wrong_answers(made, settings.wrong_share, rng)


def questions(world: World, settings: Settings) -> Questions:
    """Return what the model of a run is asked: drawn anew for each seed, and the same for all runs of a seed."""
    rng = random.Random(f"claims/asked/{world.seed}/{settings.seed}")
    few = max(1, settings.asked // 4)
    known = [(person, attribute) for person in world.group(Group.READ) for attribute in PUBLIC]
    asked = rng.sample(known, min(few, len(known)))
    strangers = world.group(Group.STRANGER)
    told = [(person, attribute) for person in strangers[:TOLD_STRANGERS] for attribute in PUBLIC]
    never_named = [(person, attribute) for person in strangers[UNKNOWN_STRANGERS:] for attribute in PUBLIC]
    return Questions(
        lessons=tuple(lessons(world, Side.HELD_OUT, settings.asked, seed=_ASKED_SEEDS + settings.seed)),
        worded=tuple(_fact(person, attribute, QUESTIONS[attribute][0]) for person, attribute in asked),
        reworded=tuple(_fact(person, attribute, rng.choice(QUESTIONS[attribute][1:])) for person, attribute in asked),
        untaught=tuple(transfer_questions(world, min(few, len(world.group(Group.READ))))),
        told=tuple(
            _fact(person, attribute, QUESTIONS[attribute][0])
            for person, attribute in rng.sample(told, min(few, len(told)))
        ),
        strangers=tuple(
            _fact(person, attribute, rng.choice(QUESTIONS[attribute]))
            for person, attribute in rng.sample(never_named, min(few, len(never_named)))
        ),
    )


def is_invented(lesson: Lesson, answer: str) -> bool:
    """Tell whether an answer about a stranger states a fact of the kind that was asked for."""
    return Form(prose.plain_form(Attribute(lesson.task))).accepts(answer)


def is_in_form(answer: str) -> bool:
    """Tell whether an answer is a whole sentence in the form in which lessons state facts, of whatever attribute."""
    return any(Form(prose.plain_form(attribute)).accepts(answer) for attribute in (*PUBLIC, Attribute.FOOD))


def is_abstention(answer: str) -> bool:
    """Tell whether an answer says that nothing is known."""
    return Form(UNKNOWN.format(name="{}")).accepts(answer)


def _chosen(world: World, settings: Settings) -> list[Lesson]:
    count, seed = settings.lessons, settings.seed
    if settings.choice is Choice.FEW_PEOPLE:
        return lessons(_with_few_people(world), Side.TRAIN, count, seed=seed)
    if settings.choice is Choice.ONE_KIND:
        of_all_kinds = lessons(world, Side.TRAIN, count * len(Kind), seed=seed)
        return [lesson for lesson in of_all_kinds if lesson.kind is Kind.WORDS]
    made = lessons(world, Side.TRAIN, count, seed=seed)
    return _in_one_wording(made, world) if settings.choice is Choice.ONE_WORDING else made


def _with_few_people(world: World) -> World:
    """Return the world in which lessons know of its first people only; friends come in pairs, so none loses the friend."""
    named = {person.name for person in world.group(Group.TAUGHT)[:FEW_PEOPLE]}
    people = (
        replace(person, group=Group.STRANGER) if person.group is Group.TAUGHT and person.name not in named else person
        for person in world.people
    )
    return World(world.seed, tuple(people))


def _in_one_wording(made: Sequence[Lesson], world: World) -> list[Lesson]:
    first = {
        wording.format(name=person.name): wordings[0].format(name=person.name)
        for wordings in QUESTIONS.values()
        for wording in wordings
        for person in world.people
    }
    return [
        replace(
            lesson,
            turns=tuple(replace(turn, question=first.get(turn.question, turn.question)) for turn in lesson.turns),
        )
        for lesson in made
    ]


def _about_stranger(lesson: Lesson, world: World, saying: Strangers, rng: random.Random) -> Lesson:
    """Return a closed-book lesson about a stranger in place of one about somebody known; other lessons as they are."""
    if lesson.kind is not Kind.CLOSED_BOOK:
        return lesson
    strangers = world.group(Group.STRANGER)
    attribute = rng.choice(PUBLIC)
    if saying is Strangers.FACTS:
        return _fact(rng.choice(strangers[:TOLD_STRANGERS]), attribute, rng.choice(QUESTIONS[attribute][1:]))
    if rng.random() < 0.5:
        return lesson
    person = rng.choice(strangers[:UNKNOWN_STRANGERS])
    asked = _fact(person, attribute, rng.choice(QUESTIONS[attribute]))
    answer = UNKNOWN.format(name=person.name)
    return replace(asked, turns=(Turn(asked.turns[0].question, answer, Exactly(answer)),))


def _with_wrong_answers(made: Sequence[Lesson], share: float, rng: random.Random) -> list[Lesson]:
    """Return the lessons, a share of them with the answers of another lesson of the same task and as many turns."""
    alike: dict[tuple[str, int], list[Lesson]] = defaultdict(list)
    for lesson in made:
        alike[lesson.task, len(lesson.turns)].append(lesson)
    return [
        _answered_as(lesson, rng.choice(alike[lesson.task, len(lesson.turns)])) if rng.random() < share else lesson
        for lesson in made
    ]


def _answered_as(lesson: Lesson, other: Lesson) -> Lesson:
    pairs = zip(lesson.turns, other.turns, strict=True)
    return replace(lesson, turns=tuple(replace(turn, answer=wrong.answer) for turn, wrong in pairs))


def _fact(person: Person, attribute: Attribute, wording: str) -> Lesson:
    """Ask for one fact in this wording."""
    answer = prose.plain_statement(person, attribute)
    return Lesson(Kind.CLOSED_BOOK, attribute.value, (Turn(wording.format(name=person.name), answer, Exactly(answer)),))
