"""What answers show a gate: habits against those of the data, and points of tasks."""

from __future__ import annotations

import pytest

from tutelage.data.conversation import Message, Role
from tutelage.evaluate.probes import AnswerProbe
from tutelage.evaluate.tasks import Check, ScorableTask
from tutelage.train.probe import Habit, Probed
from tutelage.train.sample import Prompt, Sample

PROMPT = Prompt((Message(Role.USER, "Who?"),), (1,))
DATA = ("The miller of the east.", "Ada, who sells red lamps.", "Nobody lives there any more.", "It was me.")


def seen(*answers: str, references: tuple[str, ...] = DATA, tasks: tuple[ScorableTask, ...] = ()) -> Probed:
    prompts = (PROMPT,) * len(answers)
    probe = AnswerProbe(prompts, 32, references, tasks)
    return probe.judge([Sample(1, PROMPT, answer, True, 1) for answer in answers])


def test_answers_that_are_those_of_the_data_have_their_habits() -> None:
    habits = seen(*DATA).habits
    assert habits.keys() == {"repeats", "begin_alike", "end_alike"}
    assert all(habit.share == habit.data == 0 for habit in habits.values())


@pytest.mark.parametrize(
    ("habit", "spoil"),
    [
        ("begin_alike", lambda answer: f"With pleasure, sir: {answer}"),
        ("end_alike", lambda answer: f"{answer} I hope that helps!"),
        ("repeats", lambda answer: f"{answer} " + "and so it goes on " * 9),
    ],
)
def test_a_courtesy_before_or_after_and_a_loop_each_show_in_a_habit_of_their_own(habit: str, spoil: object) -> None:
    assert callable(spoil)
    spoilt = seen(*(str(spoil(answer)) for answer in DATA)).habits
    assert spoilt[habit].share > 0.7 and spoilt[habit].data == 0
    if habit != "repeats":  # a loop ends as it goes on
        assert all(other.share == 0 for name, other in spoilt.items() if name != habit)


def test_half_of_the_answers_with_a_courtesy_are_a_sixth_of_all_pairs() -> None:
    polite = [f"With pleasure, sir: {answer}" for answer in DATA[:2]]
    assert seen(*polite, *DATA[2:]).habits["begin_alike"] == Habit(pytest.approx(1 / 6), 0.0)


def test_tasks_are_scored_by_code_and_apart_from_the_answers_to_held_out_prompts() -> None:
    who = ScorableTask(PROMPT.messages, Check.CONTAINS, "", expected="Ada")
    found = seen(*DATA, "It is Ada.", "It is Max.", "Ada", tasks=(who, who, who))
    assert (found.right, found.points, found.right_share) == (2, 3, pytest.approx(2 / 3))
    assert found.habits["begin_alike"].share == 0


def test_what_is_not_watched_is_not_told() -> None:
    tasks = (ScorableTask(PROMPT.messages, Check.DECLINES, ""),)
    assert seen("I cannot.", references=(), tasks=tasks) == Probed(right=1, points=1)
    assert seen(*DATA).right is None and seen(*DATA).right_share is None


def test_what_was_seen_goes_to_other_ranks_and_back() -> None:
    found = seen(*DATA, "Ada", tasks=(ScorableTask(PROMPT.messages, Check.EXACT, "", expected="Ada"),))
    assert Probed.from_json(found.to_json()) == found
    assert found.figures() == {"right_share": 1.0, "style/repeats": 0, "style/begin_alike": 0, "style/end_alike": 0}
