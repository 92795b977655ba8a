"""What is asked when data are made: prompts from a file, each with its answer or constraints where the row has some.

A row is a task as `tutelage eval --tasks` reads it, an example of any layout that training reads (its last answer is then the one to
compare with), or a prompt alone. Two columns more are understood: `candidates`, answers that somebody has sampled already, and
`licence`. A row made here before has an `id`, by which what is made of it knows its parent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tutelage.data.conversation import Conversation, Json, Message, Role, content_hash
from tutelage.data.formats import guess_kind, parse_row
from tutelage.data.lines import iter_lines
from tutelage.data.reasons import RowError
from tutelage.data.strict_json import parse_json_bytes
from tutelage.errors import DataError
from tutelage.evaluate.tasks import Check, ScorableTask, task_of

_LAYOUTS = "docs/how-to/generate.md has the layouts"
_TASK_COLUMNS = ("answer", "instruction_id_list", "declines")
_EXAMPLES = ("messages", "sharegpt", "alpaca", "prompt_completion")


@dataclass(frozen=True)
class Prompt:
    """A prompt and where it stands; `task` is None for one without anything to compare an answer with."""

    id: str
    messages: tuple[Message, ...]
    where: str
    task: ScorableTask | None = None
    candidates: tuple[str, ...] = ()
    licence: str | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a JSON-lines file, in order; a prompt that stands in it twice is taken once.

    Raises: DataError, with the line, for a row that has none.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", mend="give a JSON-lines file of prompts")
    prompts: dict[str, Prompt] = {}
    for line in iter_lines(path):
        where = f"{path}:{line.number}"
        try:
            if line.problem is not None:
                raise line.problem
            if line.data.strip():
                prompt = _prompt(parse_json_bytes(line.data), where)
                prompts.setdefault(prompt.id, prompt)
        except KeyError as error:
            raise DataError(f"{where}: {error.args[0]!r} is missing", mend=_LAYOUTS) from None
        except (RowError, TypeError, ValueError) as error:
            raise DataError(f"{where} has no prompt that can be asked: {error}", mend=_LAYOUTS) from None
    if not prompts:
        raise DataError(f"{path} has no row", mend=_LAYOUTS)
    return list(prompts.values())


def _prompt(row: Json, where: str) -> Prompt:
    if not isinstance(row, Mapping):
        raise TypeError("a JSON object was expected")
    messages, task = _asked(row, where)
    if not messages or messages[-1].role is Role.ASSISTANT:
        raise ValueError("it ends with an answer and not with a question")
    known_id, licence = row.get("id"), row.get("licence", row.get("license"))
    return Prompt(
        id=known_id if isinstance(known_id, str) and known_id else prompt_id(messages),
        messages=messages,
        where=where,
        task=task,
        candidates=_candidates(row.get("candidates", [])),
        licence=licence if isinstance(licence, str) else None,
    )


def prompt_id(messages: Sequence[Message]) -> str:
    """Return the hash of what is asked."""
    return content_hash([[str(message.role), message.content] for message in messages])


def number_of(prompt: Prompt) -> int:
    """Return 64 bits that stand for a prompt wherever chance is drawn for it."""
    return int(content_hash(prompt.id)[:16], 16)


def _asked(row: Mapping[str, Any], where: str) -> tuple[tuple[Message, ...], ScorableTask | None]:
    if any(column in row for column in _TASK_COLUMNS) and "choices" not in row:
        task = task_of(row, where)
        return task.messages, task
    kind = guess_kind(row)
    if kind in _EXAMPLES and not _ends_with_question(row):
        record = parse_row(row, kind)
        assert isinstance(record, Conversation)  # every one of these layouts is
        last = max(number for number, message in enumerate(record.messages) if message.role is Role.ASSISTANT)
        asked, answer = record.messages[:last], record.messages[last].content
        return asked, ScorableTask(asked, Check.EXACT, where, expected=answer)
    task = task_of({**row, "declines": False}, where)  # read as one that wants any answer, for its messages alone
    return task.messages, None


def _ends_with_question(row: Mapping[str, Any]) -> bool:
    messages = row.get("messages")
    return isinstance(messages, list) and bool(messages) and messages[-1].get("role") == "user"


def _candidates(value: Json) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError("`candidates` must be a list of texts")
    return tuple(value)


def checked_by(prompt: Prompt, check: Check) -> Prompt:
    """Return `prompt` with its answers compared in another way."""
    return prompt if prompt.task is None else replace(prompt, task=replace(prompt.task, check=check))
