"""Files of tasks: every layout, what an answer is worth, and lines that are no task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.errors import DataError
from tutelage.evaluate.tasks import Check, Scored, read_tasks

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
]  # fmt: skip


def file_of(folder: Path, *lines: object) -> Path:
    path = folder / "tasks.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_every_layout_is_read_and_scored(tmp_path: Path) -> None:
    tasks = read_tasks(file_of(tmp_path, *ROWS[:3], "", *ROWS[3:]))
    kinds = [Check.CONSTRAINTS, Check.NUMBER, Check.EXACT, Check.CONTAINS, Check.CHOICE, Check.NUMBER]
    assert [task.check for task in tasks] == kinds
    assert tasks[3].where.endswith(":5") and len(tasks[3].messages) == 2
    assert tasks[0].score('intro\n"a b"') == Scored(1, 2, 2, unscored=1)
    assert tasks[1].score("It is 12.") == Scored(1, 1, 1)
    assert tasks[2].score("It is Ada") == Scored(0, 0, 1)
    assert tasks[3].score("It is Ada") == Scored(1, 1, 1)
    assert (tasks[4].score("grey"), tasks[4].score("red")) == (Scored(1, 1, 1), Scored(0, 0, 1))
    assert tasks[5].score("seven, 7") == Scored(1, 1, 1)


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
        ({"prompt": "x", "answer": "x", "check": "choice"}, "no choices"),
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
