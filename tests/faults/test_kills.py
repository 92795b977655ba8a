"""Processes that are killed while they save: the newest checkpoint is always one that was saved, and the end is the same.

The children are forked from one process that has loaded everything, so that a thousand kills take minutes. Each goes on from the newest
whole checkpoint, takes steps and saves after each, until it is killed; a kill is counted as inside a save when it left something unfinished.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from crash import in_child, kill_at
from small_learner import KEEP, Learner, digest, learner, save, straight, take_step
from tiny import tiny_folder
from tiny_runs import configuration, outcome, write_texts
from tutelage.cli.training import open_run
from tutelage.errors import TutelageError
from tutelage.files import jsonl
from tutelage.files.atomic import STAGING_PREFIX, remove_staging
from tutelage.files.rundir import RunDir
from tutelage.generate.local import generate
from tutelage.train import loop
from tutelage.train.checkpoint import load_checkpoint, newest_whole_checkpoint
from tutelage.train.loop import train

LEAST_INSIDE = 0.3


def save_in_place(run: RunDir, trained: Learner, step: int) -> None:
    """Save as many programs do: over the only checkpoint there is, with no manifest."""
    folder = run.checkpoint(0)
    folder.mkdir(parents=True, exist_ok=True)
    content = torch.cat([tensor.detach().reshape(-1) for tensor in trained[0].parameters()]).numpy().tobytes()
    for part in range(4):
        (folder / f"part-{part}").write_bytes(content)


def go_on(
    path: Path,
    num_steps: int,
    saving: Callable[[RunDir, Learner, int], None] = save,
    *,
    begun: Callable[[], object] = lambda: None,
) -> None:
    """Go on from the newest whole checkpoint to the last step, saving after each; `begun` is called before the first."""
    with RunDir.open(path, lock=True) as run:
        trained = learner()
        folder, _ = newest_whole_checkpoint(run)
        step = 0 if folder is None else load_checkpoint(folder, *trained).step
        lines = jsonl.read(run.metrics) if run.metrics.exists() else []
        jsonl.write(run.metrics, [line for line in lines if line["step"] <= step])
        begun()
        with jsonl.Appender(run.metrics) as metrics:
            while step < num_steps:
                step += 1
                take_step(trained, step)
                metrics.append({"step": step, "hash": digest(trained)})
                saving(run, trained, step)


@dataclass
class Kills:
    """How many processes were killed, how many of them inside a save, and what was wrong afterwards."""

    tried: int = 0
    inside: int = 0
    lost: list[str] = field(default_factory=list)

    def look_at(self, path: Path, hashes: list[str], least: int) -> int:
        """Count the kill that just happened, and return the step that the run goes on from."""
        self.tried += 1
        run = RunDir(path)
        if run.checkpoints.is_dir() and any(run.checkpoints.glob(f"{STAGING_PREFIX}*")):
            self.inside += 1
        remove_staging(path)
        if run.checkpoints.is_dir():
            remove_staging(run.checkpoints)
        folder, damaged = newest_whole_checkpoint(run)
        if damaged:
            self.lost.append(f"kill {self.tried}: {damaged[0]}")
        trained = learner()
        step = 0
        if folder is not None:
            try:
                step = load_checkpoint(folder, *trained).step
            except (TutelageError, OSError, ValueError, LookupError) as error:
                self.lost.append(f"kill {self.tried}: {error}")
        if digest(trained) != hashes[step]:
            self.lost.append(f"kill {self.tried}: not the weights and moments of step {step}")
        lines = jsonl.read(run.metrics) if run.metrics.exists() else []
        if [line["hash"] for line in lines if line["step"] <= step] != hashes[1 : step + 1]:
            self.lost.append(f"kill {self.tried}: lines of the steps up to {step} are missing")
        if step < least:
            self.lost.append(f"kill {self.tried}: step {least} was on the disk, and now the newest is {step}")
        return step

    def check(self, at_least: int) -> None:
        """Fail where something was lost, or where too few kills came inside a save to show anything."""
        assert self.lost == []
        assert self.tried >= at_least
        assert self.inside >= LEAST_INSIDE * self.tried, f"{self.inside} of {self.tried} kills inside a save"


def kill_often(
    path: Path, hashes: list[str], *, kills: int, saving: Callable[[RunDir, Learner, int], None] = save
) -> Kills:
    """Let processes go on one after another and kill each at a random moment."""
    draw, found, newest = random.Random(0), Kills(), 0
    with RunDir.create(path):
        pass
    while found.tried < kills:
        begun, begin = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(begun)
                go_on(path, len(hashes) - 1, saving, begun=lambda: os.close(begin))  # noqa: B023 - it runs at once
            except BaseException:  # noqa: BLE001 - the child must not go on as a second pytest
                os._exit(1)
            os._exit(0)
        os.close(begin)
        os.read(begun, 1)  # nothing ever comes: it ends when the child has closed its end
        os.close(begun)
        time.sleep(draw.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended == 1:
            found.lost.append(f"kill {found.tried}: the process could not go on")
        if ended != -signal.SIGKILL:
            return found
        newest = found.look_at(path, hashes, newest)
    return found


NUM_STEPS = 4000
"""More than all children together come to."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Let torch begin no threads, which forked processes would wait for in vain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def hashes(_one_thread: None) -> list[str]:
    return straight(NUM_STEPS)


