"""Faults planted in a run: a signal, a lack of memory or a figure that is no number, at a call of a named place, on one rank.

    with planted(Plant("evaluation", call=2, do="SIGTERM")): ...

In a process of its own (`Ranks`), the module forks as many ranks as it is told, so that torch is loaded once for many runs.
"""

from __future__ import annotations

import errno
import importlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tutelage.parallel import agree
from tutelage.train import stop

PLACES = {
    "preparation": "tutelage.train.scene:plan_run",
    "loading": "tutelage.train.scene:make_trainee",
    "forward": "tutelage.train.step:supervised_losses",
    "backward": "tutelage.train.step:step_loss",
    "norm": "tutelage.train.step:clip_gradients",
    "optimiser": "torch.optim:AdamW.step",
    "evaluation": "tutelage.train.evaluate:supervised_losses",
    "sampling": "tutelage.generate.local:_Rows.step",
    "save": "tutelage.train.checkpoint:write_pieces",
    "final": "tutelage.train.loop:save_model",
}
LONGEST_SECONDS = 60  # nothing may hang for longer


@dataclass(frozen=True)
class Plant:
    """What goes wrong, and at which calls of a place: on one rank, or on all; `alone`, it is not told to the others."""

    place: str
    do: str
    call: int = 1
    also: tuple[int, ...] = ()
    rank: int | None = None


def _out_of_memory() -> BaseException:
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


ERRORS: dict[str, Callable[[], BaseException]] = {
    "CUDA memory": _out_of_memory,
    "CPU memory": lambda: RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    ),
    "Python memory": MemoryError,
    "full disk": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "no right to write": lambda: PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
}


@contextmanager
def planted(plant: Plant) -> Iterator[list[float]]:
    """Plant a fault in this process; yield a list that gets the time of every call of the place, on the monotonic clock."""
    module, _, path = PLACES[plant.place].partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for attribute in owners:
        owner = getattr(owner, attribute)
    really, calls = getattr(owner, name), []
    is_here = plant.rank is None or plant.rank == int(os.environ.get("RANK", "0"))

    @wraps(really)
    def faulty(*args: Any, **kwargs: Any) -> Any:
        calls.append(time.monotonic())
        goes_wrong = is_here and len(calls) in (plant.call, *plant.also)
        if goes_wrong and plant.do in ERRORS:
            raise ERRORS[plant.do]()
        if goes_wrong and plant.do == "a day passes":
            stop.time = SimpleNamespace(monotonic=lambda: time.monotonic() + 86400)  # type: ignore[assignment]
        if goes_wrong and plant.do == "the clock runs backwards":
            started, backwards = time.time(), itertools.count()
            time.time = lambda: started - 3600 * next(backwards)
        if goes_wrong and plant.do.startswith("SIG"):
            for number, wish in enumerate(plant.do.removesuffix(" alone").split()):
                time.sleep(1.2 * min(number, 1))  # a second wish, not an echo of the first
                os.kill(os.getpid(), getattr(signal, wish))
        result = really(*args, **kwargs)
        return result * float("nan") if goes_wrong and plant.do == "nan" else result

    agreed, clock = agree.any_rank, time.time
    if plant.do.endswith("alone"):  # a build in which every rank decides for itself
        agree.any_rank = lambda flag, device: flag
    setattr(owner, name, faulty)
    try:
        yield calls
    finally:
        setattr(owner, name, really)
        stop.time, agree.any_rank, time.time = time, agreed, clock


@dataclass(frozen=True)
class Ended:
    """The exit codes of the ranks of a run (minus the signal for one that was killed), what each said, and how long it all took."""

    codes: list[int]
    said: list[str]
    seconds: float


class Ranks:
    """A process that runs the command line on forked ranks, one run after the other. A context."""

    def __enter__(self) -> Ranks:
        folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders)},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    def run(
        self,
        words: list[str],
        plant: Plant | None = None,
        *,
        count: int = 2,
        environment: Mapping[str, str | None] | None = None,
        umask: int = 0o022,
    ) -> Ended:
        """Run `tutelage WORDS` on `count` ranks; variables that are None in `environment` are taken out of it."""
        stdin, stdout = self._server.stdin, self._server.stdout
        assert stdin is not None and stdout is not None
        around = {"environment": dict(environment or {}), "umask": umask}
        told = {"words": words, "plant": None if plant is None else asdict(plant), "count": count, "around": around}
        stdin.write(json.dumps(told) + "\n")
        stdin.flush()
        return Ended(**json.loads(stdout.readline()))


def _serve() -> None:
    from tutelage.cli import training  # noqa: F401 - loaded once, before the ranks are forked

    for line in sys.stdin:
        told = json.loads(line)
        plant = None if told["plant"] is None else Plant(**told["plant"])
        print(json.dumps(asdict(_run(told["words"], plant, told["count"], told["around"]))), flush=True)


def _run(words: list[str], plant: Plant | None, count: int, around: dict[str, Any]) -> Ended:
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        started = time.monotonic()
        said = [Path(folder) / str(rank) for rank in range(count)]
        children = [_fork(words, plant, (rank, count, port), around, said[rank]) for rank in range(count)]
        codes = [_wait(child, started + LONGEST_SECONDS) for child in children]
        return Ended(codes, [file.read_text() for file in said], time.monotonic() - started)


def _fork(
    words: list[str], plant: Plant | None, place: tuple[int, int, str], around: dict[str, Any], said: Path
) -> int:
    child = os.fork()
    if child:
        return child
    code, (rank, count, port) = 99, place
    try:
        os.umask(around["umask"])
        for name, value in around["environment"].items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ.update(
            {name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT=port
        )
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        from tutelage.cli.edge import guard
        from tutelage.cli.main import app

        with planted(plant or Plant("final", "nothing")):
            code = guard(partial(app, words))
    finally:
        os._exit(code)


def _wait(child: int, deadline: float) -> int:
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.02)


if __name__ == "__main__":
    _serve()
