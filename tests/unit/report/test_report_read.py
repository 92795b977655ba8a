"""Reading run directories, whole and broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.errors import RunDirError
from tutelage.report.page import run_page
from tutelage.report.read import read_run
from tutelage.report.records import Evaluation, HeldOutSums


def test_a_whole_run_is_read_without_problems(run_folder: Path) -> None:
    run = read_run(run_folder)
    assert run.problems == ()
    assert [s.step for s in run.steps] == list(range(1, 41))
    assert run.setting("train.lora.rank") == 16
    assert run.setting("train.nothing.here") is None
    assert run.ledger[0].dropped == {"empty message": 3, "too long": 284}
    assert run.masks[0].tokens[3].piece == "Name"
    assert run.plan.layout is not None and run.plan.layout.name == "packed"


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="not a run directory"):
        read_run(tmp_path)


def test_a_torn_last_line_costs_that_line_only(run_folder: Path) -> None:
    metrics = run_folder / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-30])
    run = read_run(run_folder)
    assert run.problems == ()
    assert run.steps[-1].step == 39


def test_a_step_written_twice_by_a_resumed_run_counts_once_as_last_written(run_folder: Path) -> None:
    with (run_folder / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": 40, "loss": 9.0}) + "\n")
    run = read_run(run_folder)
    assert len(run.steps) == 40
    assert run.steps[-1].loss == 9.0
    assert run.steps[-1].tokens is None


@pytest.mark.parametrize(
    "name",
    ["plan.json", "ledger.json", "receipt.json", "masks.json", "metrics.jsonl", "evals.jsonl", "samples.jsonl",
     "config.yaml", "origins.json", "environment.json", "scores.json"],
)  # fmt: skip
@pytest.mark.parametrize("content", ["[1, 2", '{"checks": 3, "documents": 4}\n{"step": []}\n', '"text"', "\x00\x01"])
def test_a_damaged_file_is_named_and_never_stops_the_page(run_folder: Path, name: str, content: str) -> None:
    (run_folder / name).write_text(content)
    run = read_run(run_folder)
    assert all(problem.startswith(name) for problem in run.problems)
    assert "</html>" in run_page(run)


@pytest.mark.parametrize(
    "name",
    ["plan.json", "ledger.json", "receipt.json", "masks.json", "metrics.jsonl", "evals.jsonl", "samples.jsonl",
     "config.yaml", "origins.json", "environment.json"],
)  # fmt: skip
def test_an_absent_file_is_no_problem_and_leaves_a_page(run_folder: Path, name: str) -> None:
    (run_folder / name).unlink()
    run = read_run(run_folder)
    assert run.problems == ()
    assert "</html>" in run_page(run)


def test_a_run_that_has_only_begun_has_a_page_in_which_nothing_is_zero(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "running"}')
    page = run_page(read_run(tmp_path))
    assert "still running" in page
    assert page.count("not measured") > 10
    assert ">0<" not in page


def test_null_reads_as_not_measured_and_never_as_zero(run_folder: Path) -> None:
    (run_folder / "metrics.jsonl").write_text('{"step": 1, "loss": null, "tokens": null, "grad_norm": null}\n')
    (run_folder / "evals.jsonl").write_text(
        '{"step": 0, "loss": null, "per_source": {"a": {"loss_sum": null, "weight_sum": 3}}}\n'
    )
    run = read_run(run_folder)
    assert (run.steps[0].loss, run.steps[0].tokens, run.steps[0].grad_norm) == (None, None, None)
    assert run.evaluations[0].per_source["a"].loss is None
    page = run_page(run)
    assert "1 of 1 steps have no finite loss" in page


def test_accuracy_is_unknown_when_one_source_has_no_count() -> None:
    known = HeldOutSums(loss_sum=1.0, weight_sum=1.0, correct=3.0, tokens=4.0)
    unknown = HeldOutSums(loss_sum=1.0, weight_sum=1.0, correct=None, tokens=4.0)
    assert Evaluation(0, None, None, None, {"a": known, "b": known}, {}).accuracy == 0.75
    assert Evaluation(0, None, None, None, {"a": known, "b": unknown}, {}).accuracy is None
