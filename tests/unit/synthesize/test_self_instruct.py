"""New tasks are new, dropped ones say why, and a build that is cut makes the same ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fault_server import fault_server
from tutelage.cli.main import app
from tutelage.data.conversation import Message
from tutelage.errors import DataError
from tutelage.files import jsonl
from tutelage.generate.sampler import Books, Reply, Request
from tutelage.synthesize.lineage import read_family, tree
from tutelage.synthesize.novelty import Pool, common_length, rouge_l
from tutelage.synthesize.self_instruct import Plan, Task, build, instances, read_seeds, task_id, why_no_task

WORDS = ("name", "three", "rivers", "towns", "of", "the", "north", "list", "write", "poem", "about", "snow")


def slow_common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, by the table of its definition."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for row, word in enumerate(one):
        for column, known in enumerate(other):
            best = max(table[row][column + 1], table[row + 1][column])
            table[row + 1][column + 1] = table[row][column] + 1 if word == known else best
    return table[-1][-1]


@given(st.lists(st.sampled_from("abcd"), max_size=80), st.lists(st.sampled_from("abcd"), max_size=80))
def test_the_common_subsequence_is_as_long_as_its_definition_says(one: list[str], other: list[str]) -> None:
    assert common_length(one, other) == slow_common_length(one, other)


def test_the_filters_of_the_pool_change_no_decision() -> None:
    chance = random.Random(0)
    texts = [" ".join(chance.choices(WORDS, k=chance.randint(1, 12))) for _ in range(250)]
    pool, limit = Pool(0.7), 0.7
    for text in texts[:150]:
        pool.add(text)
    told = {True: 0, False: 0}
    for text in texts[150:]:
        highest = max(rouge_l(text, known) for known in texts[:150])
        found = pool.too_like(text)
        assert (found is not None) == (highest > limit)
        assert found is None or found[0] == highest
        told[found is not None] += 1
    assert min(told.values()) > 10


def test_equal_texts_are_alike_in_any_script() -> None:
    pool = Pool(0.7)
    pool.add("Опиши этот город")
    assert pool.too_like("Опиши этот город") == (1.0, "Опиши этот город")
    assert pool.too_like("Назови три реки") is None


class Author:
    """Continues every list by what `write` says, calls what has `is` in it a classification, and writes two instances."""

    def __init__(self, write: Callable[[int], str]) -> None:
        self.write = write
        self.asked: list[str] = []

    def request(self, messages: Sequence[Message], *, seed: int) -> Request:
        return Request("author", {"model": "author", "messages": [{"content": messages[-1].content}], "seed": seed})

    def most_cost(self, request: Request) -> int:
        return 0

    def cost(self, request: Request, reply: Reply) -> int:
        return 0

    def run(self, requests: Sequence[Request], books: Books) -> None:
        for request in reversed(requests):  # the order in which replies come must not matter
            books.sent(request)
            self.asked.append(request.key)
            text = self._text(request.body["messages"][0]["content"], request.body["seed"])
            books.received(request, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})

    def _text(self, asked: str, seed: int) -> str:
        if asked.startswith("Here is a list"):
            return self.write(seed)
        if asked.startswith("A classification"):
            return "Yes." if " is " in asked.rsplit("Task:", 1)[1] else "No, it is not."
        if "`Label:`" in asked:
            return "1. Label: warm\nInput: It is 30 degrees.\n2. Label: cold\nInput: It is 2 degrees."
        return "Input: none\nOutput: Here it is."


def some_list(number: int) -> str:
    return (
        f"Here you are:\n9. Write a poem number{number} about thing{number} and colour{number} today\n"
        f"10. Tell whether weather{number} is warm{number} or cold{number} right now{number}\n"
        "11. Draw it\n12. Name three rivers of the far north today\n\nI hope that these help."
    )


def seeds(count: int = 9) -> list[Task]:
    texts = [
        "Name three rivers of the far north.",
        *(f"Explain word{number} to other{number} people" for number in range(count - 1)),
    ]
    return [Task(task_id(text), text, f"seeds:{number}") for number, text in enumerate(texts, start=1)]


def test_exactly_as_many_tasks_as_wanted_are_made_and_done(tmp_path: Path) -> None:
    author = Author(some_list)
    figures = build(Plan(seeds(), accept=5, most_lists=8, lists_at_once=2), author, tmp_path)
    tasks, examples = jsonl.read(tmp_path / "tasks.jsonl"), jsonl.read(tmp_path / "sft.jsonl")
    rejected = jsonl.read(tmp_path / "rejected.jsonl")
    assert figures["tasks"] == len(tasks) == 5
    assert figures["rejected"] == {"too short": 2, "too like another": 2, "more than were wanted": 7}
    assert sum(one["candidates"] for one in figures["rounds"]) == len(tasks) + len(rejected)
    like = next(row for row in rejected if row["reason"] == "too like another")
    assert (like["like"], like["alike"] > 0.7) == ("Name three rivers of the far north.", True)
    labelled = [row for row in examples if row["lineage"]["is_classification"]]
    assert {row["messages"][-1]["content"] for row in labelled} == {"warm", "cold"}
    assert labelled[0]["messages"][0]["content"].endswith("\n\nIt is 30 degrees.")
    plain = [row for row in examples if not row["lineage"]["is_classification"]]
    assert {row["messages"][-1]["content"] for row in plain} == {"Here it is."}
    assert {parent for row in examples for parent in row["lineage"]["parents"]} == {row["id"] for row in tasks}


def test_a_build_that_goes_on_asks_nothing_twice_and_makes_the_same(tmp_path: Path) -> None:
    plan = Plan(seeds(), accept=6, most_lists=9, lists_at_once=1)
    build(plan, Author(some_list), tmp_path / "straight")
    with pytest.raises(DataError, match="of 6 tasks after 1 lists"):
        build(Plan(seeds(), accept=6, most_lists=1, lists_at_once=1), first := Author(some_list), tmp_path / "cut")
    build(plan, second := Author(some_list), tmp_path / "cut")
    assert set(first.asked).isdisjoint(second.asked)
    for name in ("tasks.jsonl", "sft.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_lists_hold_tasks_made_here_and_more_seeds(tmp_path: Path) -> None:
    build(Plan(seeds(), accept=6, most_lists=9, lists_at_once=1), Author(some_list), tmp_path)
    tasks = jsonl.read(tmp_path / "tasks.jsonl")
    made = {task["id"] for task in tasks}
    parents = [[parent in made for parent in task["lineage"]["parents"]] for task in tasks]
    assert {len(one) for one in parents} == {8}
    assert [sum(one) for one in parents] == [0, 0, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Write it", "too short"),
        ("word " * 151, "too long"),
        ("Describe what the following picture shows", "asks for what is not text"),
        ("- Describe what you see there", "begins with punctuation"),
        ("Опиши этот город тремя словами", "in a script that no seed has"),
        ("Tell NASA how to file a complaint", None),
    ],
)
def test_what_is_no_task_is_dropped_for_a_reason(text: str, reason: str | None) -> None:
    assert why_no_task(text, {"LATIN"}) == reason


@pytest.mark.parametrize(
    ("text", "kept", "dropped"),
    [
        ("Input: a\nOutput: b\nInput: a\nOutput: c", 0, ["one input has two outputs"] * 2),
        ("Input: a\nOutput: a", 0, ["the output is the input"]),
        ("Input: a\nOutput: it follows:", 0, ["ends with a colon"]),
        ("Output: a\nLabel: b", 0, ["parts in no order"]),
        ("Input: a\nOutput: b\nInput: a\nOutput: b", 1, []),
        ("I would rather not.", 0, []),
    ],
)
def test_instances_are_kept_or_dropped_for_a_reason(text: str, kept: int, dropped: list[str]) -> None:
    found, reasons = instances(text)
    assert (len(found), reasons) == (kept, dropped)


def test_seeds_that_are_none_are_told_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    path.write_text('{"instruction": "Name three rivers"}\n{"input": "x"}\n')
    with pytest.raises(DataError, match=r"seeds.jsonl:2 has no task"):
        read_seeds(path)
    with pytest.raises(DataError, match="does not exist"):
        read_seeds(tmp_path / "none.jsonl")


def test_an_example_leads_back_to_the_seeds_and_a_seed_to_what_came_of_it(tmp_path: Path) -> None:
    build(Plan(seeds(), accept=6, most_lists=9, lists_at_once=1), Author(some_list), tmp_path)
    family = read_family([tmp_path])
    example = jsonl.read(tmp_path / "sft.jsonl")[-1]
    reached = list(tree(family, family.find(example["id"])))
    assert {node.kind for _, node in reached} == {"record", "request", "source"}
    sources = {node.id: node.where for _, node in reached if node.kind == "source"}
    assert sources.items() <= {seed.id: seed.where for seed in seeds()}.items()
    assert example["id"] in {node.id for node in family.descendants(family.find(next(iter(sources))))}


def test_the_command_says_when_a_model_writes_no_lists(tmp_path: Path) -> None:
    (tmp_path / "seeds.jsonl").write_text('{"instruction": "Name three rivers."}\n')
    with fault_server(share=0.0) as server:
        words = ["--server", f"http://127.0.0.1:{server.port}/v1", "--server-model", "tiny", "--most-lists", "3"]
        out = ["--seeds", str(tmp_path / "seeds.jsonl"), "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(app, ["generate", "self-instruct", *out, *words])
    assert isinstance(result.exception, DataError)
    assert "0 of 100 tasks after 3 lists" in str(result.exception)
    assert len(server.asked) == 3
