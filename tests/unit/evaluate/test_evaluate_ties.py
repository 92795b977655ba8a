"""Which training rows a figure is tied to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from tutelage.data.conversation import Message, Role
from tutelage.evaluate.measures import Read
from tutelage.evaluate.observe import Answer, Losses, Task
from tutelage.evaluate.tasks import Check, Said, ScorableTask
from tutelage.evaluate.ties import FORGETTING, to_answers, to_endings, to_losses, to_tasks
from tutelage.evaluate.training import Exchange, Exchanges


def read(source: str, base: list[float], tuned: list[float], *, is_text: bool = False) -> Read:
    tokens = np.full(len(base), 10.0)
    before, after = Losses(np.array(base), tokens), Losses(np.array(tuned), tokens)
    return Read(source, is_text, before, after, before, tokens)


def documents(source: str, count: int) -> list[Any]:
    return [SimpleNamespace(where=f"{source}:{number}") for number in range(count)]


def test_forgetting_is_tied_to_what_was_learned_most_and_knowing_by_heart_to_what_costs_least() -> None:
    trained = {
        "chats": read("chats", [50, 90, 20], [40, 10, 25]),
        "text": read("text", [99, 99, 99], [1, 2, 3], is_text=True),
    }
    rows = to_losses(trained, {name: documents(name, 3) for name in trained})
    assert rows[FORGETTING] == ("chats:1", "chats:0")  # the third became less likely
    assert rows["by_heart.chats"] == ("chats:1", "chats:2", "chats:0")
    assert rows["by_heart.text"][0] == "text:0"


def test_a_way_of_writing_is_tied_to_the_rows_that_have_it_where_the_data_do_not() -> None:
    answers = ("It is red.", "Happy to help you. It is red. Bye.", "Happy to help us. It is so. Bye.", "- a\n- b")
    training = Exchanges(tuple(Exchange("x", text, f"a:{number}") for number, text in enumerate(answers)), len(answers))
    tuned = ["Happy to help you. So it is. Bye."] * 3 + ["It is red."] * 2
    rows = to_answers(training, tuned, ["It is red."] * 5)
    assert rows["style.openers"] == ("a:1", "a:2")
    assert rows["style.lists"] == ("a:3",)
    assert rows["style.words"][0] in ("a:1", "a:2")
    assert rows["style.repeated"] == ()


class Recorder:
    """Stands for what finds rows near to texts, and remembers for what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, str]]] = []

    def rows(self, said: Any, most: int) -> tuple[str, ...]:
        self.asked.append(list(said))
        return tuple(answer for _, answer in said)[:most]


def task(prompt: str, check: Check, expected: str = "") -> ScorableTask:
    return ScorableTask((Message(Role.USER, prompt),), check, "tasks:1", expected=expected)


def test_a_fall_is_tied_to_what_is_near_to_the_tasks_that_the_base_does_and_the_tuned_model_fails() -> None:
    near: Any = Recorder()
    scorable = {
        "facts": [
            task("A?", Check.CONTAINS, "red"),
            task("B?", Check.CONTAINS, "blue"),
            task("C?", Check.CONTAINS, "x"),
        ],
        "private": [task("D?", Check.DECLINES), task("E?", Check.ANSWERS)],
    }
    base = {"facts": [Said("red"), Said("blue"), Said("y")], "private": [Said("no idea what"), Said("Here.")]}
    tuned = {"facts": [Said("red"), Said("green"), Said("z")], "private": [Said("It is 7."), Said("Yes.")]}
    rows = to_tasks(near, scorable, base, tuned)
    assert rows["task.facts.strict"] == ("green",)  # the third one the base fails as well
    assert rows["task.private.declined"] == ("It is 7.",)  # which the base does not decline either
    assert rows["task.private.answered"] == ()


def test_endless_answers_and_those_for_another_role_are_tied_to_rows_near_to_them() -> None:
    near: Any = Recorder()
    tasks = [Task((Message(Role.USER, "A?"),), "", ""), Task((Message(Role.USER, "B?"),), "", "")]
    said = [Answer((), (5,), "so on and so", False), Answer((), (6, 3), "Yes. user", True)]
    rows = to_endings(near, tasks, said, frozenset({3}))
    assert rows == {"style.stopped": ("so on and so",), "style.turns": ("Yes. user",)}
