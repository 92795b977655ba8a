"""Make the runs of some claims: those that are missing, each once, in as many processes as asked for."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tutelage.lab.claims.claim import Claim
from tutelage.lab.claims.settings import Scale, Settings
from tutelage.lab.claims.store import RunStore

WORLD_SEED = 0
"""The world of the base model that ships."""


@dataclass(frozen=True)
class Progress:
    """How far the runs are. Units: seconds; `left_seconds` is an estimate from the runs that were made just now."""

    done: int
    count: int
    what: str
    run_seconds: float
    left_seconds: float


Tell: TypeAlias = Callable[[Progress], None]


def runs_of(claims: Sequence[Claim], scale: Scale, num_seeds: int) -> dict[Settings, str]:
    """Return every run that the claims need, with the name of its first arm: seed by seed, so that all claims have equally many at any time."""
    runs: dict[Settings, str] = {}
    for seed in range(num_seeds):
        for claim in claims:
            for arm in claim.arms:
                runs.setdefault(scale.of(arm.settings, seed), f"{claim.name}: {arm.name}, seed {seed}")
    return runs


def make_runs(runs: dict[Settings, str], store: RunStore, *, num_workers: int, tell: Tell) -> None:
    """Make the runs that `store` lacks. Each is kept as soon as it is done, so whoever is stopped goes on from there."""
    missing = [settings for settings in runs if store.find(settings) is None]
    began = time.monotonic()
    for made, (settings, seconds) in enumerate(_made(missing, store, num_workers), start=1):
        left = (time.monotonic() - began) / made * (len(missing) - made)
        tell(Progress(len(runs) - len(missing) + made, len(runs), runs[settings], seconds, left))


def make_run(settings: Settings, folder: Path) -> float:
    """Make one run, keep it in the store at `folder`, and return how many seconds it took."""
    from tutelage.lab.claims.outcome import outcome
    from tutelage.lab.world import make_world

    found = outcome(make_world(WORLD_SEED), settings)
    RunStore(folder).keep(settings, found)
    return float(found["seconds"])


def _made(missing: Sequence[Settings], store: RunStore, num_workers: int) -> Iterator[tuple[Settings, float]]:
    """Yield each run as it is done, with its seconds."""
    if num_workers == 1 or len(missing) < 2:
        yield from ((settings, make_run(settings, store.folder)) for settings in missing)
        return
    # Fresh processes: one that is forked from a process with torch's threads in it may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_parent) as pool:
        pending: dict[Future[float], Settings] = {
            pool.submit(make_run, settings, store.folder): settings for settings in missing
        }
        try:
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Let this process end as soon as the one that started it does; by itself it would go on with the runs that were handed out."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_end, daemon=True).start()
