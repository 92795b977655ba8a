"""Lessons: two sides that never meet, answers that their own checks accept, and files that can be read back."""

import json
from pathlib import Path

import pytest

from tutelage.config.schema import SourceConfig
from tutelage.data.conversation import Conversation
from tutelage.data.ledger import Ledger
from tutelage.data.sources import read_source
from tutelage.lab.checkers import check_from_json
from tutelage.lab.lesson import Kind, Side
from tutelage.lab.lessons import lessons, stranger_questions, transfer_questions, write_lessons
from tutelage.lab.world import Group, make_world

WORLD = make_world(0)
TRAIN = lessons(WORLD, Side.TRAIN, 3000)
HELD_OUT = lessons(WORLD, Side.HELD_OUT, 480)


def _text(lesson: object) -> str:
    return json.dumps(lesson.messages())  # type: ignore[attr-defined]


def test_lessons_are_the_same_for_the_same_seed_and_differ_for_another() -> None:
    assert lessons(WORLD, Side.TRAIN, 60) == TRAIN[:60]
    assert lessons(WORLD, Side.TRAIN, 60, seed=1) != TRAIN[:60]


def test_every_kind_has_as_many_lessons() -> None:
    counts = {kind: sum(lesson.kind is kind for lesson in HELD_OUT) for kind in Kind}
    assert set(counts.values()) == {80}


def test_every_check_accepts_the_answer_that_is_taught() -> None:
    for lesson in [*TRAIN, *HELD_OUT]:
        for turn in lesson.turns:
            assert turn.check.accepts(turn.answer), turn


def test_no_check_accepts_the_answer_of_another_lesson() -> None:
    for first, second in zip(HELD_OUT, HELD_OUT[6:], strict=False):
        if first.turns[-1].answer != second.turns[-1].answer and first.task == second.task == "letter":
            assert not first.turns[-1].check.accepts(second.turns[-1].answer)
    for lesson in HELD_OUT:
        for turn in lesson.turns:
            assert not turn.check.accepts("")
            assert not turn.check.accepts(turn.answer + " And so on.")
            assert not turn.check.accepts(turn.answer[:-2])


@pytest.mark.parametrize(("side", "group"), [(Side.TRAIN, Group.READ), (Side.HELD_OUT, Group.TAUGHT)])
def test_a_side_never_names_the_people_of_the_other(side: Side, group: Group) -> None:
    text = " ".join(_text(lesson) for lesson in (TRAIN if side is Side.TRAIN else HELD_OUT))
    assert not [person.name for person in WORLD.group(group) if person.name in text]
    assert not [person.name for person in WORLD.group(Group.STRANGER) if person.name in text]


def test_no_question_is_on_both_sides() -> None:
    train = {(lesson.system, *(turn.question for turn in lesson.turns)) for lesson in TRAIN}
    held_out = {(lesson.system, *(turn.question for turn in lesson.turns)) for lesson in HELD_OUT}
    assert len(train) == len(TRAIN)
    assert not train & held_out


def test_no_lesson_asks_for_food_but_the_transfer_questions_do() -> None:
    assert not [lesson for lesson in [*TRAIN, *HELD_OUT] if "food" in _text(lesson) or "eat" in _text(lesson).split()]
    for lesson in transfer_questions(WORLD, 20):
        (turn,) = lesson.turns
        assert turn.check.accepts(turn.answer)
        assert not turn.check.accepts(f"{turn.answer} Or perhaps cake, honey and soup.")


def test_stranger_questions_are_about_strangers_alone() -> None:
    strangers = {person.name for person in WORLD.group(Group.STRANGER)}
    asked = stranger_questions(WORLD, 20)
    assert all(any(name in lesson.turns[0].question for name in strangers) for lesson in asked)


def test_a_lesson_file_is_read_as_conversations_and_its_checks_come_back(tmp_path: Path) -> None:
    path = tmp_path / "lessons.jsonl"
    write_lessons(path, WORLD, Side.HELD_OUT, 60)
    records = read_source(SourceConfig(path=str(path)), Ledger(), max_bad_fraction=0.0)
    assert len(records) == 60
    for record, lesson, line in zip(records, HELD_OUT, path.read_text().splitlines(), strict=False):
        assert isinstance(record, Conversation)
        assert [message.content for message in record.messages] == [m["content"] for m in lesson.messages()]
        assert [check_from_json(row) for row in json.loads(line)["checks"]] == [turn.check for turn in lesson.turns]
