"""Whether reading helps where nothing is known: facts about people whom neither base nor training has met, with and without passages.

    python -m benchmarks.retrieval [--seeds 0 1 2] [--out runs/retrieval]

The lab's base model is trained on questions about people of a world that it has never read of, twice: with passages of a corpus about
these people before each question, and without. Then it is asked about people of yet another world, of whom there is a corpus and
nothing else. A corpus has a sentence for each fact, in one of many wordings. An answer is right when it names the value and no other of
its kind, and ends by itself. Intervals are Wilson's at 95 % over the answers of all seeds; the range beside them is that over the seeds,
each of which has its own people, rows and order.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.packing import table
from tutelage.chat.render import Renderer
from tutelage.chat.tokenizer import load_tokenizer
from tutelage.config.load import load_config
from tutelage.config.schema import ModelConfig, Retrieve
from tutelage.data.conversation import Message
from tutelage.data.retrieve import Retriever
from tutelage.files import jsonl
from tutelage.files.atomic import write_json, write_text
from tutelage.files.rundir import RunDir
from tutelage.generate.local import generate
from tutelage.intervals import wilson_interval
from tutelage.lab import pretraining, prose, text
from tutelage.lab.checkers import Names
from tutelage.lab.lesson import Kind, Lesson, Turn
from tutelage.lab.scoring import Completion, answer_lessons, asker, total
from tutelage.lab.tasks import QUESTIONS
from tutelage.lab.world import Attribute, Person, World, make_world, values_of
from tutelage.model.load import load_model
from tutelage.train.loop import train

TAUGHT_WORLD, ASKED_WORLD = 1000, 2000
"""Seeds of the worlds beyond the base's own; each seed of the benchmark takes the next."""
PEOPLE, ROWS, REPLAY, ASKED = 320, 6000, 2000, 240
RULE = {"passages": 2, "passage_words": 100}
FACTS = (Attribute.TOWN, Attribute.TRADE, Attribute.ANIMAL, Attribute.COLOUR)


@dataclass(frozen=True)
class Answered:
    """How a model was trained and asked, and how many of its answers were right."""

    trained_with: bool
    asked_with: bool
    seed: int
    correct: int
    total: int


def write_corpus(path: Path, people: Sequence[Person], rng: random.Random) -> None:
    """Write a sentence for each fact about each person."""
    jsonl.write(path, ({"text": prose.statement(rng, person, fact)} for person in people for fact in FACTS))


def people_of(world: World, known: Sequence[Person]) -> list[Person]:
    """Return people of a world whose names are not those of others."""
    taken = {person.name for person in known}
    return [person for person in world.people if person.name not in taken]


def questions(people: Sequence[Person], count: int, rng: random.Random) -> list[Lesson]:
    """Ask for facts."""
    return [question(rng.choice(people), attribute, rng) for attribute in rng.choices(FACTS, k=count)]


def question(person: Person, attribute: Attribute, rng: random.Random) -> Lesson:
    """Ask for one fact; the answer is its value."""
    value = person.value(attribute)
    rivals = tuple(other for other in values_of(attribute) if other != value)
    asked = rng.choice(QUESTIONS[attribute]).format(name=person.name)
    return Lesson(Kind.CLOSED_BOOK, attribute.value, (Turn(asked, f"That is {value}.", Names(value, rivals)),))


def run_seed(folder: Path, seed: int) -> list[Answered]:
    """Train with and without passages, and ask both with and without."""
    rng = random.Random(f"retrieval/{seed}")
    base = make_world(0)
    sizes = {"num_taught": PEOPLE, "num_read": 0, "num_strangers": 0}
    taught = people_of(make_world(TAUGHT_WORLD + seed, **sizes), base.people)
    strangers = people_of(make_world(ASKED_WORLD + seed, **sizes), [*base.people, *taught])
    data = folder / "data"
    write_corpus(data / "taught.jsonl", taught, rng)
    write_corpus(data / "strangers.jsonl", strangers, rng)
    jsonl.write(data / "questions.jsonl", (lesson.row() for lesson in questions(taught, ROWS, rng)))
    replay = text.documents(base, seed * REPLAY, REPLAY)
    jsonl.write(data / "replay.jsonl", pretraining.text_rows(replay))
    asked = questions(strangers, ASKED, rng)
    retriever = Retriever(str(data / "strangers.jsonl"), Retrieve(corpus=str(data / "strangers.jsonl"), **RULE))
    found = []
    for trained_with in (True, False):
        final = train_one(folder / ("with" if trained_with else "without"), data, seed, retrieve=trained_with)
        renderer = Renderer(load_tokenizer(final))
        ask = asker(load_model(ModelConfig(path=str(final))).model, renderer)

        def with_passages(
            conversations: Sequence[Sequence[Message]], ask: object = ask, own: Retriever = retriever
        ) -> Sequence[Completion]:
            assert callable(ask)
            answers: Sequence[Completion] = ask([own.for_use(conversation) for conversation in conversations])
            return answers

        for asked_with in (True, False):
            right = total(answer_lessons(asked, with_passages if asked_with else ask))
            found.append(Answered(trained_with, asked_with, seed, right.correct, right.total))
            print(found[-1], flush=True)
    return found


def train_one(folder: Path, data: Path, seed: int, *, retrieve: bool) -> Path:
    """Train one model and return its folder."""
    sources = [
        {"path": str(data / "questions.jsonl"), "name": "questions"},
        {"path": str(data / "replay.jsonl"), "name": "replay", "kind": "text", "share": 0.1},
    ]
    words = [
        f"data.train={json.dumps(sources)}",
        f"run.dir={json.dumps(str(folder))}",
        f"train.seed={seed}",
        "data.held_out=[]",
        "train.evaluate_every_steps=null",
        "train.learning_rate=1e-3",
        "train.epochs=2",
        "sample.count=0",
    ]
    if retrieve:
        words += [f"data.retrieve.corpus={json.dumps(str(data / 'taught.jsonl'))}"]
        words += [f"data.retrieve.{key}={value}" for key, value in RULE.items()]
    with RunDir.create(folder) as run:
        result = train(load_config(None, words, preset="demo"), run, generate=generate)
    assert result.final is not None
    return result.final


def report(found: Sequence[Answered]) -> str:
    """Return the table."""
    rows = []
    for trained_with, asked_with in dict.fromkeys((one.trained_with, one.asked_with) for one in found):
        own = [one for one in found if (one.trained_with, one.asked_with) == (trained_with, asked_with)]
        correct, count = sum(one.correct for one in own), sum(one.total for one in own)
        low, high = wilson_interval(correct, count)
        shares = [one.correct / one.total for one in own]
        rows.append(
            [
                "with passages" if trained_with else "without",
                "with passages" if asked_with else "without",
                f"{correct / count:.1%} ({correct}/{count})",
                f"{low:.1%} to {high:.1%}",
                f"{min(shares):.1%} to {max(shares):.1%}",
            ]
        )
    heads = ["trained", "asked about strangers", "right", "95 % interval", "range over seeds"]
    return table(heads, rows)


def main() -> None:
    """Run every seed and print the table; OUT/retrieval.md and OUT/retrieval.json have it too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/retrieval"))
    words = parser.parse_args()
    found: list[Answered] = []
    for seed in words.seeds:
        found += run_seed(words.out / f"seed-{seed}", seed)
        write_json(words.out / "retrieval.json", [vars(one) for one in found])
        write_text(words.out / "retrieval.md", report(found))
    print(report(found))


if __name__ == "__main__":
    main()
