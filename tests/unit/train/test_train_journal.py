from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tutelage.config.load import load_config
from tutelage.errors import ConfigError
from tutelage.files import jsonl
from tutelage.files.rundir import RunDir
from tutelage.parallel import agree
from tutelage.train.journal import Journal
from tutelage.train.receipt import Check, Receipt
from tutelage.train.trackers import open_trackers

LINE = {"loss": 2.0, "learning_rate": 0.1, "grad_norm": 1.0, "seconds": 0.5}


def test_lines_after_the_resumed_step_are_forgotten(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run") as run, Journal(run, load_config()) as journal:
        for step in (1, 2, 3):
            journal.step({"step": step, **LINE})
        journal.forget_after(2)
        journal.step({"step": 3, **LINE, "loss": 1.0})
        assert [(line["step"], line["loss"]) for line in jsonl.read(run.metrics)] == [(1, 2.0), (2, 2.0), (3, 1.0)]


def test_looks_at_the_model_are_repeated_and_what_no_step_repeats_stays(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run") as run, Journal(run, load_config()) as journal:
        for path in (run.evals, run.samples):
            jsonl.write(path, [{"step": step} for step in (0, 2, 4)])
        memory = {"step": 5, "out_of_memory": "said"}
        moves = [{"step": 9, "roll_back": number} for number in (1, 2)]
        jsonl.write(run.incidents, [{"step": 2}, {"step": 3}, *moves, memory])
        journal.forget_after(2, rolled_back=1)
        assert jsonl.read(run.evals) == jsonl.read(run.samples) == [{"step": 0}]
        assert jsonl.read(run.incidents) == [{"step": 2}, moves[0], memory]


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunDir.create(tmp_path / "run") as run:
        before = sorted(path.name for path in run.path.iterdir())
        monkeypatch.setattr(agree, "is_main", lambda: False)
        with Journal(run, load_config(None, ["run.trackers=[tensorboard]"])) as journal:
            journal.step({"step": 1, **LINE})
            journal.write(run.plan, {})
            journal.write_config(load_config())
            journal.receipt.add(Check("mask", "x", True))
            journal.mark("failed")
        assert sorted(path.name for path in run.path.iterdir()) == before
        assert run.status["status"] == "running"


def test_tensorboard_gets_the_figures(tmp_path: Path) -> None:
    accumulator: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    resolved = load_config(None, ["run.trackers=[tensorboard]"])
    with RunDir.create(tmp_path / "run") as run, Journal(run, resolved) as journal:
        journal.step({"step": 7, **LINE})
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(7, 2.0)]


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="wandb") as caught:
        open_trackers(["wandb"], tmp_path, {})
    assert "tutelage[wandb]" in caught.value.mend


def test_a_check_made_again_takes_the_place_of_the_former(tmp_path: Path) -> None:
    receipt = Receipt(tmp_path / "receipt.json")
    receipt.add(Check("mask", "contract", True))
    receipt.add(Check("layout", "layout", True))
    receipt.add(Check("mask", "contract", False, "broken"))
    assert [(c.law, c.passed) for c in receipt.checks] == [("layout", True), ("mask", False)]
    assert not receipt.passed
