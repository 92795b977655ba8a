"""What the gate asks while a model trains: held-out prompts for its style, tasks that code can score for its instructions.

`style` compares habits of the answers with those of the held-out rows' own answers to the same prompts, cut at the same length:

repeats       runs of four words that stood in the answer before
begin_alike   two answers have the same first three words
end_alike     two answers have the same last three words

Over-politeness and templates show in the last two, loops in the first. No list of words is known here. Answers that do not end by
themselves are not watched: a model that has not learned yet to end them does so too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import TypeVar

from tutelage.chat.render import Renderer
from tutelage.config.schema import Config
from tutelage.errors import ConfigError
from tutelage.evaluate import style
from tutelage.evaluate.held_out import by_source, held_out_tasks, scorable_tasks
from tutelage.evaluate.observe import Asked, Task
from tutelage.evaluate.tasks import Check, ScorableTask
from tutelage.train.prepare import Prepared
from tutelage.train.probe import Habit, Probed
from tutelage.train.sample import Prompt, Sample

T = TypeVar("T", bound=Asked)

LOOKED_THROUGH = 4
"""For each prompt that is wanted, how many held-out conversations are looked at for one that leaves room to answer."""


@dataclass(frozen=True)
class AnswerProbe:
    """Prompts, and what their answers are held against.

    `references` are the data's own answers to the first prompts, `tasks` are what the others ask.
    """

    prompts: tuple[Prompt, ...]
    max_new_tokens: int
    references: tuple[str, ...]
    tasks: tuple[ScorableTask, ...]

    def judge(self, answers: Sequence[Sample]) -> Probed:
        """Return habits and points of the answers."""
        texts = [answer.answer.strip() for answer in answers]
        of_rows, of_tasks = texts[: len(self.references)], texts[len(self.references) :]
        scores = [task.score(text) for task, text in zip(self.tasks, of_tasks, strict=True)]
        points = sum(score.points for score in scores)
        return Probed(
            habits=_against(self.references, of_rows),
            right=sum(score.strict for score in scores) if points else None,
            points=points or None,
        )


def make_probe(config: Config, prepared: Prepared, context_tokens: int) -> AnswerProbe | None:
    """Return what the gate of `config` asks; None where it watches no answers.

    Units: `context_tokens` is the longest sequence, prompt and answer together, that the model is to see.

    Raises:
        ConfigError: there is too little to ask for a budget to mean something.
        DataError: a file of tasks cannot be read as such.
    """
    gate, renderer = config.train.gate, prepared.renderer
    if gate.style is None and gate.instruction is None:
        return None
    room = context_tokens - gate.max_new_tokens
    rows: list[tuple[Task, Prompt]] = []
    tasks: list[tuple[ScorableTask, Prompt]] = []
    if gate.style is not None:
        rows = _fitting(_held_out(config, prepared), renderer, room, gate.prompts)
        what = "held-out conversations that leave room to answer"
        _require_enough("style", gate.style, len(rows), what, "hold out more, with data.held_out")
    if gate.instruction is not None:
        tasks = _fitting(_in_words(config), renderer, room, gate.prompts)
        what = "tasks of evaluate.tasks that are answered in words"
        _require_enough("instruction", gate.instruction, len(tasks), what, "name a file of tasks in evaluate.tasks")
    return AnswerProbe(
        prompts=tuple(prompt for _, prompt in (*rows, *tasks)),
        max_new_tokens=gate.max_new_tokens,
        references=tuple(_cut(row.reference, renderer, gate.max_new_tokens) for row, _ in rows),
        tasks=tuple(task for task, _ in tasks),
    )


def _fitting(asked: Iterable[T], renderer: Renderer, room: int, count: int) -> list[tuple[T, Prompt]]:
    """Return the first of what is asked whose prompts are at most `room` tokens."""
    prompts = ((one, Prompt(tuple(one.messages), tuple(renderer.prompt_ids(one.messages)))) for one in asked)
    return list(islice(((one, prompt) for one, prompt in prompts if len(prompt.ids) <= room), count))


def _held_out(config: Config, prepared: Prepared) -> list[Task]:
    """Return held-out conversations, as `tutelage eval` chooses them; more than are asked, as some may leave no room."""
    trained = prepared.sources[: len(config.data.train)]
    count = LOOKED_THROUGH * config.train.gate.prompts
    return held_out_tasks(trained, by_source(prepared.held_out), prepared.tokenizer, count)


def _in_words(config: Config) -> list[ScorableTask]:
    """Return the tasks of all files in turn, without choices: those are made by likelihood, and `tutelage eval` does so."""
    in_turn = chain.from_iterable(zip_longest(*scorable_tasks(config).values()))
    return [task for task in in_turn if task is not None and task.check is not Check.CHOICE]


def _require_enough(name: str, budget: float, count: int, what: str, mend: str) -> None:
    """Refuse a budget that one answer more or less would use up."""
    if budget * count < 1:
        raise ConfigError(
            f"train.gate.{name}={budget:g} asks for {math.ceil(1 / budget)} {what}, and there are {count}", mend=mend
        )


def _cut(reference: str, renderer: Renderer, max_new_tokens: int) -> str:
    """Return the data's own answer as it would stand if it had been given under the same limit."""
    ids = renderer.tokenizer.encode_text(reference)
    return reference if len(ids) < max_new_tokens else renderer.tokenizer.decode(ids[:max_new_tokens]).strip()


def _against(data: Sequence[str], model: Sequence[str]) -> dict[str, Habit]:
    """Return every habit of the model's answers beside that of the data's own; none without answers."""
    if not data:
        return {}
    own, others = _habits(model), _habits(data)
    return {name: Habit(own[name], others[name]) for name in own}


def _habits(texts: Sequence[str]) -> dict[str, float]:
    """Return the share of each habit in answers; one too short for a run of four words repeats none."""
    repeats = [style.repeated(text) for text in texts]
    return {
        "repeats": sum(again for again, _ in repeats) / max(1, sum(runs for _, runs in repeats)),
        "begin_alike": style.shared(texts, style.opener).value or 0.0,
        "end_alike": style.shared(texts, style.closer).value or 0.0,
    }
