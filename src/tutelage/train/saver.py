"""Saving while a run goes on: checkpoints in the foreground or behind its back, which of them stay, and what to do when the disk is full.

The saves of a run follow one another: one begins when the one before has ended, and what went wrong in that is met by every rank at the
same place, the edge of a step. So a background thread never has to talk to other ranks, and no rank goes on alone.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

from tutelage.config.schema import TrainConfig
from tutelage.errors import DiskFullError, RunDirError
from tutelage.files.manifest import Verifier
from tutelage.files.room import is_full
from tutelage.parallel import agree
from tutelage.parallel.shard import is_in_parts
from tutelage.train.checkpoint import RunState, Snapshot, keep_newest, save_best, snapshot, write_snapshot
from tutelage.train.journal import Journal
from tutelage.train.narrate import Narrator
from tutelage.train.stop import StopFlag

MOST_FAILURES = 2
"""Saves in a row that the disk may have no room for before the run stops."""
MAKE_ROOM = "make room on the disk of run.dir, or lower train.keep_checkpoints; the same command then goes on"


class Saver:
    """Saves the checkpoints of a run that goes on. Every rank holds one, and calls the same methods in the same order.

    Replicas save in the background where `train.save_in_background` asks for it: the tensors are copied to the host before `save`
    returns. A model in parts is saved in the foreground, as its ranks have to meet before the checkpoint gets its name.
    """

    def __init__(self, journal: Journal, narrator: Narrator, stop: StopFlag, config: TrainConfig) -> None:
        self.saved_step: int | None = None
        """Step of the newest checkpoint on the disk, as far as this run knows."""
        self._journal, self._narrator, self._stop, self._config = journal, narrator, stop, config
        self._verifier = Verifier()
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._writing: Future[None] | None = None
        self._pending: int | None = None  # step of a save whose end has not been looked at
        self._error: OSError | None = None
        self._failures = 0

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._background.shutdown(wait=True)  # whatever ended the run: what is being written becomes whole

    def begin(self, model: torch.nn.Module, optimiser: torch.optim.Optimizer, state: RunState) -> None:
        """Save before the first step of a run that keeps checkpoints: whether saving works shows now, not after hours.

        There are no moments yet, so this checkpoint holds the weights alone, a third of a later one; for those room is asked for.

        Raises: as `save` does.
        """
        if self._config.checkpoint_every_steps is None or self.saved_step is not None:
            return
        self.save(model, optimiser, state, must=True)

    def save(
        self, model: torch.nn.Module, optimiser: torch.optim.Optimizer, state: RunState, *, must: bool = False
    ) -> None:
        """Write a checkpoint, unless it is there already, and remove those that are to go.

        A disk without room leaves the older ones as they are; the run goes on and tries again when the next one is due. With `must`
        the checkpoint is on the disk when this returns.

        Raises:
            DiskFullError: the disk is full, and the checkpoint is one that must be, or the save before failed likewise.
            OSError: it cannot be written for another reason; RunDirError where another rank could not.
        """
        self.settle()
        if self.saved_step == state.step:
            return
        in_background = self._config.save_in_background and not must and not is_in_parts(model)
        taken = snapshot(model, optimiser, state, copied=in_background)
        self._pending = state.step
        if taken is not None and in_background:
            self._writing = self._background.submit(self._write, taken)
        elif taken is not None:
            try:
                self._write(taken)
            except OSError as error:
                self._error = error
        if not in_background:
            self.settle(must=must)

    def look_back(self) -> None:
        """Meet, at the edge of a step, what became of a save in the background that has ended.

        Raises: as `save` does.
        """
        if self._pending is None or agree.any_rank(self._is_writing(), agree.device_of_sums()):
            return
        self.settle()

    def settle(self, *, must: bool = False) -> None:
        """Wait until nothing is being written any more, and meet what became of it.

        Raises: as `save` does.
        """
        if self._pending is None:
            return
        error = self._error if self._writing is None else self._writing.exception()  # waits for its end
        step = self._pending
        self._writing = self._pending = self._error = None
        failed = agree.any_rank(error is not None, agree.device_of_sums())
        if not failed:
            self.saved_step, self._failures = step, 0
            return
        if not agree.any_rank(is_full(error), agree.device_of_sums()):
            raise error or RunDirError(
                f"another process could not save the checkpoint of step {step}", mend="look at what that one said last"
            )
        self._failures += 1
        problem = f"the checkpoint of step {step} could not be saved: {error or 'the disk of another process is full'}"
        if must or self._failures >= MOST_FAILURES:
            raise DiskFullError(f"{problem}{self._left()}", mend=MAKE_ROOM) from error
        every = self._config.checkpoint_every_steps
        self._narrator.say(f"{problem}{self._left()}; trying again in {every} steps. Make room on the disk of run.dir")
        self._journal.incident({"step": step, "reason": problem, "not_saved": step})

    def save_best(self, model: torch.nn.Module, state: RunState) -> None:
        """Write the weights as the best so far. Every rank calls it.

        Raises:
            DiskFullError: the disk is full. The checkpoint from before this look at the model repeats it when there is room.
        """
        self.settle()
        failure: OSError | None = None
        try:
            save_best(self._journal.run, model, state, self._verifier)
        except OSError as error:
            failure = error
        if agree.any_rank(is_full(failure), agree.device_of_sums()):
            raise DiskFullError(
                f"the disk is full: the best weights, of step {state.step}, could not be saved{self._left()}",
                mend=MAKE_ROOM,
            ) from failure
        if failure is not None:
            raise failure

    def _is_writing(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def _left(self) -> str:
        return "" if self.saved_step is None else f". The checkpoint of step {self.saved_step} is untouched"

    def _write(self, taken: Snapshot) -> None:
        run, began = self._journal.run, time.perf_counter()
        folder = run.checkpoint(taken.state.step)
        write_snapshot(folder, taken)
        if agree.is_main():
            self._verifier.wrote(folder)
            keep_newest(run, self._config.keep_checkpoints, self._verifier)
        self._stop.took("save", time.perf_counter() - began)
