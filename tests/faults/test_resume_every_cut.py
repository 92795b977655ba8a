"""A run that is cut at any step and resumed ends as the run that was not: every cut, of several kinds of run.

A single cut proves little: many ways to forget something in a checkpoint pass at an epoch's edge, or where nothing was drawn yet.
The checkpoints of every step of one run are what the cuts go on from.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import tiny_folder
from tiny_runs import Stopper, go, outcome, write_texts
from tutelage.files.rundir import RunDir
from tutelage.train import checkpoint
from tutelage.train.checkpoint import RunState

NUM_STEPS = 60
FEW_CUTS = (0, 1, 13, 14, 23, 24, 59)
"""Of epochs of 23 steps, or 14: before the first step and after it, inside an epoch, at its edge, after it, before the last."""
SEVERAL = (20, 21, 23, 28)
KINDS = {
    "packed with noise and dropout": ("gpt2", ("train.neftune_alpha=5",)),
    "padded": ("llama_tied", ("train.packing=padded",)),
    "low-rank adapters with dropout": ("llama", ("train.method=lora", "train.lora.rank=2", "train.lora.dropout=0.2")),
    "one by one in several passes": ("qwen3", ("train.packing=single", "train.batch_sequences=4")),
}
DROPOUT = {"gpt2": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}}
OFTEN = ("train.checkpoint_every_steps=1", f"train.keep_checkpoints={NUM_STEPS + 1}", "train.evaluate_every_steps=20")


@pytest.fixture(scope="module", params=KINDS)
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """Return where a whole run lies, `straight`, with its checkpoints, and its settings."""
    family, changes = KINDS[request.param]
    place = tmp_path_factory.mktemp("cuts")
    tiny_folder(place / "model", family, **DROPOUT.get(family, {}))
    write_texts(place)
    size = () if any("batch_sequences" in change for change in changes) else ("train.batch_tokens=160",)
    settings = (*OFTEN, f"train.max_steps={NUM_STEPS}", *size, *changes)
    assert go(place, "straight", *settings) == "finished"
    assert len(RunDir(place / "straight").checkpoint_steps()) == NUM_STEPS + 1
    return place, settings


def outcome_of_cut(place: Path, settings: tuple[str, ...], cut: int, *again: int) -> Any:
    """Return what a run ends with that was cut after that step and resumed, and stopped and resumed after the steps of `again`."""
    name = f"cut-{cut}"
    shutil.copytree(place / "straight", place / name)
    shutil.rmtree(place / name / "final")
    run = RunDir(place / name)
    for step in run.checkpoint_steps():
        if step > cut:
            shutil.rmtree(run.checkpoint(step))
    for step in again:
        assert go(place, name, *settings, narrator=Stopper(step), resume=True) == "stopped"
    assert go(place, name, *settings, resume=True) == "finished"
    found = outcome(place / name)
    shutil.rmtree(place / name)
    return found


@pytest.mark.parametrize("cut", FEW_CUTS)
def test_a_run_that_is_cut_ends_as_if_it_had_not_been(straight: tuple[Path, tuple[str, ...]], cut: int) -> None:
    place, settings = straight
    assert outcome_of_cut(place, settings, cut) == outcome(place / "straight")


def test_a_run_that_is_stopped_again_and_again_in_one_epoch_and_at_its_edge(
    straight: tuple[Path, tuple[str, ...]],
) -> None:
    place, settings = straight
    assert outcome_of_cut(place, settings, 18, *SEVERAL) == outcome(place / "straight")


@pytest.mark.slow
def test_every_cut(straight: tuple[Path, tuple[str, ...]], figure: Callable[[str, str], None]) -> None:
    place, settings = straight
    whole = outcome(place / "straight")
    assert [cut for cut in range(NUM_STEPS) if outcome_of_cut(place, settings, cut) != whole] == []
    figure(f"cuts of a run of {NUM_STEPS} steps ({place.name})", f"{NUM_STEPS} tried, {NUM_STEPS} identical")


def test_a_resumption_that_forgets_a_moment_is_known(
    straight: tuple[Path, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, settings = straight
    load = checkpoint.load_checkpoint

    def forgetful(folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> RunState:
        state = load(folder, model, optimiser)
        for moments in optimiser.state.values():
            moments["exp_avg"].zero_()
        return state

    monkeypatch.setattr(checkpoint, "load_checkpoint", forgetful)
    assert outcome_of_cut(place, settings, FEW_CUTS[2]) != outcome(place / "straight")
