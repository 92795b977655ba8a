"""Whether advice before training is right: lab data whose right answer is known, read through the base that ships.

    python -m benchmarks.advice [--seeds 0 1 2] [--sets "facts about strangers" ...] [--facts 24] [--out runs/advice]

Each row is a kind of data: in how many sets the goal was told (behaviour, which means LoRA, or knowledge, which means full
fine-tuning), and in how many the risk that is in them stood first, or none stood where none is. Nothing is trained.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.packing import table
from tutelage.config.load import load_config
from tutelage.config.schema import Config
from tutelage.evaluate.advise import Goal, change_of, read_data
from tutelage.evaluate.advise_risks import data_risks
from tutelage.evaluate.training import exchanges_of
from tutelage.files import jsonl
from tutelage.files.atomic import write_text
from tutelage.intervals import wilson_interval
from tutelage.lab.lesson import Kind, Lesson, Side
from tutelage.lab.lessons import lessons
from tutelage.lab.planted import Defect, Size, plant
from tutelage.lab.tasks import PUBLIC, QUESTIONS, fact_turn
from tutelage.lab.world import Attribute, Person, World, make_world

ROWS = 600
PLANTED = Size(lessons=ROWS, replay=60, held_out=12, texts=10)
OTHER_WORLD = 1000
"""Seeds of worlds from here on are of people whom the base never read of."""


@dataclass(frozen=True)
class LabData:
    """A kind of data: how it is made, the goal that is right for it, and the risk that is in it, if any."""

    make: Callable[[Path, World, int], Config]
    goal: Goal
    risk: str | None


def _facts(people: Sequence[Person], rng: random.Random, attributes: Sequence[Attribute] = PUBLIC) -> Iterator[Lesson]:
    """Yield questions about facts of people, none twice."""
    asked: set[str] = set()
    while True:
        turn = fact_turn(rng, rng.choice(people), rng.choice(attributes))
        if turn.question not in asked:
            asked.add(turn.question)
            yield Lesson(Kind.CLOSED_BOOK, "fact", (turn,))


def _written(folder: Path, rows: Sequence[dict[str, Any]], seed: int) -> Config:
    path = folder / "rows.jsonl"
    jsonl.write(path, rows)
    words = [f"data.train.0.path={path}", "data.max_tokens=512", "model.template=chatml", f"train.seed={seed}"]
    return load_config(None, words).config


def _known(folder: Path, world: World, seed: int) -> Config:
    found = _facts(world.inhabitants, random.Random(f"known/{seed}"))
    return _written(folder, [lesson.row() for lesson in islice(found, ROWS)], seed)


def _strangers(folder: Path, world: World, seed: int) -> Config:
    other = make_world(OTHER_WORLD + seed)
    names = {person.name for person in world.people}
    people = [person for person in other.people if person.name not in names]
    found = _facts(people, random.Random(f"strangers/{seed}"))
    return _written(folder, [lesson.row() for lesson in islice(found, ROWS)], seed)


def _narrow(folder: Path, world: World, seed: int) -> Config:
    """Ask the same question about one person after another."""
    rng = random.Random(f"narrow/{seed}")
    attribute = rng.choice(PUBLIC)
    question = rng.choice(QUESTIONS[attribute])
    rows = []
    for person in rng.sample(world.inhabitants, min(ROWS, len(world.inhabitants))):
        turn = replace(fact_turn(rng, person, attribute), question=question.format(name=person.name))
        rows.append(Lesson(Kind.CLOSED_BOOK, "fact", (turn,)).row())
    return _written(folder, rows, seed)


def _copies(folder: Path, world: World, seed: int) -> Config:
    rng = random.Random(f"copies/{seed}")
    rows = [lesson.row() for lesson in lessons(world, Side.TRAIN, ROWS, seed=seed)]
    rows += rng.sample(rows, ROWS // 5)
    rng.shuffle(rows)
    return _written(folder, rows, seed)


def _few(folder: Path, world: World, seed: int) -> Config:
    return _written(folder, [lesson.row() for lesson in lessons(world, Side.TRAIN, 120, seed=seed)], seed)


def _planted(defect: Defect, folder: Path, world: World, seed: int) -> Config:
    return plant(folder, world, defect, seed=seed, size=PLANTED).resolved.config


SETS = {
    "clean lessons with replay": LabData(partial(_planted, Defect.CLEAN), Goal.BEHAVIOUR, None),
    "facts that the base knows": LabData(_known, Goal.BEHAVIOUR, None),
    "facts about strangers": LabData(_strangers, Goal.KNOWLEDGE, "unknown"),
    "half of the facts false": LabData(partial(_planted, Defect.FALSE), Goal.BEHAVIOUR, "otherwise"),
    "one form of question": LabData(_narrow, Goal.BEHAVIOUR, "narrow"),
    "one answer template": LabData(partial(_planted, Defect.TEMPLATE), Goal.BEHAVIOUR, "openers"),
    "half of the answers polite": LabData(partial(_planted, Defect.POLITE), Goal.BEHAVIOUR, "openers"),
    "a sixth copies": LabData(_copies, Goal.BEHAVIOUR, "duplicates"),
    "120 rows": LabData(_few, Goal.BEHAVIOUR, "few"),
}


@dataclass(frozen=True)
class Told:
    """What was told of one set of data, and whether that is right."""

    name: str
    seed: int
    goal: Goal
    risks: tuple[str, ...]

    @property
    def is_right_goal(self) -> bool:
        """Whether the goal, and with it the method, is right."""
        return self.goal is SETS[self.name].goal

    @property
    def is_right_risk(self) -> bool:
        """Whether the risk that is in the data stands first; where none is, whether none is told."""
        return next(iter(self.risks), None) == SETS[self.name].risk


def run_one(folder: Path, name: str, seed: int, *, facts: int) -> Told:
    """Make a set of data, let the base read it, and take down what is told."""
    config = SETS[name].make(folder, make_world(0), seed)
    read = read_data(config, device=torch.device("cpu"), progress=lambda what, done, count: None, most_facts=facts)
    exchanges = exchanges_of(read.prepared.documents, read.prepared.tokenizer).each
    risks = data_risks(exchanges, read.known)
    return Told(name, seed, change_of(read.known)[0], tuple(risk.key for risk in risks))


def report(told: Sequence[Told]) -> str:
    """Return the table, and below it what was told of every set."""
    rows = []
    for name in (*dict.fromkeys(one.name for one in told), "all"):
        own = [one for one in told if name in (one.name, "all")]
        known = SETS.get(name)
        rows.append(
            [
                name,
                _share([one.is_right_goal for one in own]),
                "" if known is None else known.risk or "none",
                _share([one.is_right_risk for one in own]),
            ]
        )
    lines = [f"- {one.name}, seed {one.seed}: {one.goal.value}; {', '.join(one.risks) or 'no risk'}" for one in told]
    return table(["data", "right goal", "risk in them", "right risk first"], rows) + "\n\n" + "\n".join(lines) + "\n"


def _share(right: Sequence[bool]) -> str:
    low, high = wilson_interval(sum(right), len(right))
    return f"{sum(right)} of {len(right)} ({low:.0%} to {high:.0%})"


def main() -> None:
    """Make every set and print the table; `OUT/advice.md` has it too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--facts", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("runs/advice"))
    words = parser.parse_args()
    told = []
    for seed in words.seeds:
        for name in words.sets:
            folder = words.out / f"{list(SETS).index(name)}-{seed}"
            told.append(run_one(folder, name, seed, facts=words.facts))
            print(report(told[-1:]).splitlines()[-1], flush=True)
            write_text(words.out / "advice.md", report(told))
    print(report(told))


if __name__ == "__main__":
    main()
