"""Any order of steps, saves, kills, damage and full disks: the run goes on from weights and moments that it once had."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from crash import in_child, kill_at
from small_learner import digest, learner, save, straight, take_step
from tutelage.errors import RunDirError
from tutelage.files import manifest
from tutelage.files.atomic import remove_staging
from tutelage.files.rundir import RunDir
from tutelage.train.checkpoint import load_checkpoint, newest_whole_checkpoint

MOST_STEPS = 60


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Let torch begin no threads, which forked processes would wait for in vain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    Machine.hashes = straight(MOST_STEPS)
    yield
    torch.set_num_threads(threads)


class Machine(RuleBasedStateMachine):
    """A run, and what of it is known to be on the disk and whole."""

    hashes: list[str]
    """After every step of a run that nothing befalls."""

    def __init__(self) -> None:
        super().__init__()
        self.run = RunDir(tempfile.mkdtemp(prefix="machine-"))
        self.trained, self.step = learner(), 0
        self.whole: set[int] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.run.path)

    @rule(count=st.integers(1, 3))
    def learn(self, count: int) -> None:
        for _ in range(min(count, MOST_STEPS - self.step)):
            self.step += 1
            take_step(self.trained, self.step)

    def _is_new(self) -> bool:
        return not self.run.checkpoint(self.step).exists()

    @precondition(_is_new)
    @rule()
    def save(self) -> None:
        save(self.run, self.trained, self.step)
        self.whole = {*self.whole, self.step} & set(self.run.checkpoint_steps())
        assert self.step in self.whole

    @precondition(_is_new)
    @rule(operation=st.integers(0, 40))
    def kill_while_saving(self, operation: int) -> None:
        ended = in_child(lambda: (kill_at(operation), save(self.run, self.trained, self.step)))
        assert ended in (0, -signal.SIGKILL)
        if self.step in self.run.checkpoint_steps():
            self.whole.add(self.step)
        assert ended != 0 or self.step in self.whole
        self.whole &= set(self.run.checkpoint_steps())
        self.go_on()

    @precondition(_is_new)
    @rule(room=st.integers(0, 400_000), number=st.sampled_from((errno.ENOSPC, errno.EDQUOT)))
    def fill_the_disk(self, room: int, number: int) -> None:
        left, really = room, os.write

        def write(descriptor: int, data: bytes) -> int:
            nonlocal left
            if left <= 0:
                raise OSError(number, os.strerror(number))
            part = data[:left]  # a disk takes what it can
            left -= len(part)
            return really(descriptor, part)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", write)
            try:
                save(self.run, self.trained, self.step)
                self.whole.add(self.step)
            except OSError as error:
                assert error.errno == number
        assert remove_staging(self.run.checkpoints) == []
        self.whole &= set(self.run.checkpoint_steps())

    @precondition(lambda self: self.whole)
    @rule(data=st.data())
    def flip_a_bit(self, data: st.DataObject) -> None:
        folder = self.run.checkpoint(data.draw(st.sampled_from(sorted(self.whole))))
        file = data.draw(st.sampled_from(sorted(folder.iterdir())))
        content = bytearray(file.read_bytes())
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        self.whole.discard(int(folder.name.removeprefix("step-")))

    @rule()
    def go_on(self) -> None:
        if self.run.checkpoints.is_dir():
            remove_staging(self.run.checkpoints)
        folder, _ = newest_whole_checkpoint(self.run)
        self.trained = learner()
        self.step = 0 if folder is None else load_checkpoint(folder, *self.trained).step
        assert self.step == max(self.whole, default=0)

    @invariant()
    def has_the_weights_and_moments_of_its_step(self) -> None:
        assert digest(self.trained) == self.hashes[self.step]


def check(examples: int, phases: tuple[Phase, ...] = tuple(Phase)) -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            derandomize=True,
            database=None,
            report_multiple_bugs=False,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("examples", [15, pytest.param(300, marks=pytest.mark.slow)])
def test_whatever_befalls_a_run_it_goes_on_from_what_it_had(examples: int) -> None:
    check(examples)


def test_the_machine_finds_out_a_program_that_hashes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_difference", lambda *what: None)
    with pytest.raises((AssertionError, RunDirError, ValueError, LookupError)):
        check(100, (Phase.generate,))
