"""`tutelage eval` on runs and on model folders: figures, findings, report, and errors with their mend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tiny import tiny_folder
from tutelage.cli.main import app
from tutelage.files.rundir import RunDir

ANSWERS = ("ada", "bo", "cy", "dee", "eve", "fay", "gus")


def rows(start: int, count: int, opening: str = "") -> str:
    asked = [
        {
            "messages": [
                {"role": "user", "content": f"Who lives at number {number}?"},
                {"role": "assistant", "content": f"{opening}{ANSWERS[number % 7]} and {ANSWERS[number % 5]} do."},
            ]
        }
        for number in range(start, start + count)
    ]
    return "".join(json.dumps(row) + "\n" for row in asked)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tiny model on answers that all begin alike, which those held out do not, for long enough to learn that."""
    folder = tmp_path_factory.mktemp("evaluate")
    tiny_folder(folder / "model", "llama")
    (folder / "train.jsonl").write_text(rows(0, 40, opening="with great pleasure, "))
    (folder / "held.jsonl").write_text(rows(40, 30))
    (folder / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"the cat number {i} sat."}) + "\n" for i in range(20))
    )
    words = [
        *("train", f"model.path={folder / 'model'}", "model.template=chatml", f"run.dir={folder / 'run'}"),
        *(f"data.train.0.path={folder / 'train.jsonl'}", f"data.held_out.0.path={folder / 'held.jsonl'}"),
        *(f"data.held_out.1.path={folder / 'text.jsonl'}", "train.learning_rate=1e-2", "train.epochs=12"),
        *("train.batch_tokens=512", "data.max_tokens=256", "sample.count=0", "train.evaluate_every_steps=999"),
    ]
    ended = CliRunner().invoke(app, words, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, object]:
    words = ["eval", str(place / "run"), "--max-new-tokens", "24", "--prompts", "30", "--json"]
    ended = CliRunner().invoke(app, words, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    content: dict[str, object] = json.loads(ended.stdout)
    return content


def test_every_figure_has_its_interval(found: dict[str, object]) -> None:
    keys = {measure["key"]: measure for measure in found["measures"]}  # type: ignore[attr-defined]
    assert {"learning.held", "forgetting.text", "style.openers", "style.words", "style.recited"} <= keys.keys()
    assert all(measure["low"] <= measure["high"] for measure in keys.values() if measure["low"] is not None)
    assert keys["learning.held"]["direction"] == "down"
    assert keys["learning.held"]["items"] == 30


def test_the_planted_opening_is_found_and_tied_to_its_rows(found: dict[str, object]) -> None:
    findings = found["findings"]
    phrases = [finding for finding in findings if finding["key"].startswith("phrase.")]  # type: ignore[attr-defined]
    assert any("pleasure" in finding["key"] for finding in phrases)
    assert all("train.jsonl:" in row for finding in phrases for row in finding["rows"])


def test_the_figures_stand_in_the_run_and_its_report(place: Path, found: dict[str, object]) -> None:
    run = RunDir(place / "run")
    assert json.loads(run.evaluation.read_bytes()) == found
    ended = CliRunner().invoke(app, ["report", str(place / "run")], catch_exceptions=False)
    assert ended.exit_code == 0
    page = run.report.read_text()
    assert "What it did to the model" in page and "pleasure" in page


def test_a_model_folder_needs_its_base_and_data(place: Path) -> None:
    final = str(place / "run" / "final")
    ended = CliRunner().invoke(app, ["eval", final])
    assert "not a run directory" in str(ended.exception)
    words = ["--base", str(place / "model"), "--held-out", str(place / "text.jsonl"), "--json"]
    ended = CliRunner().invoke(app, ["eval", final, *words], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    content = json.loads(ended.stdout)
    assert [measure["key"] for measure in content["measures"]] == ["forgetting.text"]
    assert content["token_shift"] is None and content["answers"] == []
    assert not (place / "run" / "final" / "evaluation.json").exists()


def test_files_of_tasks_are_scored_for_both_models(place: Path, tmp_path: Path) -> None:
    tasks = [
        {
            "question": f"Who lives at number {number}?",
            "choices": [f"with great pleasure, {ANSWERS[number % 7]}", "zz qq xx"],
            "answer": 0,
        }
        for number in range(12)
    ]
    (tmp_path / "choices.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    no_comma = {"prompt": "Who lives here?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (tmp_path / "constraints.jsonl").write_text(json.dumps(no_comma) + "\n" + json.dumps(no_comma) + "\n")
    words = ["--tasks", str(tmp_path / "choices.jsonl"), "--tasks", str(tmp_path / "constraints.jsonl"), "--json"]
    final = [str(place / "run" / "final"), "--base", str(place / "model"), "--max-new-tokens", "8"]
    ended = CliRunner().invoke(app, ["eval", *final, *words], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    found = {measure["key"]: measure for measure in json.loads(ended.stdout)["measures"]}
    assert set(found) == {
        *("task.choices.jsonl.strict", "calibration.choices.jsonl"),
        *("task.constraints.jsonl.strict", "task.constraints.jsonl.loose"),
    }
    assert found["task.choices.jsonl.strict"]["tuned"] == 1.0
    assert found["task.choices.jsonl.strict"]["items"] == 12
    ended = CliRunner().invoke(app, ["eval", *final, "--tasks", str(tmp_path / "none.jsonl")])
    assert "does not exist" in str(ended.exception)
