"""A checkpoint survives what machines do to files: power cuts, kills, full disks, damaged bytes. Or it is known not to have."""

from __future__ import annotations

import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from crash import in_child
from power import Disk
from tiny import tiny_model
from tutelage.config.schema import TrainConfig
from tutelage.files.manifest import Verifier
from tutelage.files.rundir import RunDir
from tutelage.train import checkpoint
from tutelage.train.checkpoint import RunState, keep_newest, newest_whole_checkpoint, save_checkpoint
from tutelage.train.optim import build_optimiser
from tutelage.train.stop import Improvement

OLD, NEW = 2, 4


@pytest.fixture(scope="module")
def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = tiny_model("llama_tied")
    optimiser = build_optimiser(model, TrainConfig(learning_rate=0.01))
    ids = torch.tensor([[5, 9, 3, 7]])
    model(input_ids=ids, labels=ids).loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    return model, optimiser


@pytest.fixture
def run(tmp_path: Path, trained: tuple[torch.nn.Module, torch.optim.Optimizer]) -> Iterator[RunDir]:
    """Open a run that has the checkpoint of step 2."""
    with RunDir.create(tmp_path / "run") as made:
        save(made, trained, OLD)
        yield made


def save(run: RunDir, trained: tuple[torch.nn.Module, torch.optim.Optimizer], step: int) -> None:
    save_checkpoint(run.checkpoint(step), *trained, RunState(step, Improvement(), "config", "data", "tokenizer"))


def newest_in(folder: Path) -> int | None:
    """Return the step of the newest whole checkpoint of the run in `folder`."""
    found, _ = newest_whole_checkpoint(RunDir(folder))
    return None if found is None else checkpoint.read_state(found).step


@pytest.mark.parametrize("names_without_bytes", [False, True])
def test_a_power_cut_leaves_the_old_checkpoint_or_the_new_one(
    run: RunDir,
    trained: tuple[torch.nn.Module, torch.optim.Optimizer],
    tmp_path: Path,
    names_without_bytes: bool,
    figure: Callable[[str, str], None],
) -> None:
    found = steps_after_cuts(run, trained, tmp_path, names_without_bytes=names_without_bytes)
    assert set(found) == {OLD, NEW}
    assert found == sorted(found), "the new checkpoint was there and went away again"
    assert found[-1] == NEW
    lost = "bytes" if names_without_bytes else "names and bytes"
    figure(
        f"power cuts of a save, unflushed {lost} lost: tried, a whole checkpoint left", f"{len(found)}, {len(found)}"
    )


def test_the_model_of_a_power_cut_knows_a_save_that_forgets_to_flush(
    run: RunDir, trained: tuple[torch.nn.Module, torch.optim.Optimizer], tmp_path: Path
) -> None:
    assert None in steps_after_cuts(run, trained, tmp_path, names_without_bytes=True, flushes=False)


def steps_after_cuts(
    run: RunDir,
    trained: tuple[torch.nn.Module, torch.optim.Optimizer],
    tmp_path: Path,
    *,
    names_without_bytes: bool,
    flushes: bool = True,
) -> list[int | None]:
    """Save and clear away, and return what a cut after each file operation leaves to go on from."""
    disk = Disk(run.path)
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch, flushes=flushes)
        save(run, trained, NEW)
        keep_newest(run, 1, Verifier())
    found = []
    for number, moment in enumerate(disk.moments):
        folder = tmp_path / f"cut-{number}"
        disk.after_cut(moment, folder, names_without_bytes=names_without_bytes)
        found.append(newest_in(folder))
        shutil.rmtree(folder)
    assert len(found) >= 8
    return found


@pytest.mark.parametrize("part", [part / 20 for part in range(20)])
def test_a_disk_that_fills_up_while_saving_leaves_the_old_checkpoint_alone(
    run: RunDir, trained: tuple[torch.nn.Module, torch.optim.Optimizer], part: float
) -> None:
    before = {file: file.read_bytes() for file in run.checkpoints.rglob("*") if file.is_file()}
    largest = max(map(len, before.values()))

    def save_with_little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails and says so, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(part * largest), resource.RLIM_INFINITY))
        save(run, trained, NEW)

    assert in_child(save_with_little_room) == 1
    assert {file: file.read_bytes() for file in run.checkpoints.rglob("*") if file.is_file()} == before


def missing(file: Path) -> None:
    file.unlink()


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[random.Random(file.name).randrange(len(content))] ^= 1 << random.Random(file.name).randrange(8)
    file.write_bytes(content)


def zeroed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    block = random.Random(file.name).randrange(len(content))
    content[block : block + 4096] = bytes(len(content[block : block + 4096]))
    file.write_bytes(content)


def swapped_with_the_older(file: Path) -> None:
    content = bytearray((file.parents[1] / f"step-{OLD:06d}" / file.name).read_bytes())
    if content == file.read_bytes():  # of the same weights: make the older file another one
        content = content[:-2] + b"x}" if file.suffix == ".json" else bytes(len(content))
    file.write_bytes(content)


def extra(file: Path) -> None:
    file.with_name(f"{file.stem}-2{file.suffix}").write_bytes(file.read_bytes())


FAULTS = (missing, truncated, flipped, zeroed, swapped_with_the_older, extra)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.__name__))
def test_damage_to_any_file_is_noticed_and_the_older_checkpoint_taken(
    run: RunDir,
    trained: tuple[torch.nn.Module, torch.optim.Optimizer],
    fault: Callable[[Path], None],
    figure: Callable[[str, str], None],
) -> None:
    save(run, trained, NEW)
    files = sorted(file for file in run.checkpoint(NEW).rglob("*") if file.is_file())
    assert len(files) >= 4
    for file in files:
        whole = run.path / "whole"
        shutil.copytree(run.checkpoint(NEW), whole)
        assert newest_in(run.path) == NEW
        fault(file)
        assert newest_in(run.path) == OLD, f"{fault.__name__}: {file.name}"
        shutil.rmtree(run.checkpoints / f"bad-{run.checkpoint(NEW).name}")
        whole.rename(run.checkpoint(NEW))
    figure(f"files of a checkpoint {fault.__name__.replace('_', ' ')}: tried, noticed", f"{len(files)}, {len(files)}")
