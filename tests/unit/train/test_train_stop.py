from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tutelage.config.schema import EarlyStopping
from tutelage.train.stop import RESUME_EXIT_CODE, SIGNALS, Improvement, StopFlag, StopNow, stop_on_signals


def after_all(losses: list[float], min_improvement: float = 0.0) -> Improvement:
    state = Improvement()
    for step, loss in enumerate(losses, start=1):
        state = state.after(loss, step, EarlyStopping(min_improvement=min_improvement))
    return state


def test_the_best_is_the_lowest_loss() -> None:
    assert after_all([3.0, 2.0, 2.5, 2.2]) == Improvement(best_loss=2.0, best_step=2, evaluations_since=2)


def test_patience_counts_evaluations_without_improvement() -> None:
    rule = EarlyStopping(patience=2)
    assert not after_all([3.0, 2.0, 2.5]).exhausted(rule)
    assert after_all([3.0, 2.0, 2.5, 2.2]).exhausted(rule)
    assert not after_all([3.0, 2.0, 2.5, 1.9]).exhausted(rule)
    assert not after_all([3.0, 9.0, 9.0, 9.0]).exhausted(None)


def test_a_fall_too_small_to_count_is_none() -> None:
    assert after_all([2.0, 1.95], min_improvement=0.1) == Improvement(2.0, 1, 1)


def test_a_loss_that_is_not_a_number_is_never_the_best() -> None:
    assert after_all([2.0, float("nan")]).best_step == 1


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_sets_the_flag_and_the_handler_goes_away(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        stop.is_worth_saving = True
        assert not stop
        os.kill(os.getpid(), number)
        assert stop and stop.signal_name == number.name
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_there_is_nothing_to_save_leaves_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(StopNow) as left, stop_on_signals():
        os.kill(os.getpid(), number)
    assert (left.value.code, left.value.name) == (RESUME_EXIT_CODE, number.name)
    assert signal.getsignal(number) is before


def test_the_clock_sets_the_flag_too() -> None:
    with stop_on_signals() as stop:
        stop.is_worth_saving = True
        stop.limit(None)
        assert not stop
        stop.limit(60.0)
        assert not stop and stop.reason is None
        stop.limit(0.0)
        assert stop and stop.reason == "train.max_minutes" and stop.signal_name is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "SIGTERM"


def test_a_deadline_leaves_time_for_a_step_and_a_save(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.train.stop.time", SimpleNamespace(monotonic=lambda: 100.0))
    flag = StopFlag(began=0.0)
    flag.limit(2.0)
    assert not flag
    flag.took("step", 3.0)
    flag.took("save", 16.9)
    assert not flag
    flag.took("save", 17.1)
    flag.took("save", 1.0)
    assert flag.reason == "train.max_minutes"


@pytest.mark.parametrize(("seconds", "outcome"), [(1.2, (RESUME_EXIT_CODE, "")), (0.0, (0, "still here\n"))])
def test_a_later_signal_leaves_at_once_and_an_echo_of_the_first_does_not(
    seconds: float, outcome: tuple[int, str]
) -> None:
    program = (
        "import os, signal, time\n"
        "from tutelage.train.stop import stop_on_signals\n"
        "with stop_on_signals() as stop:\n"
        "    stop.is_worth_saving = True\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        f"    time.sleep({seconds})\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == outcome
