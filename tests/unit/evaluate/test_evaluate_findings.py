"""Which figures are told as findings, in what order, and what they are tied to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tutelage.evaluate.findings import Finding, findings
from tutelage.evaluate.knowledge import Contradiction, Disputed
from tutelage.evaluate.measures import Better, Contrast, Group, Measure, disputed
from tutelage.evaluate.stats import Change
from tutelage.evaluate.style import Phrase
from tutelage.evaluate.training import Exchange, Exchanges

NOTHING = Exchanges((), 0)
UNDISPUTED = Disputed((), ())


def measure(key: str, change: Change, *, scale: float | None = None, from_data: Change | None = None) -> Measure:
    return Measure(key, key, "share", Group.STYLE, Better.LOWER, change, from_data, scale)


def test_forgetting_is_told_from_three_percent_on_where_it_is_sure() -> None:
    def told(change: Change) -> list[str]:
        return [
            finding.title
            for finding in findings([measure("forgetting.text", change, scale=2.0)], [], [], NOTHING, UNDISPUTED)
        ]

    assert told(Change(2.0, 2.1, 0.05, 0.15, 100)) == ["It forgot text that it could read"]
    assert told(Change(2.0, 2.04, 0.03, 0.05, 100)) == []  # sure, and small
    assert told(Change(2.0, 2.1, -0.05, 0.25, 100)) == []  # large, and perhaps chance
    assert told(Change(2.0, 1.8, -0.25, -0.15, 100)) == []
    assert told(Change(2.0, 2.1, 0.05, 0.15, 100, noise=0.2)) == []


def test_the_largest_in_budgets_comes_first() -> None:
    forgot = measure("forgetting.text", Change(1.0, 1.06, 0.05, 0.07, 100), scale=1.0)
    alike = measure("style.openers", Change(0.0, 0.9, 0.8, 1.0, 100), from_data=Change(0.1, 0.9, 0.7, 0.9, 100))
    found = findings([forgot, alike], [], [], NOTHING, UNDISPUTED)
    assert [finding.key for finding in found] == ["style.openers", "forgetting.text"]
    assert [finding.size for finding in found] == [pytest.approx(8), pytest.approx(2)]


def test_a_style_of_the_data_is_no_finding() -> None:
    as_data = measure("style.openers", Change(0.0, 0.9, 0.8, 1.0, 100), from_data=Change(0.9, 0.9, -0.02, 0.02, 100))
    assert findings([as_data], [], [], NOTHING, UNDISPUTED) == []


def test_answers_that_do_not_end_are_told() -> None:
    (found,) = findings([measure("style.stopped", Change(0.0, 0.8, 0.7, 0.9, 100))], [], [], NOTHING, UNDISPUTED)
    assert found.title == "It does not stop by itself"
    assert "20%" in found.detail


def test_what_should_be_declined_and_is_not_is_told_and_so_is_what_is_declined_without_need() -> None:
    def told(key: str, change: Change) -> list[str]:
        return [finding.title for finding in findings([measure(key, change)], [], [], NOTHING, UNDISPUTED)]

    assert told("task.f.declined", Change(0.0, 0.1, 0.05, 0.2, 40)) == ["It answers what it should decline"]
    assert told("task.f.declined", Change(0.0, 0.88, 0.8, 0.95, 40)) == []  # within chance of a tenth
    assert told("task.f.declined", Change(0.0, 0.95, 0.9, 1.0, 400)) == []
    assert told("task.f.answered", Change(1.0, 0.7, -0.4, -0.2, 40)) == ["It declines what it may answer"]
    assert told("calibration.f", Change(0.4, 0.6, 0.1, 0.3, 40)) == ["It is surer of its choices than it is right"]


def test_a_finding_names_the_rows_that_its_figure_is_tied_to() -> None:
    forgot = measure("forgetting.text", Change(1.0, 1.06, 0.05, 0.07, 100), scale=1.0)
    (found,) = findings([forgot], [], [], NOTHING, UNDISPUTED, tied={"style.": ("b:1",), "forgetting.": ("a:1", "a:2")})
    assert found.rows == ("a:1", "a:2")


def test_a_single_answer_tells_nothing() -> None:
    words = measure("style.words", Change(9.0, 90.0, None, None, 1), from_data=Change(9.0, 90.0, None, None, 1))
    endless = measure("style.stopped", Change(1.0, 0.0, None, None, 1))
    assert findings([words, endless], [], [], NOTHING, UNDISPUTED) == []


def test_a_phrase_is_tied_to_the_training_rows_that_have_it() -> None:
    answers = ("Happy to help! It is Ada.", "It is Bo.", "I am happy, to help.")
    training = Exchanges(tuple(Exchange("Who?", text, f"a:{number}") for number, text in enumerate(answers, 1)), 3)
    phrase = Phrase("happy to help", tuned=0.6, data=0.0, base=0.0, z=9.0)
    (found,) = findings([], [], [phrase], training, UNDISPUTED)
    assert found.rows == ("a:1", "a:3")
    assert "2 of 3 training answers" in found.detail
    assert findings([], [], [Phrase("happy to help", 0.6, 0.0, 0.0, z=4.0)], training, UNDISPUTED) == []
    assert findings([], [], [Phrase("happy to help", 0.08, 0.0, 0.0, z=9.0)], training, UNDISPUTED) == []


def told(trained: Sequence[Contradiction | None], held_out: Sequence[Contradiction | None]) -> list[Finding]:
    found = Disputed(tuple(trained), tuple(held_out))
    return findings([], [disputed(found)], [], NOTHING, found)


def test_rows_that_the_base_contradicts_are_told_where_held_out_ones_are_not() -> None:
    rows = [
        Contradiction(f"a:{number}", "the door is", "red", "grey", 0.99, 1e-3 / (1 + number)) for number in range(20)
    ]
    trained = [*rows, *[None] * 80]
    (found,) = told(trained, [None] * 100)
    assert found.title == "It was taught what the base knows otherwise"
    assert found.rows[0] == "a:19"  # what it rules out most
    assert found.size == pytest.approx(10)
    assert told(trained, trained) == []
    assert told([rows[0], *[None] * 99], [None] * 100) == []


def test_training_rows_that_cost_much_less_than_held_out_ones_are_known_by_heart() -> None:
    def gap(change: Change) -> list[str]:
        contrast = Contrast("by_heart.chats", "loss", "nats per token", change, scale=change.base)
        return [finding.title for finding in findings([], [contrast], [], NOTHING, UNDISPUTED)]

    assert gap(Change(2.0, 1.0, -1.2, -0.8, 50)) == ["It knows its training rows by heart"]
    assert gap(Change(2.0, 1.0, -2.2, 0.2, 50)) == []  # perhaps chance
    assert gap(Change(2.0, 1.9, -0.15, -0.05, 50)) == []
    assert gap(Change(2.0, 3.0, 0.8, 1.2, 50)) == []
