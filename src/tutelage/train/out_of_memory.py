"""Out of memory: noticed, written down, and answered with smaller passes when the run goes on.

A process that has run out is not asked to go on: another rank may be waiting in the middle of a pass, and freed memory is in pieces.
The file `out_of_memory.json` tells the next start at which size of a pass it was; see `fitting.Began`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tutelage.config.schema import Config
from tutelage.errors import ConfigError, OutOfMemoryError
from tutelage.files import jsonl
from tutelage.files.atomic import write_json
from tutelage.parallel import agree
from tutelage.train.fitting import ways_to_need_less
from tutelage.train.guard import rows_of
from tutelage.train.look import Look, Progress

SAID_OTHERWISE = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)
"""What torch says in a plain RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or beside it."""
    if isinstance(error, RuntimeError):  # torch's own among them
        return isinstance(error, torch.OutOfMemoryError) or any(said in str(error) for said in SAID_OTHERWISE)
    return isinstance(error, MemoryError) and not isinstance(error, OutOfMemoryError)


@contextmanager
def refusing_what_does_not_fit(config: Config) -> Iterator[None]:
    """Name what would need less where memory runs out before the first step, which smaller passes would not change.

    Raises:
        ConfigError: it did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"memory ran out before the first step: {_first_line(error)}", mend=ways_to_need_less(config)
        ) from error


@contextmanager
def noting_out_of_memory(look: Look, progress: Progress) -> Iterator[None]:
    """Write down when memory runs out inside, on whichever rank it does, so that the run can go on with smaller passes.

    Raises:
        OutOfMemoryError: it did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _written_down(look, progress, _first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _written_down(look: Look, progress: Progress, said: str) -> OutOfMemoryError:
    run, tokens, plan = look.journal.run, look.scene.settings.micro_tokens, look.scene.plan
    step = progress.state.step if progress.taking is None else progress.taking
    rows = [] if progress.taking is None else rows_of(plan.steps[step - 1], look.scene.documents)
    if run.path.is_dir():  # on another machine the folder may not be there
        write_json(run.out_of_memory, {"micro_tokens": tokens, "step": step, "rank": agree.rank(), "said": said})
        line = {"step": step, "reason": "out of memory", "out_of_memory": said, "rank": agree.rank()}
        jsonl.append(run.incidents, {**line, "micro_tokens": tokens, "rows": rows})
    what = "a look at the model after step" if progress.taking is None else "step"
    return OutOfMemoryError(
        f"out of memory at {what} {step}, in passes of {tokens} tokens: {said}",
        mend="the same command goes on with passes of half as many tokens and the same documents in each step; "
        f"or give it {ways_to_need_less(look.scene.config)}",
    )
