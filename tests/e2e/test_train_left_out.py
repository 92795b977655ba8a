"""A row that makes the loss infinite: its step is left out, the run goes on, and `replay` names the row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tiny import tiny_folder, tiny_tokenizer
from tiny_runs import go, write_texts
from tutelage.cli import replay as cli
from tutelage.errors import RunDirError, TrainingError
from tutelage.files import jsonl
from tutelage.files.rundir import RunDir
from tutelage.train.checkpoint import read_state
from tutelage.train.narrate import Narrator
from tutelage.train.replay import replay

POISON = "§"
SETTINGS = (
    *("train.epochs=1", "train.batch_tokens=256", "train.packing=packed"),
    *("data.held_out_fraction=0", "train.evaluate_every_steps=null", "train.early_stopping=null"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a model whose embedding of one character is not finite, and texts of which the fortieth has that character."""
    folder = tmp_path_factory.mktemp("guard")
    tiny_folder(folder / "model", "llama")
    write_texts(folder)
    lines = (folder / "text.jsonl").read_text().splitlines()
    lines[39] = json.dumps({"text": f"A row with {POISON} in it."})
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    poisoned = set(tiny_tokenizer()(POISON)["input_ids"]) - set(tiny_tokenizer()("A row with in it.")["input_ids"])
    with torch.no_grad():
        model.get_input_embeddings().weight[sorted(poisoned)] = torch.inf
    model.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def straight(place: Path) -> RunDir:
    assert go(place, "straight", *SETTINGS, "train.checkpoint_every_steps=1", "train.keep_checkpoints=99") == "finished"
    return RunDir(place / "straight")


def test_the_step_is_left_out_and_the_run_goes_on(straight: RunDir) -> None:
    (line,) = jsonl.read(straight.incidents)
    assert line["reason"] == "the loss is not finite"
    assert [row["where"] for row in line["rows"] if row["where"].endswith(":40")]
    metrics = list(jsonl.read(straight.metrics))
    assert [step["step"] for step in metrics if step["left_out"]] == [line["step"]]
    assert all(step["loss"] is not None for step in metrics if not step["left_out"])
    weights = load_file(straight.final / "model.safetensors")
    others = [tensor for name, tensor in weights.items() if "embed_tokens" not in name]
    assert all(tensor.isfinite().all() for tensor in others)


def test_replay_names_the_row(straight: RunDir) -> None:
    (line,) = jsonl.read(straight.incidents)
    found = replay(straight, line["step"], Narrator())
    assert [row.where.endswith(":40") for row in found.rows if not row.is_sound] == [True]
    assert len(found.rows) == len(line["rows"]) > 1
    assert found.weights == f"checkpoint of step {line['step'] - 1}" or line["step"] == 1
    assert line["command"] == f"tutelage replay {straight.path} --step {line['step']}"


def test_replay_of_a_step_that_was_taken_says_which_were_not(straight: RunDir) -> None:
    (line,) = jsonl.read(straight.incidents)
    with pytest.raises(RunDirError, match=r"step 999 .* was not left out") as raised:
        replay(straight, 999, Narrator())
    assert raised.value.mend == f"these were: {line['step']}"


def test_the_command_prints_the_rows_and_writes_nothing(straight: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = jsonl.read(straight.incidents)
    before = {path: path.stat().st_mtime_ns for path in straight.path.rglob("*")}
    cli.run(straight.path, line["step"], as_json=True)
    figures = json.loads(capsys.readouterr().out)
    assert [row["where"] for row in figures["rows"] if row["loss"] is None] == [figures["rows"][0]["where"]]
    cli.run(straight.path, line["step"])
    assert ":40" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in straight.path.rglob("*")} == before


def test_a_run_that_may_leave_out_none_ends_there(place: Path) -> None:
    with pytest.raises(TrainingError, match=r"could not be taken: the loss is not finite\. It is the 1\. of 1 steps"):
        go(place, "strict", *SETTINGS, "train.guard.left_out_steps=0")
    assert RunDir(place / "strict").status["status"] == "failed"
    assert len(list(jsonl.read(RunDir(place / "strict").incidents))) == 1


def test_a_run_that_is_cut_after_a_step_was_left_out_goes_on_as_it_would_have(place: Path, straight: RunDir) -> None:
    (line,) = jsonl.read(straight.incidents)
    shutil.copytree(straight.path, place / "cut")
    shutil.rmtree(place / "cut" / "final")
    run = RunDir(place / "cut")
    for step in run.checkpoint_steps():
        if step > line["step"]:
            shutil.rmtree(run.checkpoint(step))
    often = ("train.checkpoint_every_steps=1", "train.keep_checkpoints=99")
    assert go(place, "cut", *SETTINGS, *often, resume=True) == "finished"
    final = "model.safetensors"
    assert (run.final / final).read_bytes() == (straight.final / final).read_bytes()
    assert list(jsonl.read(run.incidents)) == [line]
    newest = run.checkpoint(run.checkpoint_steps()[-1])
    assert read_state(newest) == read_state(straight.checkpoint(run.checkpoint_steps()[-1]))