@pytest.mark.parametrize("kills", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_over_and_over_loses_nothing_and_ends_the_same(
    tmp_path: Path, hashes: list[str], kills: int, figure: Callable[[str, str], None]
) -> None:
    found = kill_often(tmp_path / "run", hashes, kills=kills)
    found.check(kills)
    newest = RunDir(tmp_path / "run").checkpoint_steps()[-1]
    assert in_child(lambda: go_on(tmp_path / "run", newest + 5)) == 0
    assert found.look_at(tmp_path / "run", hashes, newest + 5) == newest + 5
    assert found.lost == []
    figure("kills survived", f"{kills} of {kills}, {found.inside} inside a save; 0 unloadable, 0 mixed, end identical")


def test_kills_find_out_a_save_that_writes_over_the_only_checkpoint(tmp_path: Path, hashes: list[str]) -> None:
    assert kill_often(tmp_path / "run", hashes, kills=10, saving=save_in_place).lost


def test_a_test_that_killed_nobody_inside_a_save_fails() -> None:
    with pytest.raises(AssertionError, match="0 of 40 kills inside a save"):
        Kills(tried=40).check(40)


def test_a_kill_at_any_file_operation_of_a_run_that_goes_on_loses_nothing(
    tmp_path: Path, hashes: list[str], figure: Callable[[str, str], None]
) -> None:
    """Every operation between two steps: the line of the step, the save, the removal of an older checkpoint, the opening again."""
    with RunDir.create(tmp_path / "run"):
        pass
    assert in_child(lambda: go_on(tmp_path / "run", KEEP + 1)) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    found, ended = Kills(), -signal.SIGKILL
    while ended == -signal.SIGKILL:
        shutil.rmtree(tmp_path / "run")
        shutil.copytree(tmp_path / "before", tmp_path / "run")
        ended = in_child(lambda: (kill_at(found.tried), go_on(tmp_path / "run", KEEP + 2)))
        found.look_at(tmp_path / "run", hashes, KEEP + 1)
        if found.tried % 5 == 0:
            assert in_child(lambda: go_on(tmp_path / "run", KEEP + 3)) == 0
            assert RunDir(tmp_path / "run").checkpoint_steps()[-1] == KEEP + 3
    assert ended == 0
    assert found.lost == []
    assert found.tried > 20
    figure("named file operations of a run killed at", f"{found.tried - 1}, each leaves the newest checkpoint whole")


REAL = (
    "train.max_steps=4",
    "train.checkpoint_every_steps=1",
    "train.keep_checkpoints=1",
    "train.early_stopping.patience=9",
    "data.cache=off",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    tiny_folder(folder / "model", "llama_tied")
    write_texts(folder)
    return folder


def train_as_the_command_does(place: Path, name: str, *changes: str) -> None:
    """Begin the run in `place/name`, or go on with it."""
    resolved = configuration(place, *REAL, f"run.dir={place / name}", *changes)
    run, resumes = open_run(resolved.config, resume=False)
    with run:
        train(resolved, run, generate=generate, resume=resumes)


@pytest.mark.parametrize(
    ("every", "in_background"),
    [
        (97, "false"),
        (181, "true"),
        pytest.param(7, "false", marks=pytest.mark.slow),
        pytest.param(7, "true", marks=pytest.mark.slow),
    ],
)
def test_a_real_run_killed_at_a_file_operation_is_gone_on_with_by_the_same_command(
    place: Path, every: int, in_background: str, figure: Callable[[str, str], None]
) -> None:
    """Its lines, its JSON files, its checkpoints, its best weights, its result: every seventh operation, or fewer."""
    changes, name = [f"train.save_in_background={in_background}"], f"{every}-{in_background}"
    train_as_the_command_does(place, f"straight-{name}", *changes)
    whole, number, ended = outcome(place / f"straight-{name}"), every // 2, -signal.SIGKILL
    tried = 0
    while True:
        folder = f"killed-{name}-{number}"
        ended = in_child(lambda: (kill_at(number), train_as_the_command_does(place, folder, *changes)))  # noqa: B023
        if ended != -signal.SIGKILL:
            break
        tried += 1
        if not (place / folder / "run.json").exists() or RunDir(place / folder).status["status"] != "finished":
            train_as_the_command_does(place, folder, *changes)
        assert outcome(place / folder) == whole, f"killed before operation {number}"
        assert not list((place / folder).rglob(f"{STAGING_PREFIX}*"))
        shutil.rmtree(place / folder)
        number += every
    assert ended == 0
    assert tried >= 400 // every
    figure(f"real run killed at a file operation (in the background: {in_background})", f"{tried} of {tried} the same")


def test_a_run_killed_between_its_result_and_its_end_writes_the_result_again(place: Path) -> None:
    def killed() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "_write_result", lambda look: (write(look), os.kill(os.getpid(), signal.SIGKILL)))
            train_as_the_command_does(place, "written")

    write = loop._write_result
    train_as_the_command_does(place, "whole")
    assert in_child(killed) == -signal.SIGKILL
    run = RunDir(place / "written")
    assert run.final.is_dir() and run.status["status"] != "finished"
    train_as_the_command_does(place, "written")
    assert outcome(run.path) == outcome(place / "whole")
    assert not list(run.path.rglob(f"{STAGING_PREFIX}*"))
