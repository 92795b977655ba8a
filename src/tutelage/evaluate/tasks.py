"""Files of tasks that code can score: what stands in them, and whether an answer is right.

Each line is a JSON object, in one of these layouts:

    {"prompt": ..., "instruction_id_list": [...], "kwargs": [{...}, ...]}    constraints, as in IFEval
    {"question": ..., "answer": "... #### 42"}                               the number at the end, as in GSM8K
    {"prompt": ..., "answer": ..., "check": "exact"}                         or number, or contains
    {"question": ..., "choices": [...], "answer": 2}                         the likeliest choice, by its number or its text
    {"prompt": ..., "declines": true}                                        whether the answer declines

`question` and `prompt` mean the same; `messages` may stand in their place, up to the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tutelage.data.conversation import Message, Role
from tutelage.data.lines import iter_lines
from tutelage.data.reasons import RowError
from tutelage.data.strict_json import parse_json_bytes
from tutelage.errors import DataError
from tutelage.evaluate.observe import Chosen, Progress, answer_tasks, choose
from tutelage.evaluate.subject import Subject
from tutelage.verify import answer as answers
from tutelage.verify.constraints import CONSTRAINTS, loose, strict


class Check(StrEnum):
    """What decides whether an answer is right."""

    CONSTRAINTS = "constraints"
    NUMBER = "number"
    EXACT = "exact"
    CONTAINS = "contains"
    CHOICE = "choice"
    DECLINES = "declines"
    ANSWERS = "answers"


@dataclass(frozen=True)
class Scored:
    """Points of one answer out of how many, strictly and with the usual wrappings taken off; `unscored` could not be decided."""

    strict: int
    loose: int
    points: int
    unscored: int = 0


@dataclass(frozen=True)
class ScorableTask:
    """One task. `expected` is the right answer; of a choice, `choices` are the texts and `expected` one of them.

    `constraints` are pairs of an identifier and its settings.
    """

    messages: tuple[Message, ...]
    check: Check
    where: str
    expected: str = ""
    choices: tuple[str, ...] = ()
    constraints: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    def score(self, said: str) -> Scored:
        """Return what an answer is worth; a choice is worth a point where it is the text that is expected."""
        if self.check is Check.CONSTRAINTS:
            kept = [(strict(name, settings, said), loose(name, settings, said)) for name, settings in self.constraints]
            decided = [(bool(one), bool(other)) for one, other in kept if one is not None]
            points = sum(one for one, _ in decided), sum(other for _, other in decided)
            return Scored(*points, points=len(decided), unscored=len(kept) - len(decided))
        right = int(_RIGHT[self.check](said, self.expected))
        return Scored(right, right, 1)


_COMPARED = (Check.NUMBER, Check.EXACT, Check.CONTAINS)
_RIGHT: dict[Check, Callable[[str, str], bool]] = {
    Check.NUMBER: answers.same_number,
    Check.EXACT: answers.same_text,
    Check.CONTAINS: answers.contains,
    Check.CHOICE: str.__eq__,
    Check.DECLINES: lambda said, _: answers.declines(said),
    Check.ANSWERS: lambda said, _: bool(said.strip()) and not answers.declines(said),
}


def read_tasks(path: Path) -> list[ScorableTask]:
    """Return the tasks of a file.

    Raises: DataError, with the line, for one that is none; a file that cannot be read says so itself.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", mend="give a JSON-lines file of tasks")
    tasks = []
    for line in iter_lines(path):
        where = f"{path}:{line.number}"
        try:
            if line.problem is not None:
                raise line.problem
            if line.data.strip():
                tasks.append(task_of(parse_json_bytes(line.data), where))
        except (RowError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{where} is no task: {_problem(error)}", mend="docs/how-to/evaluate.md has the layouts"
            ) from None
    if not tasks:
        raise DataError(f"{path} has no task", mend="docs/how-to/evaluate.md has the layouts")
    return tasks


def _problem(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)


