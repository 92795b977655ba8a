"""The gate: which evaluations breach a budget, and what follows."""

from __future__ import annotations

import math

import pytest

from tutelage.config.schema import Gate as Rule
from tutelage.config.schema import OnBreach
from tutelage.model.head import LossSums
from tutelage.train.evaluate import Evaluation
from tutelage.train.gate import HABITS, REMEDIES, Budget, Gate, text_loss
from tutelage.train.objective import SourceTotals
from tutelage.train.probe import Habit, Probed

TEXTS = frozenset({"replay", "news"})
THREE_PERCENT = Rule(forgetting=0.03)
BREACHED = {"forgetting": 5}


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
    gate = Gate().begun(Probed(text_loss=2.0))
    gate = gate.after(1, Probed(text_loss=2.05), THREE_PERCENT)
    assert (gate.rise, gate.breached_at) == (pytest.approx(0.025), None)
    far = Probed(text_loss=2.2)
    gate = gate.after(2, far, THREE_PERCENT)
    assert (gate.rise, gate.breached_at, gate.breaches) == (pytest.approx(0.1), 2, {"forgetting": 2})
    (said,) = gate.news(2, far, THREE_PERCENT)
    assert "+10.0%" in said and "train.gate.forgetting=0.03" in said and "learning_rate" in said
    gate = gate.after(3, far, THREE_PERCENT)
    assert gate.breaches == {"forgetting": 2} and gate.news(3, far, THREE_PERCENT) == []
    gate = gate.after(4, Probed(text_loss=2.0), THREE_PERCENT)
    assert (gate.rise, gate.breached_at) == (0.0, 2)


def test_a_loss_that_is_no_number_is_a_breach() -> None:
    gate = Gate(before=2.0).after(1, Probed(text_loss=math.nan), THREE_PERCENT)
    assert gate.breached_at == 1


def test_without_a_budget_or_a_loss_before_nothing_is_watched() -> None:
    far = Probed(text_loss=99.0)
    assert Gate(before=2.0).after(1, far, Rule()) == Gate(before=2.0)
    assert Gate().after(1, far, THREE_PERCENT) == Gate()


STYLE = Rule(style=0.2)


def habits(share: float, data: float = 0.1, **others: float) -> Probed:
    """Return that so much of the answers begins alike, and nothing else is amiss but `others`."""
    quiet = {name: Habit(others.get(name, 0.0), 0.0) for name in HABITS}
    return Probed(habits={**quiet, "begin_alike": Habit(share, data)})


def test_a_habit_that_grows_beyond_the_held_out_answers_is_a_breach_that_names_it() -> None:
    gate = Gate().begun(habits(0.02))
    gate = gate.after(1, habits(0.29), STYLE)
    assert gate.breached_at is None
    gate = gate.after(2, grown := habits(0.32), STYLE)
    assert gate.breaches == {"style": 2}
    (said,) = gate.news(2, grown, STYLE)
    assert said.startswith("answers that begin alike: 32%, where the held-out rows have 10% and the model had 2%")
    assert "train.gate.style=0.2" in said and REMEDIES[Budget.STYLE] in said


def test_a_habit_that_the_data_have_or_the_base_had_is_not_learned_and_no_breach() -> None:
    assert Gate().begun(habits(0.0)).after(1, habits(0.9, data=0.75), STYLE).breached_at is None
    gate = Gate().begun(habits(0.9, repeats=1.0)).after(1, habits(0.8, repeats=0.9), STYLE)
    assert gate.breached_at is None
    gate = gate.after(2, habits(0.1, repeats=0.0), STYLE).after(3, habits(0.1, repeats=0.3), STYLE)
    assert gate.breaches == {"style": 3}  # what it had before, it had lost


INSTRUCTION = Rule(instruction=0.1)


def test_fewer_right_answers_than_at_their_most_are_a_breach() -> None:
    gate = Gate().begun(Probed(right=2, points=40))
    for step, right in enumerate((20, 30, 26), start=1):
        gate = gate.after(step, Probed(right=right, points=40), INSTRUCTION)
        assert gate.breached_at is None
    gate = gate.after(4, fallen := Probed(right=25, points=40), INSTRUCTION)
    assert gate.breaches == {"instruction": 4}
    (said,) = gate.news(4, fallen, INSTRUCTION)
    assert said.startswith("62% of the answers are right, after 75% at their most")


def test_each_budget_has_its_own_first_breach_and_only_what_has_a_budget_is_watched() -> None:
    rule = Rule(forgetting=0.03, style=0.2, instruction=0.1)
    begun = Gate().begun(Probed(2.0, habits(0.0).habits, 40, 40))
    gate = begun.after(1, Probed(2.0, habits(0.5).habits, 40, 40), rule)
    gate = gate.after(2, all_far := Probed(3.0, habits(0.5).habits, 0, 40), rule)
    assert gate.breaches == {"style": 1, "forgetting": 2, "instruction": 2} and gate.breached_at == 1
    assert len(gate.news(2, all_far, rule)) == 2
    assert begun.after(1, all_far, Rule()).breaches == {}


@pytest.mark.parametrize(
    ("on_breach", "ends", "best"),
    [(OnBreach.WARN, False, False), (OnBreach.STOP, True, False), (OnBreach.BEST, True, True)],
)
def test_what_follows_a_breach(on_breach: OnBreach, ends: bool, best: bool) -> None:
    rule = Rule(forgetting=0.03, on_breach=on_breach)
    breached, within = Gate(2.0, 0.1, breaches=BREACHED), Gate(2.0, 0.01)
    assert (breached.ends(rule), breached.takes_best(rule)) == (ends, best)
    assert not within.ends(rule) and not within.takes_best(rule)


HOLDS = Rule(forgetting=0.1, most_replay_weight=8.0)


def weights_after(*rises: float, rule: Rule = HOLDS) -> list[float]:
    """Return what replay weighs after each of a course of evaluations."""
    gate, found = Gate(before=2.0), []
    for step, rise in enumerate(rises, start=1):
        gate = gate.after(step, Probed(text_loss=2.0 * (1 + rise)), rule)
        found.append(gate.replay_weight)
    return found


def test_replay_weighs_more_the_more_of_the_budget_is_used_up_and_less_again_after() -> None:
    # still, so that nothing but what is lost already is to be expected
    course = weights_after(0.0, 0.0, 0.05, 0.05, 0.1, 0.1, 0.3, 0.05, 0.05, -0.2, -0.2)
    assert course[:2] == [1, 1] and course[3] == pytest.approx(8**0.5) and course[5] == pytest.approx(8)
    assert course[6] == 8 and course[8] == pytest.approx(8**0.5) and course[-1] == 1


def test_the_controller_looks_ahead_by_as_much_as_was_lost_since_the_last_evaluation() -> None:
    (_, slowly), (_, fast), (_, back) = weights_after(0.03, 0.04), weights_after(0.0, 0.04), weights_after(0.08, 0.04)
    assert (slowly, fast, back) == (pytest.approx(8**0.5), pytest.approx(8**0.8), 1)


def test_a_loss_that_is_no_number_asks_for_all_the_replay_there_is() -> None:
    assert weights_after(math.nan) == [8]


def test_without_a_controller_replay_weighs_what_it_weighs() -> None:
    assert weights_after(0.5, 0.5, rule=THREE_PERCENT) == [1, 1]
