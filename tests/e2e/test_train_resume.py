"""A run that is stopped at any step and resumed ends as the run that was not, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import tiny_runs
from tiny import tiny_folder
from tiny_runs import Stopper, outcome, write_texts
from tutelage.errors import RunDirError
from tutelage.files import jsonl
from tutelage.files.rundir import RunDir
from tutelage.train.narrate import Narrator

NUM_STEPS = 6
SETTINGS = (f"train.max_steps={NUM_STEPS}", "train.neftune_alpha=5")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    tiny_folder(folder / "model", "gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    write_texts(folder)
    return folder


def go(place: Path, name: str, *changes: str, narrator: Narrator | None = None, resume: bool = False) -> str:
    return tiny_runs.go(place, name, *SETTINGS, *changes, narrator=narrator, resume=resume)


@pytest.fixture(scope="module")
def straight(place: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    assert go(place, "straight") == "finished"
    return outcome(place / "straight")


def test_the_same_run_twice_gives_the_same_bits(place: Path, straight: Any) -> None:
    assert go(place, "again") == "finished"
    assert outcome(place / "again") == straight


def test_evaluating_and_sampling_more_often_does_not_change_the_steps(place: Path, straight: Any) -> None:
    go(place, "watched", "train.evaluate_every_steps=1", "sample.count=3", "sample.max_new_tokens=7")
    steps = [{k: v for k, v in line.items() if k != "seconds"} for line in jsonl.read(place / "watched/metrics.jsonl")]
    assert steps == straight[1][:NUM_STEPS]


@pytest.mark.parametrize("cut", range(1, NUM_STEPS))
def test_a_run_cut_at_any_step_ends_as_if_it_had_not_been(place: Path, straight: Any, cut: int) -> None:
    name = f"cut-{cut}"
    assert go(place, name, narrator=Stopper(cut)) == "stopped"
    assert RunDir.open(place / name).status["status"] == "stopped"
    assert not (place / name / "final").exists()
    assert go(place, name, resume=True) == "finished"
    assert outcome(place / name) == straight


def test_a_run_whose_time_is_over_saves_and_goes_on_as_if_it_had_not_been(place: Path, straight: Any) -> None:
    assert go(place, "late", "train.max_minutes=1e-9") == "stopped"
    assert RunDir.open(place / "late").status["result"] == {"step": 0}
    assert go(place, "late", "train.max_minutes=60", resume=True) == "finished"
    assert outcome(place / "late") == straight


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(place: Path, straight: Any) -> None:
    class KilledError(Exception):
        pass

    class Killer(Narrator):
        def step(self, metrics: Mapping[str, Any]) -> None:
            if metrics["step"] == 5:
                raise KilledError

    with pytest.raises(KilledError):
        go(place, "killed", "train.checkpoint_every_steps=2", narrator=Killer())
    assert RunDir.open(place / "killed").status["status"] == "failed"
    assert go(place, "killed", "train.checkpoint_every_steps=2", resume=True) == "finished"
    assert outcome(place / "killed") == straight


def test_a_changed_configuration_is_not_resumed(place: Path) -> None:
    go(place, "changed", narrator=Stopper(2))
    with pytest.raises(RunDirError, match="the configuration changed"):
        go(place, "changed", "train.learning_rate=2e-3", resume=True)


def test_changed_data_are_not_resumed(place: Path) -> None:
    go(place, "data", f"data.train.0.path={place / 'text.jsonl'}", narrator=Stopper(2))
    text = (place / "text.jsonl").read_text()
    try:
        (place / "text.jsonl").write_text(text.replace("number 3 ", "number three "))
        with pytest.raises(RunDirError, match="the documents or their order changed"):
            go(place, "data", f"data.train.0.path={place / 'text.jsonl'}", resume=True)
    finally:
        (place / "text.jsonl").write_text(text)
