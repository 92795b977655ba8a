"""Going back to before a stretch of steps that could not be taken, and past it.

The weights may have been led astray by the steps between those that were left out. So the run returns to its newest whole checkpoint before
the first of them, takes the steps from there anew up to that one, and passes over all from the first to the last. What was written and
saved of the steps that are undone goes; the line in `incidents.jsonl` keeps what happened.

A run that is killed after going back resumes from that same checkpoint, meets the same steps, and decides the same; every later
checkpoint carries the decision with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tutelage.errors import TrainingError
from tutelage.files import jsonl
from tutelage.files.atomic import remove_folder
from tutelage.files.rundir import RunDir
from tutelage.parallel import agree
from tutelage.train.checkpoint import RunState, load_checkpoint
from tutelage.train.guard import RollBack
from tutelage.train.look import Look, Progress
from tutelage.train.resume import agreed_checkpoint
from tutelage.train.stop import Improvement


def is_passed_over(state: RunState, step: int) -> bool:
    """Whether a roll-back passed over `step`."""
    return any(past.first <= step <= past.last for past in state.rolled_back)


def roll_back(look: Look, progress: Progress, step: int, reason: str) -> None:
    """Take the run back to before the steps that were left out lately, of which `step` was one too many; every rank takes part.

    `progress` is then that of a run that was resumed there: the looks at the model that are due are to be repeated.

    Raises:
        TrainingError: it may not go back (again), or has no checkpoint to go back to.
    """
    rule, run, state = look.scene.config.train.guard, look.journal.run, progress.state
    left_out = state.watched.left_out
    several = f"step {step} could not be taken: {reason}. It is the {len(left_out)}. of {step + 1 - left_out[0]} steps"
    if len(state.rolled_back) >= rule.roll_back:
        raise TrainingError(
            several,
            mend="look at the rows in incidents.jsonl; lower train.learning_rate, keep train.clip_grad_norm above 0, or let "
            "train.guard.roll_back pass over them",
        )
    look.saver.settle()
    folder = agreed_checkpoint(look.journal, look.narrator, before=left_out[0])
    if folder is None:
        raise TrainingError(
            f"{several}, and there is no checkpoint from before step {left_out[0]} to go back to",
            mend="train.checkpoint_every_steps keeps some, train.keep_checkpoints keeps more of them",
        )
    back = load_checkpoint(folder, look.scene.model, look.scene.optimiser)
    past = RollBack(to=back.step, first=left_out[0], last=step)
    if agree.is_main():
        undone = _lines_of(run, left_out)
        for later in run.checkpoint_steps():
            if later > back.step:
                remove_folder(run.checkpoint(later))
    agree.barrier()
    look.journal.forget_after(back.step, rolled_back=len(state.rolled_back))
    if agree.is_main():
        look.journal.incident(_line(past, number=len(state.rolled_back) + 1, reason=reason, undone=undone))
    look.narrator.say(
        f"{several}: back to the checkpoint of step {back.step}, and on without the steps {past.first} to {past.last}"
    )
    improvement = _still_best(state.improvement, back.improvement)
    progress.state = replace(back, rolled_back=(*state.rolled_back, past), improvement=improvement)
    look.saver.saved_step = back.step


def _lines_of(run: RunDir, steps: Sequence[int]) -> list[dict[str, Any]]:
    return [line for line in jsonl.read(run.incidents) if line["step"] in steps and "roll_back" not in line]


def _line(past: RollBack, *, number: int, reason: str, undone: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "step": past.last,
        "reason": f"too many steps were left out: {reason}",
        "roll_back": number,
        "to_step": past.to,
        "passed_over": [past.first, past.last],
        "left_out": list(undone),
    }


def _still_best(now: Improvement, then: Improvement) -> Improvement:
    """Return how the held-out loss stands after going back: the best weights that are on the disk stay the best."""
    return Improvement(now.best_loss, now.best_step, then.evaluations_since)
