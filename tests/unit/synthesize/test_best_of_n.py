"""From a file of prompts to chosen answers, pairs and controls, with where each comes from."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fault_server import answer_to, fault_server
from tutelage.cli.main import app
from tutelage.data.conversation import PreferencePair
from tutelage.data.formats import guess_kind, parse_row
from tutelage.errors import ConfigError, DataError, RunDirError
from tutelage.files import jsonl
from tutelage.synthesize.best_of_n import Plan, build
from tutelage.synthesize.lineage import read_family, tree
from tutelage.synthesize.prompts import read_prompts
from tutelage.synthesize.scorers import find_scorer
from tutelage.synthesize.select import RIGHT, Rule
from tutelage.verify.answer import final_number


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    jsonl.write(path, rows)
    return path


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def as_answer(messages: list[dict[str, str]], answer: str, expected: str | None) -> float | None:
    """Score an answer by its length, as a function of one's own would; short ones cannot be told."""
    return float(len(answer)) if len(answer) > 2 else None


def test_right_answers_are_chosen_and_controls_are_as_many(tmp_path: Path) -> None:
    rows = written(
        tmp_path,
        {"question": "2 + 2?", "answer": "#### 4", "candidates": ["It is 5.", "It is 4."], "licence": "CC0"},
        {"question": "1 + 1?", "answer": "#### 2", "candidates": ["3", "I think 3"]},
    )
    plan = Plan(read_prompts(rows), 2, find_scorer("number"), Rule(at_least=RIGHT))
    made = build(plan, None, tmp_path / "out")
    (example,) = jsonl.read(tmp_path / "out" / "sft.jsonl")
    assert example["messages"][-1] == {"role": "assistant", "content": "It is 4."}
    assert example["lineage"]["licence"] == "CC0"
    assert example["lineage"]["where"] == [f"{rows}:1"]
    (pair,) = jsonl.read(tmp_path / "out" / "pairs.jsonl")
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"], pair["margin"]) == (
        "It is 4.",
        "It is 5.",
        1.0,
    )
    for control in ("random", "first", "longest"):
        assert len(jsonl.read(tmp_path / "out" / f"control_{control}.jsonl")) == 1
    assert made.figures["prompts"] == {"in": 2, "chosen": 1, "rejected": {"no answer is good enough": 1}}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["score"]["tuned"] == 0.5


def test_what_is_written_can_be_trained_on(tmp_path: Path) -> None:
    rows = written(tmp_path, {"prompt": "Say yes", "answer": "yes", "candidates": ["no", "Yes!"]})
    build(Plan(read_prompts(rows), 2, find_scorer("task"), Rule(at_least=RIGHT)), None, tmp_path / "out")
    for name, kind in (("sft", "messages"), ("pairs", "preference"), ("control_random", "messages")):
        (row,) = jsonl.read(tmp_path / "out" / f"{name}.jsonl")
        assert guess_kind(row) == kind
        record = parse_row(row, kind)
        assert record.id == row["id"]
    assert isinstance(parse_row(jsonl.read(tmp_path / "out" / "pairs.jsonl")[0], "preference"), PreferencePair)


def test_examples_to_train_on_are_prompts_whose_answer_is_the_right_one(tmp_path: Path) -> None:
    (prompt,) = read_prompts(written(tmp_path, {"instruction": "Name a colour", "input": "", "output": "Red."}))
    assert [message.content for message in prompt.messages] == ["Name a colour"]
    assert prompt.task is not None
    assert find_scorer("task").score(prompt, "red") == 1.0
    assert find_scorer("contains").score(prompt, "It is red.") == 1.0


def test_a_function_of_ones_own_scores_prompts_that_have_no_answer(tmp_path: Path) -> None:
    rows = written(tmp_path, {"prompt": "Tell me", "candidates": ["ab", "abcd", "abc"]})
    scorer = find_scorer(f"{__name__}:as_answer")
    made = build(Plan(read_prompts(rows), 3, scorer, Rule()), None, tmp_path / "out")
    assert [one.text for one in made.choices[0].best] == ["abcd"]
    assert made.figures["answers_scored"]["unscored"] == 1


@pytest.mark.parametrize(
    ("row", "scorer", "problem"),
    [
        ({"prompt": "x", "candidates": ["y"]}, "number", "nothing to check an answer by"),
        ({"prompt": "x", "answer": "red"}, "number", "no number"),
        ({"prompt": "x", "answer": "red"}, "constraints", "the scorer needs constraints"),
    ],
)
def test_rows_that_a_scorer_cannot_check_are_told_with_their_line(
    tmp_path: Path, row: dict[str, Any], scorer: str, problem: str
) -> None:
    rows = written(tmp_path, row)
    with pytest.raises(DataError, match=problem) as caught:
        build(Plan(read_prompts(rows), 1, find_scorer(scorer), Rule()), None, tmp_path / "out")
    assert f"{rows}:1" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no row"),
        ("[1]", "a JSON object was expected"),
        ('{"candidates": []}', "'question' is missing"),
        ('{"prompt": "x", "candidates": "y"}', "`candidates` must be a list"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "rows.jsonl:1"),
    ],
)
def test_rows_without_a_prompt_are_told_with_their_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=problem):
        read_prompts(path)


