from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tutelage.cli import training
from tutelage.cli.training import BarNarrator, LineNarrator, Speed, open_run, what_may_change
from tutelage.config.schema import Config
from tutelage.errors import ConfigError, RunDirError
from tutelage.train.resume import Changed

PLAN: Any = SimpleNamespace(num_steps=100, num_tokens=200_000)


def metrics(step: int) -> dict[str, Any]:
    return {"step": step, "tokens": 2000, "supervised_tokens": 500, "seconds": 0.5, "loss": 2.5}


def test_speed_counts_tokens_supervised_tokens_and_the_time_left() -> None:
    speed = Speed(100)
    speed.add(metrics(9))
    assert speed.add(metrics(10)) == "loss 2.5000  4,000 tok/s  1,000 supervised/s  0:45 left"


def test_plain_lines_come_at_the_first_and_last_step_and_seldom_in_between(capsys: Any) -> None:
    narrator = LineNarrator()
    narrator.begin(PLAN, 0)
    for step in range(1, 101):
        narrator.step(metrics(step))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert lines[0].startswith("step 1/100 ") and lines[-1].startswith("step 100/100 ")
    assert len(lines) <= 3


def test_a_progress_bar_can_be_ended_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "print_plan", lambda description: None)
    narrator = BarNarrator()
    narrator.end()
    narrator.preparing("rendering", 1, 2)
    narrator.plan({})
    narrator.begin(PLAN, 0)
    narrator.step(metrics(1))
    narrator.end()
    narrator.end()


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (3_725, "1:02:05")])
def test_durations_are_shown_as_clocks_do(seconds: float, shown: str) -> None:
    assert training._duration(seconds) == shown


@pytest.mark.parametrize(("size", "shown"), [(512, "512 B"), (3 * 2**20, "3 MiB"), (5 * 2**40, "5120.0 GiB")])
def test_bytes_are_shown_in_binary_units(size: int, shown: str) -> None:
    assert training._bytes(size) == shown


def test_a_run_without_a_directory_gets_one_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, resumes = open_run(Config.model_validate({"run": {"name": "mine"}}), resume=False)
    with run:
        assert not resumes
        assert run.path.parent == Path("runs") and run.path.name.endswith("-mine")


def test_resuming_needs_to_know_the_run_and_finds_only_unfinished_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which run"):
        open_run(Config(), resume=True)
    config = Config.model_validate({"run": {"dir": str(tmp_path / "run")}})
    with pytest.raises(RunDirError, match="not a run directory"):
        open_run(config, resume=True)
    run, resumes = open_run(config, resume=False)
    with run:
        assert not resumes
        run.mark("stopped")
    for resume in (True, False):  # a run that did not end is gone on with, asked or not
        run, resumes = open_run(config, resume=resume)
        with run:
            assert resumes and run.status["status"] == "running"
            run.mark("failed")
    run.mark("finished")
    for resume in (True, False):
        with pytest.raises(RunDirError, match="finished already"):
            open_run(config, resume=resume)


def test_the_plan_tells_what_was_left_out_of_it() -> None:
    description = {
        "documents": 90,
        "held_out_documents": 5,
        "tokens": 1000,
        "supervised_tokens": 400,
        "epochs": 1.0,
        "longest_document_tokens": 60,
        "steps": 4,
        "planned_tokens": 1000,
        "computed_tokens": 500,
        "shared_prefixes": "2.0x fewer tokens",
        "packs": 9,
        "pack_tokens": 128,
        "fill": 0.9,
        "parameters": 7,
        "trainable_parameters": 7,
        "memory_bytes": {"weights": 28, "frozen_weights": 4},
        "memory_predicted_bytes": 32,
        "dropped_tokens": 1234,
        "dropped_rows": {"longer than data.max_tokens": 3},
        "shares": [{"source": "chats", "asked": 0.25, "realised": 0.26}],
    }
    rows = dict(training.plan_rows(description))
    assert rows["shared prefixes"] == "2.0x fewer tokens"
    assert rows["memory (estimate)"] == "32 B: weights 28 B, frozen weights 4 B"
    unknown = dict(training.plan_rows({**description, "memory_predicted_bytes": None}))
    assert unknown["memory (estimate)"].startswith("not known")
    assert rows["left out"] == "3 rows longer than data.max_tokens, 1,234 rendered tokens"
    assert rows["source chats"] == "26.0% of the trained tokens (asked: 25.0%)"
    whole = {**description, "dropped_rows": {}, "dropped_tokens": 0}
    assert "left out" not in dict(training.plan_rows(whole))


def test_what_has_changed_is_accepted_by_name_alone() -> None:
    assert what_may_change(None) == frozenset()
    assert what_may_change(["data", "tokenizer"]) == {Changed.DATA, Changed.TOKENIZER}
    with pytest.raises(ConfigError, match="--accept-changed everything: there is config, data, tokenizer"):
        what_may_change(["everything"])
