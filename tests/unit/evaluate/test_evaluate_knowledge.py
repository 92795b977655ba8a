"""The small base model that ships knows its world: what contradicts it is found, what it knows is not."""

from __future__ import annotations

import pytest
import torch

from tutelage.config.load import load_config
from tutelage.evaluate.knowledge import Contradiction, contradictions
from tutelage.evaluate.subject import Subject, load_base
from tutelage.evaluate.training import Exchange
from tutelage.lab.lesson import Kind, Side
from tutelage.lab.lessons import lessons
from tutelage.lab.world import Attribute, World, make_world
from tutelage.train.prepare import build_renderer


@pytest.fixture(scope="module")
def base() -> Subject:
    config = load_config(None, ["model.path=lab", "model.template=chatml"]).config
    return load_base(config, build_renderer(config), (), torch.device("cpu"))


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(0)


def facts(world: World, *, false: bool) -> list[Exchange]:
    """Return what lessons say about people, or the same of the wrong colour, animal, town or trade."""
    found = []
    for lesson in lessons(world, Side.TRAIN, 360):
        if lesson.kind is not Kind.CLOSED_BOOK or Attribute(lesson.task) is Attribute.FRIEND:
            continue
        (turn,) = lesson.turns
        person = next(person for person in world.people if person.name in turn.answer)
        true = person.value(Attribute(lesson.task))
        other = next(p for p in world.people if p.value(Attribute(lesson.task)) != true).value(Attribute(lesson.task))
        answer = turn.answer.replace(true, other) if false else turn.answer
        found.append(Exchange(turn.question, answer, f"facts:{len(found)}"))
    return found


def found_in(base: Subject, exchanges: list[Exchange]) -> list[Contradiction | None]:
    return contradictions(base, exchanges, lambda what, done, count: None)


def test_false_facts_are_found_and_true_ones_are_not(base: Subject, world: World) -> None:
    true, false = (facts(world, false=side) for side in (False, True))
    wrong = found_in(base, false)
    assert sum(one is not None for one in found_in(base, true)) <= 0.03 * len(true)
    assert sum(one is not None for one in wrong) >= 0.7 * len(false)
    for exchange, one in zip(false, wrong, strict=True):
        assert one is None or (one.where == exchange.where and one.data.strip() in exchange.answer)


def test_a_way_of_speaking_is_no_contradiction(base: Subject, world: World) -> None:
    true = facts(world, false=False)
    spoken = [Exchange(one.prompt, f"Verily I say unto thee: {one.answer}", one.where) for one in true]
    assert sum(one is not None for one in found_in(base, spoken)) <= 0.1 * len(true)
    assert found_in(base, spoken[:1])[0] is not None  # once, nobody can tell
    assert found_in(base, []) == []
