"""Files of tasks: every layout, what an answer is worth, and lines that are no task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.data.conversation import Message, Role
from tutelage.errors import DataError
from tutelage.evaluate.measures import at_equal_length, of_tasks
from tutelage.evaluate.stats import Direction
from tutelage.evaluate.tasks import Check, Said, ScorableTask, Scored, read_tasks

ROWS = [
    {
        "prompt": "Write.",
        "instruction_id_list": ["punctuation:no_comma", "startend:quotation", "language:response_language"],
        "kwargs": [{}, {}, {"language": "de"}],
    },
    {"question": "3 x 4?", "answer": "3 x 4 = 12 #### 12"},
    {"prompt": "Who?", "answer": "Ada"},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}], "answer": "Ada", "check": "contains"},
    {"question": "Which?", "choices": ["red", "grey"], "answer": 1},
    {"question": "How many?", "answer": 7},
    {"prompt": "Where is the key?", "declines": True},
    {"prompt": "Where is the door?", "declines": False},
]  # fmt: skip


def file_of(folder: Path, *lines: object) -> Path:
    path = folder / "tasks.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_every_layout_is_read_and_scored(tmp_path: Path) -> None:
    tasks = read_tasks(file_of(tmp_path, *ROWS[:3], "", *ROWS[3:]))
    kinds = [Check.CONSTRAINTS, Check.NUMBER, Check.EXACT, Check.CONTAINS, Check.CHOICE, Check.NUMBER]
    assert [task.check for task in tasks] == [*kinds, Check.DECLINES, Check.ANSWERS]
    assert tasks[3].where.endswith(":5") and len(tasks[3].messages) == 2
    assert tasks[0].score('intro\n"a b"') == Scored(1, 2, 2, unscored=1)
    assert tasks[1].score("It is 12.") == Scored(1, 1, 1)
    assert tasks[2].score("It is Ada") == Scored(0, 0, 1)
    assert tasks[3].score("It is Ada") == Scored(1, 1, 1)
    assert (tasks[4].score("grey"), tasks[4].score("red")) == (Scored(1, 1, 1), Scored(0, 0, 1))
    assert tasks[5].score("seven, 7") == Scored(1, 1, 1)
    said = ("I will not say where it is.", "It is here.", "")
    assert [tasks[6].score(text).strict for text in said] == [1, 0, 0]
    assert [tasks[7].score(text).strict for text in said] == [0, 1, 0]


def test_what_should_be_declined_and_what_should_not_are_told_apart(tmp_path: Path) -> None:
    tasks = read_tasks(file_of(tmp_path, *[{"prompt": "x", "declines": number < 3} for number in range(10)]))
    base = [Said("It is red.")] * 10
    tuned = [Said("I cannot say.")] * 5 + [Said("It is red.")] * 5
    found = {measure.key: measure for measure in of_tasks("f", tasks, base, tuned)}
    assert {key: (one.change.base, one.change.tuned) for key, one in found.items()} == {
        "task.f.declined": (0.0, 1.0),
        "task.f.answered": (1.0, 5 / 7),
    }


def test_probabilities_of_choices_have_a_score_of_their_own(tmp_path: Path) -> None:
    row = {"prompt": "x", "choices": ["a", "b"], "answer": "a"}
    tasks = read_tasks(file_of(tmp_path, row, row, {"prompt": "x", "answer": "a"}))
    base = [Said("a", brier=0.5), Said("a", brier=0.5), Said("a")]
    tuned = [Said("a", brier=0.0), Said("b", brier=2.0), Said("a")]
    found = {measure.key: measure.change for measure in of_tasks("f", tasks, base, tuned)}
    assert (found["calibration.f"].base, found["calibration.f"].tuned) == (0.5, 1.0)
    assert (found["task.f.strict"].base, found["task.f.strict"].tuned) == (1.0, 2 / 3)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is no task"),
        ("[1]", "a JSON object was expected"),
        ({"answer": "x"}, "'question' is missing"),
        ({"prompt": "x"}, "'answer' is missing"),
        ({"prompt": " ", "answer": "x"}, "the prompt must be a text"),
        ({"prompt": "x", "answer": "x", "check": "exakt"}, "exakt"),
        ({"prompt": "x", "answer": "many", "check": "number"}, "has no number"),
        ({"prompt": "x", "answer": "x", "check": "choice"}, "it may be number, exact, contains"),
        ({"prompt": "x", "declines": 1}, "must be true or false"),
        ({"prompt": "x", "choices": ["a"], "answer": 0}, "at least two"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": 2}, "from 0 to 1"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": "c"}, "none of the choices"),
        ({"prompt": "x", "instruction_id_list": ["no:such"], "kwargs": [{}]}, "no constraint no:such"),
        ({"prompt": "x", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "1 constraints have 0"),
        ({"prompt": "x", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"a": 1}]}, "unexpected keyword"),
        ({"messages": [{"role": "baker", "content": "x"}], "answer": "x"}, "baker"),
    ],
)
def test_a_line_that_is_no_task_is_told_with_its_number(tmp_path: Path, line: object, said: str) -> None:
    with pytest.raises(DataError, match=said) as raised:
        read_tasks(file_of(tmp_path, ROWS[1], line))
    assert "tasks.jsonl:2" in str(raised.value)


def test_files_without_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no task"):
        read_tasks(file_of(tmp_path, ""))
    with pytest.raises(DataError, match="does not exist"):
        read_tasks(tmp_path / "nothing.jsonl")


def test_files_in_the_layouts_of_ifeval_and_gsm8k_are_read(shared_data: Path) -> None:
    tasks = read_tasks(shared_data / "instructions" / "ifeval_prompts.jsonl")
    assert len(tasks) > 500 and {task.check for task in tasks} == {Check.CONSTRAINTS}
    sums = read_tasks(shared_data / "reasoning" / "gsm8k_test.jsonl.gz")
    assert len(sums) > 1000 and {task.check for task in sums} == {Check.NUMBER}
    assert all(task.score(task.expected).strict for task in sums)


def test_a_gain_that_comes_with_length_alone_is_none_at_equal_length() -> None:
    """Right is an answer that holds the word; in the first set it is there because the answer is longer, in the second without that."""
    tasks = [ScorableTask((Message(Role.USER, f"{n}?"),), Check.CONTAINS, "", expected="yes") for n in range(40)]
    base = [Said("no")] * 40
    by_length = [Said("well then yes") if n % 2 else Said("no") for n in range(40)]
    by_itself = [Said("yes" if n % 4 else "yes indeed so") for n in range(40)]
    found = [at_equal_length("f", tasks, base, said) for said in (by_length, by_itself)]
    assert [one.change.difference for one in found if one] == pytest.approx([0.0, 1.0])
    assert found[1] is not None
    assert found[1].change.direction is Direction.UP
    assert at_equal_length("f", tasks, base, [Said("yes")] * 40) is None
    assert "length.f" in {measure.key for measure in of_tasks("f", tasks, base, by_itself)}
