"""What saving costs: where the seconds of a checkpoint go, and what part of the time of training they are.

    python -m benchmarks.saving [--models demo 100M] [--threads N] [--saves 2] [--folder FOLDER]

The demo's model and batch, and a random Llama of 100M with a batch of 2,048 tokens, full fine-tuning in fp32. A save is copied (to the host
and, in the background, to memory of its own), written, hashed and flushed to the disk; what is left over is the rest. In the foreground it
holds training up for all of that. In the background it holds it up for the copy and by what the steps meanwhile are slower than others.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.packing import table
from benchmarks.support.shapes import ORDINARY, random_llama, random_rows
from tutelage.config.schema import TrainConfig
from tutelage.files import atomic
from tutelage.files.atomic import remove_folder
from tutelage.model.attention import NAME, register_attention
from tutelage.model.head import supervised_losses
from tutelage.model.locate import SHIPPED_FOLDER
from tutelage.pack.batch import Batch, pack_batch
from tutelage.train.checkpoint import RunState, Snapshot, snapshot, write_snapshot
from tutelage.train.environment import keep_freed_memory
from tutelage.train.optim import build_optimiser, clip_gradients
from tutelage.train.stop import Improvement

DEMO = "demo"
BATCH_TOKENS = 2048
STEPS_TIMED = 2
EVERY_STEPS = 100
"""How often a checkpoint is saved, for the share of the time of training; the demo evaluates as often."""


@dataclass
class Learner:
    """A model that is trained on the same batch again and again."""

    model: PreTrainedModel
    batch: Batch
    optimiser: torch.optim.Optimizer

    def step(self) -> float:
        """Take a step and return its seconds."""
        began = time.perf_counter()
        loss = supervised_losses(self.model, self.batch).weighted_sum / self.batch.num_supervised
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    def snapshot(self, *, copied: bool) -> Snapshot:
        """Return what a checkpoint of now is made of."""
        state = RunState(1, Improvement(), "", "", "")
        taken = snapshot(self.model, self.optimiser, state, copied=copied)
        assert taken is not None
        return taken


def make_learner(name: str) -> Learner:
    """Make one of the models and take a step, so that there are moments."""
    if name == DEMO:
        model = AutoModelForCausalLM.from_pretrained(SHIPPED_FOLDER, dtype=torch.float32)
    else:
        model = random_llama(name)
    model.set_attn_implementation(NAME)
    rows = random_rows(ORDINARY, tokens=BATCH_TOKENS, vocabulary=model.config.vocab_size)
    learner = Learner(model.train(), pack_batch(rows), build_optimiser(model, TrainConfig()))
    learner.step()
    return learner


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Add up the seconds that the writing, flushing and hashing of files take inside."""
    spent = {"write": 0.0, "flush": 0.0, "hash": 0.0}

    def clocked(part: str, really: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            began = time.perf_counter()
            try:
                return really(*args)
            finally:
                spent[part] += time.perf_counter() - began

        return call

    class Hash:
        def __init__(self) -> None:
            digest = hashlib.sha256()
            self.update, self.hexdigest = clocked("hash", digest.update), digest.hexdigest

    really = os.write, os.fsync, atomic.hashlib  # type: ignore[attr-defined]
    os.write, os.fsync = clocked("write", os.write), clocked("flush", os.fsync)  # type: ignore[assignment]
    atomic.hashlib = type("hashlib", (), {"sha256": Hash})  # type: ignore[assignment, attr-defined]
    try:
        yield spent
    finally:
        os.write, os.fsync, atomic.hashlib = really  # type: ignore[attr-defined]


def save_in_foreground(learner: Learner, folder: Path) -> dict[str, float]:
    """Save once, and return the seconds of its parts and in all."""
    began = time.perf_counter()
    taken = learner.snapshot(copied=False)
    with timed() as spent:
        write_snapshot(folder, taken)
    seconds = time.perf_counter() - began
    remove_folder(folder)
    return {**spent, "foreground": seconds}


def save_in_background(learner: Learner, folder: Path, usual_seconds: float) -> dict[str, float]:
    """Save once while training goes on, and return the seconds of the copy and by which the steps were held up in all."""
    began = time.perf_counter()
    taken = learner.snapshot(copied=True)
    copied = time.perf_counter() - began
    writer = Thread(target=write_snapshot, args=(folder, taken))
    writer.start()
    held_up = copied
    while writer.is_alive():
        held_up += learner.step() - usual_seconds
    writer.join()
    remove_folder(folder)
    return {"copy": copied, "background": max(0.0, held_up)}  # steps vary by more than a small save takes


def row_of(name: str, folder: Path, num_saves: int) -> list[str]:
    """Measure one model and return its row of the table: medians over the saves."""
    learner = make_learner(name)
    step = statistics.median(learner.step() for _ in range(STEPS_TIMED))
    saves = [
        {**save_in_foreground(learner, folder / "fore"), **save_in_background(learner, folder / "back", step)}
        for _ in range(num_saves)
    ]
    seconds = {part: statistics.median(save[part] for save in saves) for part in saves[0]}
    size = learner.snapshot(copied=False).num_bytes
    cells = [f"{seconds[part]:.3f}" for part in ("copy", "write", "hash", "flush", "foreground", "background")]
    shares = [f"{seconds[part] / (EVERY_STEPS * step + seconds[part]):.2%}" for part in ("hash", "flush", "foreground")]
    background = max(0.0, seconds["background"])
    shares.append(f"{background / (EVERY_STEPS * step + background):.2%}")
    return [name, f"{size / 1e6:,.0f} MB", f"{step:.2f}", *cells, *shares]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=(DEMO, "15M", "100M"), default=[DEMO, "100M"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--saves", type=int, default=2)
    parser.add_argument("--folder", help="on the disk that is measured; by default the one of the current folder")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    keep_freed_memory()
    register_attention()
    with tempfile.TemporaryDirectory(dir=words.folder or ".") as folder:
        rows = [row_of(name, Path(folder), words.saves) for name in words.models]
    print(
        f"Seconds, medians of {words.saves} saves of full fine-tuning in fp32, {words.threads} thread(s), batches of "
        f"{BATCH_TOKENS:,} tokens; shares of the time of training with a save every {EVERY_STEPS} steps.\n"
    )
    heads = ["model", "checkpoint", "a step", "copy", "write", "hash", "flush", "held up, foreground"]
    heads += ["held up, background", "hash, share", "flush, share", "foreground, share", "background, share"]
    print(table(heads, rows))


if __name__ == "__main__":
    main()
