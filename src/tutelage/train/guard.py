"""Steps that must not be taken: the loss or the gradient is no number, or lies far above what it has been.

Such a step is left out on all ranks together: weights and moments stay as they were, and the documents of the step with what was measured
are written down. A run that leaves out too many goes back to before them and passes them over, if it may; otherwise it ends.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Guard
from tutelage.pack.plan import Step
from tutelage.train.step import StepResult

WINDOW_STEPS = 128
LEAST_STEPS = 32  # fewer say little about how far a step may lie from them


@dataclass(frozen=True)
class Watched:
    """The losses (nats per unit of weight) and gradient norms of the last steps taken, and which of the last steps were left out."""

    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    left_out: tuple[int, ...] = ()

    def fault(self, loss: float, grad_norm: float, rule: Guard) -> str | None:
        """Return why a step with these figures must not be taken; None if it may.

        Source of the rule for spikes: Walsh et al. 2025, "2 OLMo 2 Furious", arXiv 2501.00656, its trainer's skipped steps: six standard
        deviations above the mean of the last 128.
        """
        figures = (("loss", loss, self.losses), ("gradient norm", grad_norm, self.norms))
        for name, value, _ in figures:
            if not math.isfinite(value):
                return f"the {name} is not finite"
        for name, value, past in figures:
            if rule.spike_deviations and len(past) >= LEAST_STEPS:
                mean, deviation = statistics.fmean(past), statistics.pstdev(past)
                if value > mean + rule.spike_deviations * deviation:
                    return (
                        f"the {name} is {value:.4g}, more than {rule.spike_deviations:g} deviations of {deviation:.2g} "
                        f"above {mean:.4g}, the mean of the last {len(past)} steps"
                    )
        return None

    def after(self, result: StepResult, step: int) -> Watched:
        """Return what is known after `step`."""
        lately = tuple(number for number in self.left_out if number > step - WINDOW_STEPS)
        if result.left_out is not None:
            return Watched(self.losses, self.norms, (*lately, step))
        losses, norms = (*self.losses, result.loss), (*self.norms, result.grad_norm)
        return Watched(losses[-WINDOW_STEPS:], norms[-WINDOW_STEPS:], lately)

    def too_many(self, rule: Guard) -> bool:
        """Whether more of the last steps were left out than may be."""
        return len(self.left_out) > rule.left_out_steps


@dataclass(frozen=True)
class RollBack:
    """A return to the checkpoint of step `to`, from where the steps `first` to `last` are passed over."""

    to: int
    first: int
    last: int


def incident(
    result: StepResult, planned: Step, documents: Sequence[Rendered], *, step: int, run: Path
) -> dict[str, Any]:
    """Return the line of `incidents.jsonl` for a step that was left out, with the command that looks at it again, row by row."""
    return {
        "step": step,
        "reason": result.left_out,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "rows": rows_of(planned, documents),
        "command": f"tutelage replay {run} --step {step}",
    }


def rows_of(planned: Step, documents: Sequence[Rendered]) -> list[dict[str, Any]]:
    """Return the rows of a step as `incidents.jsonl` names them."""
    rows = [documents[index] for index in planned.documents]
    return [{"where": row.where, "id": row.record_id, "stage": row.stage, "tokens": len(row)} for row in rows]
