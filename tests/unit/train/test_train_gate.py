"""The gate: which evaluations breach a budget, and what follows."""

from __future__ import annotations

import math

import pytest

from tutelage.config.schema import Gate as Rule
from tutelage.config.schema import OnBreach
from tutelage.model.head import LossSums
from tutelage.train.evaluate import Evaluation
from tutelage.train.gate import Gate, text_loss
from tutelage.train.objective import SourceTotals

TEXTS = frozenset({"replay", "news"})
THREE_PERCENT = Rule(forgetting=0.03)


def evaluation(step: int, **losses: float) -> Evaluation:
    """Return an evaluation in which each source has ten tokens of the given loss; `news` has thirty."""
    sums = {
        name: LossSums(loss * (30 if name == "news" else 10), 30 if name == "news" else 10, 0, 10)
        for name, loss in losses.items()
    }
    return Evaluation(step, {name: SourceTotals(one, 10, 1) for name, one in sums.items()}, {}, 0.0)


def test_texts_are_weighed_by_their_tokens_and_nothing_else_counts() -> None:
    assert text_loss(evaluation(0, replay=2.0, news=4.0, chats=9.0), TEXTS) == pytest.approx(3.5)
    assert text_loss(evaluation(0, chats=9.0), TEXTS) is None


def test_a_rise_beyond_the_budget_is_a_breach_and_the_first_is_remembered() -> None:
    gate = Gate().begun(evaluation(0, replay=2.0, chats=5.0), TEXTS)
    gate = gate.after(evaluation(1, replay=2.05, chats=9.0), TEXTS, THREE_PERCENT)
    assert (gate.rise, gate.breached_at) == (pytest.approx(0.025), None)
    gate = gate.after(evaluation(2, replay=2.2), TEXTS, THREE_PERCENT)
    assert (gate.rise, gate.breached_at) == (pytest.approx(0.1), 2)
    gate = gate.after(evaluation(3, replay=2.0), TEXTS, THREE_PERCENT)
    assert (gate.rise, gate.breached_at) == (0.0, 2)
    assert "+0.0%" in gate.told(THREE_PERCENT) and "learning_rate" in gate.told(THREE_PERCENT)


def test_a_loss_that_is_no_number_is_a_breach() -> None:
    gate = Gate(before=2.0).after(evaluation(1, replay=math.nan), TEXTS, THREE_PERCENT)
    assert gate.breached_at == 1


def test_without_a_budget_or_a_loss_before_nothing_is_watched() -> None:
    far = evaluation(1, replay=99.0)
    assert Gate(before=2.0).after(far, TEXTS, Rule()) == Gate(before=2.0)
    assert Gate().after(far, TEXTS, THREE_PERCENT) == Gate()


@pytest.mark.parametrize(
    ("on_breach", "ends", "best"),
    [(OnBreach.WARN, False, False), (OnBreach.STOP, True, False), (OnBreach.BEST, True, True)],
)
def test_what_follows_a_breach(on_breach: OnBreach, ends: bool, best: bool) -> None:
    rule = Rule(forgetting=0.03, on_breach=on_breach)
    assert (Gate(2.0, 0.1, 5).ends(rule), Gate(2.0, 0.1, 5).takes_best(rule)) == (ends, best)
    assert not Gate(2.0, 0.01).ends(rule) and not Gate(2.0, 0.01).takes_best(rule)


HOLDS = Rule(forgetting=0.1, most_replay_weight=8.0)


def weights_after(*rises: float, rule: Rule = HOLDS) -> list[float]:
    """Return what replay weighs after each of a course of evaluations."""
    gate, found = Gate(before=2.0), []
    for step, rise in enumerate(rises, start=1):
        gate = gate.after(evaluation(step, replay=2.0 * (1 + rise)), TEXTS, rule)
        found.append(gate.replay_weight)
    return found


def test_replay_weighs_more_while_the_budget_is_nearly_used_up_and_less_again_after() -> None:
    rising = weights_after(0.09, 0.11, 0.2, 0.5, 0.5, 0.5)
    assert 1 < rising[0] < rising[1] and rising[2] == 2 * rising[1] and rising[-1] == 8
    falling = weights_after(0.2, 0.2, 0.07, 0.0, 0.0, 0.0)
    assert falling[1] == 4 > falling[2] > falling[3] == falling[2] / 2 and falling[-1] == 1


def test_at_its_aim_the_controller_leaves_the_weight_as_it_is_and_below_it_never_weighs_less_than_planned() -> None:
    assert Gate(2.0, replay_weight=3.0).after(evaluation(1, replay=2.16), TEXTS, HOLDS).replay_weight == pytest.approx(
        3
    )
    assert weights_after(0.0, -0.2) == [1, 1]


def test_a_loss_that_is_no_number_asks_for_all_the_replay_there_is() -> None:
    assert weights_after(math.nan) == [8]


def test_without_a_controller_replay_weighs_what_it_weighs() -> None:
    assert weights_after(0.5, 0.5, rule=THREE_PERCENT) == [1, 1]
