"""What says how good an answer is: a check that the row itself brings, or a function of yours.

A score is a number, higher is better, or None where it cannot be told; it is never guessed.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tutelage.data.conversation import Message
from tutelage.errors import ConfigError, DataError
from tutelage.evaluate.tasks import Check
from tutelage.synthesize.prompts import Prompt, checked_by
from tutelage.verify.answer import final_number

Score: TypeAlias = Callable[[Prompt, str], float | None]


@dataclass(frozen=True)
class Scorer:
    """A way to score answers. One that `verifies` gives 1 to an answer that is right and less to any other."""

    name: str
    verifies: bool
    score: Score
    require: Callable[[Prompt], None] = lambda prompt: None


def _points(prompt: Prompt, answer: str) -> float | None:
    """Return the share of a row's own checks that an answer passes; None where none of them can be told."""
    assert prompt.task is not None  # `require` has seen to it
    scored = prompt.task.score(answer)
    return scored.strict / scored.points if scored.points else None


def _by(check: Check) -> Score:
    return lambda prompt, answer: _points(checked_by(prompt, check), answer)


def _needs(*checks: Check) -> Callable[[Prompt], None]:
    def require(prompt: Prompt) -> None:
        if prompt.task is None or prompt.task.check not in checks:
            found = "nothing" if prompt.task is None else str(prompt.task.check)
            raise DataError(
                f"{prompt.where} has {found} to check an answer by, and the scorer needs {' or '.join(checks)}",
                mend="choose another --scorer, or give rows with what it needs (docs/how-to/generate.md)",
            )

    return require


def _needs_number(prompt: Prompt) -> None:
    _needs(*_COMPARED)(prompt)
    assert prompt.task is not None
    if final_number(prompt.task.expected) is None:
        raise DataError(f"{prompt.where}: the answer has no number", mend="choose another --scorer")


_COMPARED = (Check.NUMBER, Check.EXACT, Check.CONTAINS)
_SCORERS = {
    "task": Scorer("task", True, _points, _needs(*_COMPARED, Check.CONSTRAINTS, Check.DECLINES, Check.ANSWERS)),
    "exact": Scorer("exact", True, _by(Check.EXACT), _needs(*_COMPARED)),
    "number": Scorer("number", True, _by(Check.NUMBER), _needs_number),
    "contains": Scorer("contains", True, _by(Check.CONTAINS), _needs(*_COMPARED)),
    "constraints": Scorer("constraints", True, _points, _needs(Check.CONSTRAINTS)),
}
SCORERS = tuple(_SCORERS)


def find_scorer(name: str) -> Scorer:
    """Return the scorer of a name in `SCORERS`, or the function that `module:function` names.

    The function takes the prompt as a list of {role, content}, the answer, and the right answer (None where the row has none), and
    returns a number, or None where it cannot tell.

    Raises: ConfigError when there is none.
    """
    if name in _SCORERS:
        return _SCORERS[name]
    module, _, function = name.partition(":")
    if not function:
        raise ConfigError(
            f"there is no scorer {name!r}", mend=f"use {', '.join(SCORERS)}, or module:function for one of your own"
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the scorer {name!r} cannot be loaded: {error}", mend="check the name; PYTHONPATH counts"
        ) from error
    return Scorer(name, False, lambda prompt, answer: _own(found, name, prompt, answer))


def _own(function: Callable[..., object], name: str, prompt: Prompt, answer: str) -> float | None:
    said = function(
        [_turn(message) for message in prompt.messages],
        answer,
        prompt.task.expected if prompt.task is not None else None,
    )
    if said is None:
        return None
    if not isinstance(said, int | float) or not math.isfinite(said):
        raise DataError(f"{prompt.where}: the scorer {name} returned {said!r}", mend="return a finite number, or None")
    return float(said)


def _turn(message: Message) -> dict[str, str]:
    return {"role": str(message.role), "content": message.content}
