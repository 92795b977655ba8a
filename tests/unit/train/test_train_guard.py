from __future__ import annotations

import math

import pytest

from tutelage.config.schema import Guard
from tutelage.train.guard import LEAST_STEPS, WINDOW_STEPS, Watched
from tutelage.train.objective import LossSums, SourceTotals
from tutelage.train.step import StepResult

QUIET = tuple(2.0 + 0.1 * (-1) ** i for i in range(LEAST_STEPS))


def result(loss: float = 2.0, grad_norm: float = 1.0, left_out: str | None = None) -> StepResult:
    totals = SourceTotals(LossSums(loss * 10, 10.0, 3, 10), 12, 1)
    return StepResult({"source": totals}, {}, 10.0, 12, 12, 1, 1, grad_norm, 0.1, left_out)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_a_fault_from_the_first_step_on(value: float) -> None:
    assert Watched().fault(value, 1.0, Guard()) == "the loss is not finite"
    assert Watched().fault(1.0, value, Guard()) == "the gradient norm is not finite"
    assert Watched().fault(1.0, 1.0, Guard()) is None


@pytest.mark.parametrize(("loss", "norm", "named"), [(2.5, 2.0, None), (2.7, 2.0, "loss"), (2.0, 2.7, "gradient norm")])
def test_a_spike_is_a_fault_when_it_was_asked_for(loss: float, norm: float, named: str | None) -> None:
    watched, rule = Watched(QUIET, QUIET), Guard(spike_deviations=6.0)
    fault = watched.fault(loss, norm, rule)
    assert (fault is None) if named is None else (fault is not None and fault.startswith(f"the {named} is 2.7"))
    assert watched.fault(loss, norm, Guard()) is None
    assert Watched(QUIET[1:], QUIET[1:]).fault(loss, norm, rule) is None, "too few steps to tell a spike"


def test_steps_that_were_left_out_are_counted_and_do_not_move_the_mean() -> None:
    watched = Watched()
    for number in range(WINDOW_STEPS + 5):
        watched = watched.after(result(loss=float(number)), number + 1)
    assert watched.losses == tuple(float(number) for number in range(5, WINDOW_STEPS + 5))
    assert watched.after(result(loss=math.nan, left_out="why"), 134) == Watched(watched.losses, watched.norms, (134,))


def test_only_the_steps_left_out_lately_count() -> None:
    bad, watched = result(left_out="the loss is not finite"), Watched()
    for step in (1, 5, WINDOW_STEPS):
        watched = watched.after(bad, step)
    assert watched.left_out == (1, 5, WINDOW_STEPS)
    assert watched.too_many(Guard(left_out_steps=2)) and not watched.too_many(Guard(left_out_steps=3))
    assert watched.after(result(), WINDOW_STEPS + 1).left_out == (5, WINDOW_STEPS)
    assert watched.after(bad, WINDOW_STEPS + 5).left_out == (WINDOW_STEPS, WINDOW_STEPS + 5)