def task_of(row: Any, where: str) -> ScorableTask:
    """Return the task that one row holds.

    Raises: KeyError, TypeError or ValueError for one that holds none.
    """
    if not isinstance(row, dict):
        raise TypeError("a JSON object was expected")
    messages = _messages(row)
    if "instruction_id_list" in row:
        return ScorableTask(messages, Check.CONSTRAINTS, where, constraints=_constraints(row))
    if "choices" in row:
        return _choice(row, messages, where)
    if "declines" in row:
        if not isinstance(row["declines"], bool):
            raise TypeError("`declines` must be true or false")
        return ScorableTask(messages, Check.DECLINES if row["declines"] else Check.ANSWERS, where)
    expected = row["answer"]
    if not isinstance(expected, str | int | float):
        raise TypeError("`answer` must be a text or a number")
    by_itself = Check.NUMBER if "####" in str(expected) or not isinstance(expected, str) else Check.EXACT
    check = Check(row.get("check", by_itself))
    if check not in _COMPARED:
        raise ValueError(f"`check` is {check}; beside `answer` it may be {', '.join(_COMPARED)}")
    if check is Check.NUMBER and answers.final_number(str(expected)) is None:
        raise ValueError("`answer` has no number")
    return ScorableTask(messages, check, where, expected=str(expected))


def _messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    if isinstance(row.get("messages"), list):
        return tuple(Message(Role(message["role"]), message["content"]) for message in row["messages"])
    asked = row["prompt"] if "prompt" in row else row["question"]
    if not isinstance(asked, str) or not asked.strip():
        raise TypeError("the prompt must be a text")
    return (Message(Role.USER, asked),)


def _constraints(row: Mapping[str, Any]) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    names, settings = row["instruction_id_list"], row["kwargs"]
    if unknown := sorted(set(names) - CONSTRAINTS.keys()):
        raise ValueError(f"there is no constraint {', '.join(unknown)}")
    if len(names) != len(settings):
        raise ValueError(f"{len(names)} constraints have {len(settings)} settings")
    for name, own in zip(names, settings, strict=True):
        strict(name, own, "x")  # settings that it does not have are a fault of the file, and not of the answer
    return tuple(zip(names, settings, strict=True))


def _choice(row: Mapping[str, Any], messages: tuple[Message, ...], where: str) -> ScorableTask:
    choices, right = row["choices"], row["answer"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
        raise TypeError("`choices` must be a list of at least two texts")
    if isinstance(right, int) and not isinstance(right, bool):
        if not 0 <= right < len(choices):
            raise ValueError(f"`answer` is {right}, and the choices are numbered from 0 to {len(choices) - 1}")
        right = choices[right]
    if right not in choices:
        raise ValueError("`answer` is none of the choices")
    return ScorableTask(messages, Check.CHOICE, where, expected=right, choices=tuple(choices))


@dataclass(frozen=True)
class Said:
    """What a model said to a task; where it chose, `brier` is the Brier score of its probabilities, from 0 to 2."""

    text: str
    brier: float | None = None


def answer_all(
    subject: Subject, tasks: Sequence[ScorableTask], progress: Progress, *, max_new_tokens: int
) -> list[Said]:
    """Return what a model says to every task: the likeliest choice where there are some.

    Source: of the score, Brier 1950, "Verification of forecasts expressed in terms of probability".
    """
    offered = [task for task in tasks if task.check is Check.CHOICE]
    free = [task for task in tasks if task.check is not Check.CHOICE]
    chosen = iter(choose(subject, offered, [task.choices for task in offered], progress))
    said = iter(answer_tasks(subject, free, progress, max_new_tokens=max_new_tokens))
    return [_said(task, next(chosen)) if task.check is Check.CHOICE else Said(next(said).text) for task in tasks]


def _said(task: ScorableTask, chosen: Chosen) -> Said:
    right = [choice == task.expected for choice in task.choices]
    return Said(chosen.text, sum((p - is_right) ** 2 for p, is_right in zip(chosen.probabilities, right, strict=True)))
