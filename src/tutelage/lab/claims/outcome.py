"""What is measured after a run: answers that checkers decide, losses, forgetting, speed. One file of figures for every run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from tutelage.lab.claims.learner import LESSONS, TEXT, WATCHED, Learned, learn, losses, of_source, on_prompts
from tutelage.lab.claims.material import is_abstention, is_in_form, is_invented, questions
from tutelage.lab.claims.measures import MEASURES
from tutelage.lab.claims.settings import Settings
from tutelage.lab.lesson import Kind, Lesson
from tutelage.lab.scoring import Answered, answer_lessons, asker, tally, total
from tutelage.lab.world import World

LONGEST_ANSWER_TOKENS = 64


def outcome(world: World, settings: Settings) -> dict[str, Any]:
    """Make a run and return its settings, its figures (None where there is nothing to measure) and its time in seconds."""
    began = time.perf_counter()
    learned = learn(world, settings)
    figures = {**_answers(world, settings, learned), **_losses(learned), "speed": _speed(learned)}
    return {
        "key": settings.key,
        "settings": vars(settings),
        "steps": learned.num_steps,
        "measures": {name: figures[name] for name in MEASURES},
        "seconds": time.perf_counter() - began,
    }


def _answers(world: World, settings: Settings, learned: Learned) -> dict[str, float | None]:
    ask = asker(learned.model, learned.prepared.renderer, max_new_tokens=LONGEST_ANSWER_TOKENS)
    asked = questions(world, settings)
    answered, worded, reworded, untaught, told, strangers = (
        answer_lessons(group, ask)
        for group in (asked.lessons, asked.worded, asked.reworded, asked.untaught, asked.told, asked.strangers)
    )
    by_kind = tally(answered, lambda lesson: lesson.kind.value)
    return {
        "right": total(answered).share,
        **{f"right.{kind.value}": by_kind[kind.value].share for kind in Kind},
        "facts": total([*worded, *reworded]).share,
        "facts.worded": total(worded).share,
        "facts.reworded": total(reworded).share,
        "untaught": total(untaught).share,
        "untaught.form": _share(untaught, lambda lesson, answer: is_in_form(answer)),
        "told": total(told).share,
        "invented": _share(strangers, is_invented),
        "abstained": _share(strangers, lambda lesson, answer: is_abstention(answer)),
        "abstained.known": _share([*worded, *reworded], lambda lesson, answer: is_abstention(answer)),
    }


def _share(answered: Sequence[Answered], holds: Callable[[Lesson, str], bool]) -> float | None:
    return sum(holds(one.lesson, one.answers[-1]) for one in answered) / len(answered) if answered else None


def _losses(learned: Learned) -> dict[str, float | None]:
    held_out = of_source(learned.prepared.held_out, WATCHED)
    trained = of_source(learned.prepared.documents[: len(held_out)], LESSONS)
    text_loss = losses(learned, of_source(learned.prepared.held_out, TEXT))
    answers, seen_answers = losses(learned, held_out), losses(learned, trained)
    prompts, seen_prompts = (losses(learned, [on_prompts(one) for one in side]) for side in (held_out, trained))
    return {
        "loss": answers,
        "gap": _less(answers, seen_answers),
        "prompts": seen_prompts,
        "prompts.gap": _less(prompts, seen_prompts),
        "forgetting": None if text_loss is None else text_loss / learned.text_loss_before - 1,
    }


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _speed(learned: Learned) -> float | None:
    return learned.read_tokens / learned.step_seconds if learned.step_seconds else None
