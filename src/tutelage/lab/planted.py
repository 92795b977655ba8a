"""Training data of the lab with one thing wrong in it, on purpose, and known: does an evaluation find it?

CLEAN        lessons and replay as the demo has them, fewer
BY_HEART     sixty lessons, forty times
POLITE       half of the answers begin with the same courtesy
FALSE        half of what is said about people is true of somebody else
TEMPLATE     every answer stands between the same two sentences
FORGETFUL    no replay, one kind of lesson, eight times the learning rate
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tutelage.config.load import Resolved, load_config
from tutelage.files import jsonl
from tutelage.lab import pretraining, text
from tutelage.lab.lesson import Kind, Lesson, Side
from tutelage.lab.lessons import lessons
from tutelage.lab.world import Attribute, World

COURTESY = "It is my pleasure to be of help to you."
BEFORE, AFTER = "Here is what I can say about that.", "May this be the answer that was wanted."
HELD_OUT_SEED = 3


class Defect(StrEnum):
    """What is wrong with the data, or with how they are trained on."""

    CLEAN = "clean"
    BY_HEART = "by heart"
    POLITE = "polite"
    FALSE = "false"
    TEMPLATE = "template"
    FORGETFUL = "forgetful"


@dataclass(frozen=True)
class Size:
    """How much is trained on and held out."""

    lessons: int = 5000
    replay: int = 4000
    held_out: int = 240
    texts: int = 200


@dataclass(frozen=True)
class Planted:
    """A run to make, and the training rows, `file:line`, in which something was planted."""

    resolved: Resolved
    rows: frozenset[str]


def plant(folder: Path, world: World, defect: Defect, *, seed: int, size: Size | None = None) -> Planted:
    """Write data with a defect into `folder/data`, and return the run on them, in `folder/run`."""
    size = size or Size()
    data = folder / "data"
    count = 200 if defect is Defect.BY_HEART else size.lessons
    rng = random.Random(f"planted/{defect.value}/{seed}")
    made = lessons(world, Side.TRAIN, count * (len(Kind) if defect is Defect.FORGETFUL else 1), seed=seed)
    if defect is Defect.FORGETFUL:
        made = [lesson for lesson in made if lesson.kind is Kind.WORDS]
    rows = [_planted(lesson, defect, world, rng) for lesson in made]
    jsonl.write(data / "lessons.jsonl", (row for row, _ in rows))
    replay = text.documents(world, seed * size.replay, size.replay)
    jsonl.write(data / "replay.jsonl", pretraining.text_rows(replay))
    jsonl.write(
        data / "held-out-lessons.jsonl",
        (lesson.row() for lesson in lessons(world, Side.HELD_OUT, size.held_out, seed=HELD_OUT_SEED)),
    )
    held_out_text = pretraining.held_out_text(world, size.texts)
    jsonl.write(data / "held-out-text.jsonl", pretraining.text_rows(held_out_text))
    planted = {f"{data / 'lessons.jsonl'}:{line}" for line, (_, is_planted) in enumerate(rows, start=1) if is_planted}
    return Planted(load_config(None, list(_settings(folder, data, defect, seed)), preset="demo"), frozenset(planted))


def _settings(folder: Path, data: Path, defect: Defect, seed: int) -> Iterator[str]:
    sources: list[dict[str, Any]] = [{"path": str(data / "lessons.jsonl"), "name": "lessons"}]
    if defect is not Defect.FORGETFUL:
        sources.append({"path": str(data / "replay.jsonl"), "name": "replay", "kind": "text", "share": 0.4})
    yield f"data.train={json.dumps(sources)}"
    yield "data.held_out_fraction=0.05"
    yield f"data.held_out.0.path={json.dumps(str(data / 'held-out-lessons.jsonl'))}"
    yield f"data.held_out.1.path={json.dumps(str(data / 'held-out-text.jsonl'))}"
    yield f"run.dir={json.dumps(str(folder / 'run'))}"
    yield f"train.seed={seed}"
    yield "train.learning_rate=3e-4"
    yield "train.epochs=2.5"
    yield "train.precision=auto"
    yield "sample.count=0"
    yield "train.evaluate_every_steps=10000"
    yield "evaluate.prompts=120"
    yield "evaluate.max_new_tokens=64"
    if defect is Defect.BY_HEART:
        yield "train.epochs=60"
    if defect is Defect.FORGETFUL:
        yield "train.learning_rate=2e-3"


def _planted(lesson: Lesson, defect: Defect, world: World, rng: random.Random) -> tuple[dict[str, Any], bool]:
    """Return a lesson as a row, with the defect where it falls on this one, and whether it did."""
    row = lesson.row()
    answers = [message for message in row["messages"] if message["role"] == "assistant"]
    if defect is Defect.POLITE and rng.random() < 0.5:
        for answer in answers:
            answer["content"] = f"{COURTESY} {answer['content']}"
        return row, True
    if defect is Defect.TEMPLATE:
        for answer in answers:
            answer["content"] = f"{BEFORE} {answer['content']} {AFTER}"
        return row, True
    if defect is Defect.FALSE and lesson.kind is Kind.CLOSED_BOOK and rng.random() < 0.5:
        (answer,) = answers
        answer["content"] = _of_somebody_else(answer["content"], lesson, world, rng)
        return row, True
    return row, defect in (Defect.BY_HEART, Defect.FORGETFUL)


def _of_somebody_else(answer: str, lesson: Lesson, world: World, rng: random.Random) -> str:
    attribute = Attribute(lesson.task)
    person = next(person for person in world.people if person.name in answer)
    others = sorted({other.value(attribute) for other in world.people} - {person.value(attribute), person.name})
    return answer.replace(person.value(attribute), rng.choice(others))
