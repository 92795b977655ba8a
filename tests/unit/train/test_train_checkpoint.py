from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sample_documents import random_documents
from tiny import tiny_model
from tutelage.config.schema import Optimiser, TrainConfig
from tutelage.errors import RunDirError
from tutelage.files import manifest
from tutelage.files.manifest import Verifier
from tutelage.files.rundir import RunDir
from tutelage.train import checkpoint
from tutelage.train.checkpoint import RunState
from tutelage.train.optim import build_optimiser
from tutelage.train.stop import Improvement


def state_at(step: int) -> RunState:
    return RunState(step, Improvement().after(1.5, step), "config", "data", "tokenizer")


def trained(
    seed: int, family: str = "llama_tied", optimiser_kind: Optimiser = Optimiser.ADAMW, **changes: int
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = tiny_model(family, seed=seed, **changes)
    optimiser = build_optimiser(model, TrainConfig(learning_rate=0.01, optimiser=optimiser_kind))
    take_step(model, optimiser, seed)
    return model, optimiser


def take_step(model: torch.nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> None:
    ids = torch.from_numpy(random_documents((9,), seed=seed)[0].ids).long()[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimiser.step()
    optimiser.zero_grad()


@pytest.mark.parametrize("kind", [kind for kind in Optimiser if not kind.value.startswith("paged")])
def test_what_is_saved_comes_back_bit_for_bit_and_goes_on_the_same(tmp_path: Path, kind: Optimiser) -> None:
    if kind is Optimiser.ADAMW_8BIT:
        pytest.importorskip("bitsandbytes", reason="an extra")
    model, optimiser = trained(0, optimiser_kind=kind, hidden_size=64, intermediate_size=128)
    checkpoint.save_checkpoint(tmp_path / "c", model, optimiser, state_at(1))
    other, other_optimiser = trained(1, optimiser_kind=kind, hidden_size=64, intermediate_size=128)
    assert checkpoint.load_checkpoint(tmp_path / "c", other, other_optimiser) == state_at(1)
    take_step(model, optimiser, 5)
    take_step(other, other_optimiser, 5)
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_nothing_but_safetensors_and_json_is_written(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(tmp_path / "c", *trained(0), state_at(1))
    assert {file.suffix for file in (tmp_path / "c").iterdir()} == {".safetensors", ".json"}


def test_a_state_without_an_evaluation_survives_json(tmp_path: Path) -> None:
    state = RunState(1, Improvement(), "config", "data", "tokenizer")
    checkpoint.save_checkpoint(tmp_path / "c", *trained(0), state)
    assert checkpoint.read_state(tmp_path / "c") == state


def test_a_damaged_checkpoint_is_set_aside_for_an_older_whole_one(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run") as run:
        for step in (2, 4):
            checkpoint.save_checkpoint(run.checkpoint(step), *trained(0), state_at(step))
        (weights,) = run.checkpoint(4).glob(f"{checkpoint.WEIGHTS}*")
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        folder, damaged = checkpoint.newest_whole_checkpoint(run)
        assert folder == run.checkpoint(2)
        assert [found.place for found in damaged] == ["bad-step-000004"]
        assert run.checkpoint_steps() == [2] and (run.checkpoints / "bad-step-000004").is_dir()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run") as run:
        for step in (1, 2, 3):
            checkpoint.save_checkpoint(run.checkpoint(step), *trained(0), state_at(step))
            checkpoint.keep_newest(run, 2, Verifier())
        assert run.checkpoint_steps() == [2, 3]


def test_a_better_best_replaces_the_former_one(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run") as run:
        for step in (1, 2, 2):
            checkpoint.save_best(run, trained(0)[0], state_at(step), Verifier())
        assert [folder.name for folder in run.checkpoints.iterdir()] == ["best-step-000002"]


def saved(run: RunDir, *steps: int, best: int = 0) -> None:
    for step in steps:
        state = replace(state_at(step), improvement=Improvement().after(1.0, best) if best else Improvement())
        checkpoint.save_checkpoint(run.checkpoint(step), *trained(0), state)


def damage(folder: Path) -> None:
    with (folder / "weights.safetensors").open("r+b") as content:
        content.seek(-1, 2)
        content.write(b"x")


def test_what_is_kept_is_counted_in_whole_checkpoints(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run") as run:
        saved(run, 1, 2, 3, 4)
        damage(run.checkpoint(4))
        checkpoint.keep_newest(run, 2, Verifier())
        assert run.checkpoint_steps() == [2, 3, 4]
        damage(run.checkpoint(3))
        checkpoint.keep_newest(run, 1, Verifier())
        assert run.checkpoint_steps() == [2, 3, 4]
        assert checkpoint.newest_whole_checkpoint(run)[0] == run.checkpoint(2)


def test_what_this_process_wrote_is_not_read_again_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    really = manifest.verify_manifest
    monkeypatch.setattr(manifest, "verify_manifest", lambda folder: (read.append(folder.name), really(folder))[1])
    with RunDir.create(tmp_path / "run") as run:
        saved(run, 1, 2)
        verifier = Verifier()
        verifier.wrote(run.checkpoint(1))
        checkpoint.keep_newest(run, 2, verifier)
        checkpoint.keep_newest(run, 2, verifier)
        assert read == ["step-000002"]
        damage(run.checkpoint(1))
        assert not verifier.is_whole(run.checkpoint(1))


def test_best_weights_stay_while_a_checkpoint_goes_on_with_them(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run") as run:
        checkpoint.save_best(run, trained(0)[0], state_at(2), Verifier())
        saved(run, 3, best=2)
        checkpoint.save_best(run, trained(0)[0], state_at(4), Verifier())
        assert {folder.name[-1] for folder in run.checkpoints.glob("best-*")} == {"2", "4"}
        saved(run, 5, best=4)
        checkpoint.keep_newest(run, 1, Verifier())
        assert {folder.name[-1] for folder in run.checkpoints.glob("best-*")} == {"4"}


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(tmp_path / "c", *trained(0, "llama"), state_at(1))
    with pytest.raises(RunDirError, match="other parameters"):
        checkpoint.load_weights(tmp_path / "c", tiny_model("llama_tied"))
