"""A run that is stopped at any step and resumed ends as the run that was not, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import tiny_runs
from tiny import tiny_folder
from tiny_runs import Stopper, Teller, outcome, write_texts
from tutelage.errors import RunDirError
from tutelage.files import jsonl
from tutelage.files.rundir import RunDir
from tutelage.train.narrate import Narrator
from tutelage.train.resume import Changed

NUM_STEPS = 6
SETTINGS = (f"train.max_steps={NUM_STEPS}", "train.neftune_alpha=5")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    tiny_folder(folder / "model", "gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    write_texts(folder)
    return folder


def go(
    place: Path, name: str, *changes: str, narrator: Narrator | None = None, resume: bool = False, **more: Any
) -> str:
    return tiny_runs.go(place, name, *SETTINGS, *changes, narrator=narrator, resume=resume, **more)


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


def test_a_changed_configuration_is_gone_on_with_only_if_that_is_said(place: Path) -> None:
    go(place, "changed", narrator=Stopper(2))
    with pytest.raises(RunDirError, match="the configuration changed") as refused:
        go(place, "changed", "train.learning_rate=2e-3", resume=True)
    assert "--accept-changed config" in refused.value.mend
    with pytest.raises(RunDirError, match="the configuration changed"):
        go(place, "changed", "train.learning_rate=2e-3", resume=True, accept_changed=[Changed.DATA])
    told = Teller()
    accepted = [Changed.CONFIG]
    assert (
        go(place, "changed", "train.learning_rate=2e-3", narrator=told, resume=True, accept_changed=accepted)
        == "finished"
    )
    assert any("changed before step 3, and the run goes on as asked" in line for line in told.lines)
    assert [line["accepted"] for line in jsonl.read(place / "changed/incidents.jsonl")] == [["config"]]
    assert [line["step"] for line in jsonl.read(place / "changed/metrics.jsonl")] == list(range(1, NUM_STEPS + 1))


def test_a_run_that_went_on_with_something_changed_is_that_run_from_then_on(place: Path) -> None:
    slower = "train.learning_rate=2e-3"
    go(place, "twice", narrator=Stopper(2))
    assert go(place, "twice", slower, narrator=Stopper(4), resume=True, accept_changed=[Changed.CONFIG]) == "stopped"
    with pytest.raises(RunDirError, match="the configuration changed"):
        go(place, "twice", resume=True)
    assert go(place, "twice", slower, resume=True) == "finished"


def test_what_may_change_without_a_word_is_where_and_how_often_it_is_saved(place: Path, straight: Any) -> None:
    go(place, "moved", narrator=Stopper(2))
    often = ("train.checkpoint_every_steps=1", "train.keep_checkpoints=1", "train.save_in_background=true")
    assert go(place, "moved", *often, resume=True) == "finished"
    assert outcome(place / "moved") == straight


def test_changed_data_are_gone_on_with_only_if_that_is_said(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "text.jsonl"
    data.write_text((place / "text.jsonl").read_text())
    go(place, "data", f"data.train.0.path={data}", narrator=Stopper(2))
    data.write_text(data.read_text().replace("number 3 ", "number three "))
    with pytest.raises(RunDirError, match="the documents or their order changed") as refused:
        go(place, "data", f"data.train.0.path={data}", resume=True)
    assert "--accept-changed data" in refused.value.mend
    assert go(place, "data", f"data.train.0.path={data}", resume=True, accept_changed=[Changed.DATA]) == "finished"


def test_a_changed_tokenizer_is_named(place: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(place / "model", model)
    go(place, "tokenizer", f"model.path={model}", narrator=Stopper(2))
    settings = json.loads((model / "tokenizer.json").read_bytes())
    settings["normalizer"] = {"type": "Lowercase"}
    (model / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(RunDirError, match="the documents or their order and the tokenizer changed") as refused:
        go(place, "tokenizer", f"model.path={model}", resume=True)
    assert "--accept-changed data --accept-changed tokenizer" in refused.value.mend
    both = [Changed.DATA, Changed.TOKENIZER]
    assert go(place, "tokenizer", f"model.path={model}", resume=True, accept_changed=both) == "finished"
