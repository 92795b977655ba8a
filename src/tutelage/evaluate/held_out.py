"""What a model is asked of the held-out data and of the files of tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice, zip_longest
from pathlib import Path

from tutelage.chat.rendered import Rendered
from tutelage.chat.tokenizer import ChatTokenizer
from tutelage.config.schema import Config
from tutelage.data.conversation import Message, Role
from tutelage.data.order import permutation
from tutelage.data.retrieve import Retriever, open_retriever
from tutelage.evaluate.observe import Task
from tutelage.evaluate.tasks import ScorableTask, read_tasks
from tutelage.evaluate.training import content_of

DOCUMENTS_OF_A_SOURCE = 1000
"""Held-out documents, and as many trained ones, that are read of each source."""


def scorable_tasks(config: Config) -> dict[str, list[ScorableTask]]:
    """Return the tasks of each file of `evaluate.tasks`, by its name, as they are asked.

    Raises: DataError for a file that cannot be read as tasks.
    """
    retriever = open_retriever(config.data.retrieve) if config.evaluate.tasks else None
    return {path.name: _as_asked(read_tasks(path), retriever) for path in map(Path, config.evaluate.tasks)}


def _as_asked(tasks: list[ScorableTask], retriever: Retriever | None) -> list[ScorableTask]:
    """Return tasks with the passages that rows get: those rows that are held out have theirs from preparation."""
    if retriever is None:
        return tasks
    return [replace(task, messages=retriever.for_use(task.messages)) for task in tasks]


def by_source(documents: Sequence[Rendered]) -> dict[str, Sequence[Rendered]]:
    """Return documents that are supervised by source, of each at most a thousand, by chance."""
    found: dict[str, list[Rendered]] = {}
    for index in permutation(len(documents), 0, 0):
        document = documents[int(index)]
        of_source = found.setdefault(document.source, [])
        if len(of_source) < DOCUMENTS_OF_A_SOURCE and document.supervised_tokens:
            of_source.append(document)
    return {source: of_source for source, of_source in sorted(found.items()) if of_source}


def held_out_tasks(
    trained: Collection[str], held_out: Mapping[str, Sequence[Rendered]], tokenizer: ChatTokenizer, count: int
) -> list[Task]:
    """Return the prompts of held-out conversations, of sources in turn, with the data's own answers.

    Where there are sources that nothing is trained on, they alone are asked: what they say is the standard, and the rest of a source
    that is trained on may share its faults.
    """
    asked = {name: [one for one in of if _is_asked(one)] for name, of in held_out.items()}
    separate = {name: of for name, of in asked.items() if of and name not in trained}
    in_turn = chain.from_iterable(zip_longest(*(separate or asked).values()))
    return [_task(document, tokenizer) for document in islice((one for one in in_turn if one is not None), count)]


def _is_asked(document: Rendered) -> bool:
    """Whether a document is a whole conversation that somebody asks in words and the assistant answers."""
    return (
        document.stage == 0
        and Role.USER in document.roles[: _first_answer(document)]
        and Role.TOOL not in document.roles
    )


def _first_answer(document: Rendered) -> int:
    """Return the number of the first message of the assistant, or how many messages there are."""
    roles = list(document.roles)
    return roles.index(Role.ASSISTANT, 1) if Role.ASSISTANT in roles[1:] else 0


def _task(document: Rendered, tokenizer: ChatTokenizer) -> Task:
    first = _first_answer(document)
    said = [content_of(document, number, tokenizer) for number in range(first + 1)]
    messages = (Message(Role(role), text) for role, text in zip(document.roles, said[:first], strict=False))
    return Task(tuple(messages), said[first].strip(), document.where)
