from __future__ import annotations

import math

import pytest

from tutelage.config.schema import Guard
from tutelage.errors import TrainingError
from tutelage.train.guard import LEAST_STEPS, WINDOW_STEPS, Watched, require_few
from tutelage.train.objective import LossSums, SourceTotals
from tutelage.train.step import StepResult

QUIET = tuple(2.0 + 0.1 * (-1) ** i for i in range(LEAST_STEPS))


def result(loss: float = 2.0, grad_norm: float = 1.0, left_out: str | None = None) -> StepResult:
    totals = SourceTotals(LossSums(loss * 10, 10.0, 3, 10), 12, 1)
    return StepResult({"source": totals}, 10.0, 12, 12, 1, 1, grad_norm, 0.1, left_out)


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
        watched = watched.after(result(loss=float(number)))
    assert watched.losses == tuple(float(number) for number in range(5, WINDOW_STEPS + 5))
    assert watched.after(result(loss=math.nan, left_out="why")) == Watched(watched.losses, watched.norms, 1)


def test_a_run_ends_when_too_many_steps_were_left_out() -> None:
    bad = result(left_out="the loss is not finite")
    require_few(Watched(left_out=3), bad, Guard(left_out_steps=3), step=9)
    require_few(Watched(left_out=4), result(), Guard(left_out_steps=3), step=9)
    with pytest.raises(TrainingError, match=r"step 9 is the 4\. .* the loss is not finite"):
        require_few(Watched(left_out=4), bad, Guard(left_out_steps=3), step=9)
