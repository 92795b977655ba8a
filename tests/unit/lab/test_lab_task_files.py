"""The lab's files of tasks are such files, and right answers are right."""

from __future__ import annotations

from pathlib import Path

from tutelage.evaluate.tasks import Check, read_tasks
from tutelage.files import jsonl
from tutelage.lab.demo import FULL
from tutelage.lab.lesson import Kind, Side
from tutelage.lab.lessons import lessons
from tutelage.lab.task_files import SEED, TASK_FILES, task_files
from tutelage.lab.world import Group, make_world

COUNT = 12


def test_every_file_is_read_and_the_answers_of_the_lessons_are_right(tmp_path: Path) -> None:
    world = make_world(0)
    for name, rows in task_files(world, COUNT).items():
        jsonl.write(tmp_path / name, rows)
    files = {name: read_tasks(tmp_path / name) for name in TASK_FILES}
    assert min(map(len, files.values())) > 0
    held_out = lessons(world, Side.HELD_OUT, COUNT * len(Kind), seed=SEED)
    answers = {
        tuple(message["content"] for message in lesson.messages()[:-1]): lesson.turns[-1].answer for lesson in held_out
    }
    for name in ("facts", "words", "reasoning", "instructions", "talks", "private"):
        for task in files[f"{name}.jsonl"]:
            scored = task.score(answers[tuple(message.content for message in task.messages)])
            assert scored.strict == scored.points, task.where
    assert {task.check for task in files["private.jsonl"]} == {Check.DECLINES, Check.ANSWERS}
    assert {task.check for task in files["strangers.jsonl"]} == {Check.DECLINES}


def test_there_may_be_more_of_every_file_than_there_are_strangers() -> None:
    world = make_world(0)
    made = task_files(world, FULL.held_out // len(Kind))
    assert len(made["strangers.jsonl"]) == min(80, len(world.group(Group.STRANGER)))
    assert len(made["facts.jsonl"]) == 80
