"""What the runs of claims are trained on and asked: each variant differs from the usual lessons in what it says, and in nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from tutelage.lab.claims.material import (
    FEW_PEOPLE,
    TOLD_STRANGERS,
    UNKNOWN_STRANGERS,
    is_abstention,
    is_in_form,
    is_invented,
    questions,
    training_lessons,
)
from tutelage.lab.claims.settings import Choice, Settings, Strangers
from tutelage.lab.lesson import Kind, Lesson
from tutelage.lab.tasks import QUESTIONS
from tutelage.lab.world import Attribute, Group, make_world

WORLD = make_world(0)
USUAL = Settings(lessons=300, asked=60)
PLAIN = training_lessons(WORLD, USUAL)


def named(lessons: list[Lesson]) -> set[str]:
    text = " ".join(turn.question + " " + turn.answer for lesson in lessons for turn in lesson.turns)
    return {person.name for person in WORLD.people if person.name in text}


def test_a_seed_draws_lessons_anew_and_the_same_seed_the_same() -> None:
    assert training_lessons(WORLD, USUAL) == PLAIN
    assert training_lessons(WORLD, replace(USUAL, seed=1)) != PLAIN
    assert questions(WORLD, USUAL) == questions(WORLD, replace(USUAL, learning_rate=1.0))
    assert questions(WORLD, USUAL).lessons != questions(WORLD, replace(USUAL, seed=1)).lessons


def test_one_wording_changes_questions_and_no_answer() -> None:
    reworded = training_lessons(WORLD, replace(USUAL, choice=Choice.ONE_WORDING))
    assert [[turn.answer for turn in one.turns] for one in reworded] == [[t.answer for t in one.turns] for one in PLAIN]
    asked = [turn.question for lesson in reworded for turn in lesson.turns]
    person = WORLD.group(Group.TAUGHT)
    left = {wording.format(name=p.name) for ws in QUESTIONS.values() for wording in ws[1:] for p in person}
    assert not left & set(asked)
    assert left & {turn.question for lesson in PLAIN for turn in lesson.turns}


def test_few_people_are_few_and_one_kind_is_one() -> None:
    few = training_lessons(WORLD, replace(USUAL, choice=Choice.FEW_PEOPLE))
    assert len(few) == len(PLAIN)
    assert named(few) <= {person.name for person in WORLD.group(Group.TAUGHT)[:FEW_PEOPLE]}
    assert len(named(PLAIN)) > 2 * FEW_PEOPLE
    narrow = training_lessons(WORLD, replace(USUAL, choice=Choice.ONE_KIND))
    assert [lesson.kind for lesson in narrow] == [Kind.WORDS] * len(PLAIN)


def test_wrong_answers_are_of_the_same_task_and_about_as_many_as_asked() -> None:
    noisy = training_lessons(WORLD, replace(USUAL, wrong_share=0.3))
    assert [[turn.question for turn in one.turns] for one in noisy] == [
        [t.question for t in one.turns] for one in PLAIN
    ]
    changed = [(one, other) for one, other in zip(noisy, PLAIN, strict=True) if one != other]
    assert 0.2 * len(PLAIN) < len(changed) < 0.4 * len(PLAIN)
    answers: dict[str, set[str]] = {}
    for lesson in PLAIN:
        answers.setdefault(lesson.task, set()).update(turn.answer for turn in lesson.turns)
    assert all(turn.answer in answers[one.task] for one, _ in changed for turn in one.turns)


def test_strangers_take_the_place_of_closed_book_lessons_only() -> None:
    for saying, share in ((Strangers.FACTS, 1.0), (Strangers.ABSTENTIONS, 0.5)):
        told = training_lessons(WORLD, replace(USUAL, strangers=saying))
        changed = [(one, other) for one, other in zip(told, PLAIN, strict=True) if one != other]
        assert {other.kind for _, other in changed} == {Kind.CLOSED_BOOK}
        assert abs(len(changed) / Counter(one.kind for one in PLAIN)[Kind.CLOSED_BOOK] - share) < 0.2
        strangers = {person.name for person in WORLD.group(Group.STRANGER)[:UNKNOWN_STRANGERS]}
        assert named([one for one, _ in changed]) - {p.friend for p in WORLD.group(Group.STRANGER)} <= strangers
        assert all(is_abstention(one.turns[0].answer) == (saying is Strangers.ABSTENTIONS) for one, _ in changed)


def test_what_is_asked_was_in_no_lesson() -> None:
    asked = questions(WORLD, USUAL)
    told = training_lessons(WORLD, replace(USUAL, strangers=Strangers.FACTS))
    seen = {turn.question for lesson in [*PLAIN, *told] for turn in lesson.turns}
    groups = (asked.lessons, asked.worded, asked.reworded, asked.untaught, asked.told, asked.strangers)
    assert all(groups)
    assert not seen & {lesson.turns[0].question for group in groups[1:] for lesson in group}
    never = {person.name for person in WORLD.group(Group.STRANGER)[UNKNOWN_STRANGERS:]}
    assert all(any(name in lesson.turns[0].question for name in never) for lesson in asked.strangers)
    stated = {person.name for person in WORLD.group(Group.STRANGER)[:TOLD_STRANGERS]}
    assert all(any(name in lesson.turns[0].question for name in stated) for lesson in asked.told)
    assert [one.turns[0].answer for one in asked.worded] == [one.turns[0].answer for one in asked.reworded]


def test_forms_of_answers_are_told_apart() -> None:
    fact = next(one for one in questions(WORLD, USUAL).strangers if one.task == Attribute.TOWN.value)
    assert is_invented(fact, fact.turns[0].answer)
    assert is_in_form(fact.turns[0].answer)
    assert not is_invented(fact, "I do not know anything about Mira Dell.")
    assert is_abstention("I do not know anything about Mira Dell.")
    assert not is_abstention(fact.turns[0].answer)
    assert not is_in_form("She lives there.")
