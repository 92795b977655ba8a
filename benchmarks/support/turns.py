"""Processes that take turns: each does its part of a round when it is told to, and says what it cost.

A worker is this benchmark's own module, started again with `--worker` and a JSON description. It reads a line for each turn and
answers with one line of JSON; whatever libraries print goes to standard error. Between its turns it sleeps, so that variants
that need different settings of a process (allocator, patched classes) can still be interleaved, one at work at a time.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tutelage.files import proc


class Turns:
    """The worker's end: `wait` until told, `done` when the work is over."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._began = (0.0, 0.0)
        self._before = 0

    def wait(self) -> None:
        """Sleep until the next turn begins; leave the process when there is none any more."""
        if not self._before:
            self._before = proc.read_bytes(proc.STATUS, "VmRSS") or 0
            proc.forget_peak()
        if not sys.stdin.readline():
            self._answers.flush()
            os._exit(0)  # not through a trainer that would save and report
        self._began = (time.perf_counter(), time.process_time())

    def done(self, **facts: Any) -> None:
        """Answer with `facts`, the seconds since `wait` by the clock and of the processor, and the peak since the first one."""
        clock, processor = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        peak = proc.read_bytes(proc.STATUS, "VmHWM") or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        measured = {"seconds": clock, "processor_seconds": processor, "peak_bytes": peak - self._before}
        self._answers.write(json.dumps({**measured, **facts}) + "\n")
        self._answers.flush()


Turn = Callable[[], dict[str, Any]]


@contextmanager
def workers(module: str, jobs: Mapping[str, Any], *, threads: int) -> Iterator[dict[str, Turn]]:
    """Start a worker of `module` for each job, and yield for each a function that gives it a turn and returns its answer."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    started: dict[str, subprocess.Popen[str]] = {}
    try:
        for name, job in jobs.items():
            command = [sys.executable, "-m", module, "--worker", json.dumps(job)]
            started[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
        yield {name: _turn(name, worker) for name, worker in started.items()}
    finally:
        for worker in started.values():
            assert worker.stdin is not None
            worker.stdin.close()
        for worker in started.values():
            try:
                worker.wait(timeout=30)
            except subprocess.TimeoutExpired:
                worker.kill()


def _turn(name: str, worker: subprocess.Popen[str]) -> Turn:
    def give() -> dict[str, Any]:
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(f"{name} ended before its turn; see what it printed") from None
        line = worker.stdout.readline()
        if not line:
            raise RuntimeError(f"{name} ended in its turn; see what it printed")
        answer: dict[str, Any] = json.loads(line)
        return answer

    return give


def take_turns(turns: Mapping[str, Turn], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Give every worker a turn in each round; return what each answered."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            answers[name].append(turn())
    return answers


def seconds_of(answers: Sequence[Mapping[str, Any]], clock: str) -> list[float]:
    """Return the seconds of each answer, by `clock`: "seconds" or "processor_seconds"."""
    return [float(answer[clock]) for answer in answers]
