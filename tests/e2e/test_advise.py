"""`tutelage advise` on the base that ships: what it knows is behaviour, what it does not is knowledge, and the advice can be trained."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tutelage.cli.edge import guard
from tutelage.cli.main import app
from tutelage.files import jsonl
from tutelage.lab.lesson import Kind, Lesson
from tutelage.lab.tasks import PUBLIC, fact_turn
from tutelage.lab.world import Group, make_world

MODEL = ("--model", "lab", "--template", "chatml")


def run(*words: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, list(words), catch_exceptions=True)
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return ended.exit_code, ended.stdout


def run_to_code(*words: str) -> int:
    """Return the exit code that the edge of the process gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["tutelage", *words])
        return guard(app)


def write_facts(path: Path, group: Group, count: int = 24) -> Path:
    rng = random.Random(group.value)
    people = make_world(0).group(group)
    turns = [fact_turn(rng, rng.choice(people), PUBLIC[number % len(PUBLIC)]) for number in range(count)]
    jsonl.write(path, (Lesson(Kind.CLOSED_BOOK, "fact", (turn,)).row() for turn in turns))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("advise")
    write_facts(folder / "known.jsonl", Group.READ)
    write_facts(folder / "strangers.jsonl", Group.STRANGER)
    return folder


def advised(place: Path, name: str, *more: str) -> dict[str, Any]:
    words = ("advise", str(place / f"{name}.jsonl"), *MODEL, "--most-facts", "10", "--json")
    code, text = run(*words, "--config", str(place / f"{name}.yaml"), "data.cache=off", *more)
    assert code == 0, text
    found: dict[str, Any] = json.loads(text)
    return found


def test_facts_that_the_base_knows_ask_for_adapters_and_the_advice_can_be_trained(place: Path) -> None:
    found = advised(place, "known")
    assert found["goal"] == "behaviour"
    assert found["facts"]["highly known"]["share"] > 0.8
    values = {one["key"]: one["value"] for one in found["recommendations"]}
    assert values["train.method"] == "lora"
    assert values["data.max_tokens"] == 512
    low, high = found["expected"]["seconds"]
    assert 0 < low <= high
    code, text = run("train", str(place / "known.yaml"), "--dry-run")
    assert code == 0
    assert str(found["expected"]["steps"]) in text


def test_facts_about_strangers_ask_for_full_fine_tuning_and_are_a_risk_with_rows(place: Path) -> None:
    found = advised(place, "strangers", "--rows", str(place / "honest.jsonl"), "--unknown", "abstain")
    assert found["goal"] == "knowledge"
    assert found["config"]["train"].get("method", "full") == "full"
    unknown = next(risk for risk in found["risks"] if risk["key"] == "unknown")
    assert all(row.startswith(str(place / "strangers.jsonl:")) for row in unknown["rows"])
    declined = [row["messages"][-1]["content"] for row in jsonl.read(place / "honest.jsonl")].count("I do not know.")
    assert 5 < declined <= 10
    assert found["rows"] == {
        "read": 24,
        "kept": 24 - declined,
        "changed": declined,
        "apart": 0,
        "dropped": 0,
        "faulty": 0,
    }


def test_wrong_words_get_an_error_with_its_code_before_any_model_is_loaded(place: Path) -> None:
    known = str(place / "known.jsonl")
    (place / "empty.jsonl").write_text("")
    (place / "text.txt").write_text("There is a cat.\n\nIt sat.\n")
    for words, code in (
        (("advise", known, *MODEL, "--unknown", "drop"), 2),
        (("advise", known, *MODEL, "--rows", known), 2),
        (("advise", str(place / "nothing.jsonl"), *MODEL), 3),
        (("advise", str(place / "empty.jsonl"), *MODEL), 3),
        (("advise", str(place / "text.txt"), *MODEL), 3),
        (("advise", known, "--model", "lab"), 4),
    ):
        assert run_to_code(*words) == code, words