def test_a_scorer_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="no scorer 'best'"):
        find_scorer("best")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        find_scorer("nowhere:at_all")


def test_a_served_model_is_asked_once_and_lineage_leads_back(tmp_path: Path) -> None:
    rows = written(tmp_path, *({"prompt": f"q{number}", "answer": "with", "check": "contains"} for number in range(5)))
    out = tmp_path / "out"
    with fault_server("error", "malformed", share=0.2) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        words = ("generate", "best-of-n", rows, "--server", url, "--server-model", "tiny", "--n", 3, "--out", out)
        assert invoke(*words).exit_code == 0
        asked = len(server.asked)
        examples = jsonl.read(out / "sft.jsonl")
        result = invoke(*words, "--keep", 2)
        assert result.exit_code == 0, result.output
        assert len(server.asked) == asked
    assert len(examples) == 5
    for example in examples:
        lineage = example["lineage"]
        asked_with = {"messages": example["messages"][:1], "seed": lineage["seeds"][0]}
        assert example["messages"][-1]["content"] == answer_to(asked_with)
        assert lineage["generator"] == ["tiny-1"]
    assert len(jsonl.read(out / "sft.jsonl")) == 10
    family = read_family([out])
    node = family.find(examples[0]["id"])
    kinds = [(depth, one.kind) for depth, one in tree(family, node)]
    assert kinds == [(0, "record"), (1, "request"), (1, "source")]
    source = examples[0]["lineage"]["parents"][0]
    assert {one.id for one in family.descendants(family.find(source))} >= {examples[0]["id"]}
    shown = invoke("why", examples[0]["id"][:12], out)
    assert "by best-of-n" in shown.output
    assert f"{rows}:1" in shown.output
    assert examples[0]["id"] in invoke("why", source, out, "--descendants", "--json").output
    assert invoke("why", "nothing", out).exit_code != 0


def test_offline_asks_nothing(tmp_path: Path) -> None:
    rows = written(tmp_path, {"prompt": "q", "answer": "a"})
    with fault_server(share=0.0) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        words = (
            "generate",
            "best-of-n",
            rows,
            "--server",
            url,
            "--server-model",
            "t",
            "--out",
            tmp_path / "out",
            "--offline",
        )
        result = invoke(*words)
    assert isinstance(result.exception, RunDirError)
    assert server.asked == []


def test_the_key_is_sent_and_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "a-key-that-nobody-may-see-4711"
    monkeypatch.setenv("MY_SERVER_KEY", secret)
    rows = written(tmp_path, {"prompt": "q", "answer": "answer", "check": "contains"})
    out = tmp_path / "out"
    with fault_server(share=0.0) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        words = ("generate", "best-of-n", rows, "--server", url, "--server-model", "t", "--out", out)
        assert invoke(*words, "--key-variable", "MY_SERVER_KEY").exit_code == 0
        assert f"Bearer {secret}" in server.headers[0]
    assert [file for file in out.iterdir() if secret.encode() in file.read_bytes()] == []
    address = invoke(
        "generate", "best-of-n", rows, "--server", f"http://me:{secret}@x/v1", "--server-model", "t", "--out", out
    )
    assert isinstance(address.exception, ConfigError)
    assert secret not in str(address.exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--window", "0.5"), "two numbers"),
        (("--window", "0.9:0.1"), "two shares"),
        (("--temperature", "0"), "nothing to choose"),
        (("--max-cost", "1"), "needs --price"),
    ],
)
def test_options_that_cannot_be_meant_are_told(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    result = invoke("generate", "best-of-n", tmp_path / "rows.jsonl", "--out", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


@pytest.mark.shared
def test_of_four_solutions_a_right_one_is_chosen_wherever_there_is_one(tmp_path: Path, shared_data: Path) -> None:
    models = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    with gzip.open(shared_data / "reasoning" / "gsm8k_model_solutions.jsonl.gz", "rt", encoding="utf-8") as file:
        given = [json.loads(line) for line in file]
    rows = [
        {
            "question": row["question"],
            "answer": "#### " + str(final_number(row["ground_truth"])),
            "candidates": [row[model]["solution"] for model in models],
        }
        for row in given
    ]
    prompts = read_prompts(written(tmp_path, *rows))
    made = build(Plan(prompts, 4, find_scorer("number"), Rule(at_least=RIGHT)), None, tmp_path / "out")
    is_right = {row["question"]: [row[model]["is_correct"] for model in models] for row in given}
    chosen = {one.group.prompt.messages[0].content: one.best[0].place for one in made.choices}
    right = {question for question, marks in is_right.items() if any(marks)}
    assert len(right) > 800
    assert right <= chosen.keys()
    assert sum(is_right[question][place] for question, place in chosen.items()) >= 0.99 * len(chosen)
