"""What keeping the loss by slice costs: the parts of a training step that do nothing else, against the whole step.

    python -m benchmarks.slices [--rounds 40]

A step of one pack of 2,000 tokens of instruction-like conversations, 15 M Llama, fp32, one CPU thread: finding the cell of each
supervised token, adding its figures to the table of cells, and reading the table are timed apart, and as often as the step itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.attention import PACK_TOKENS, documents_of_one_pack
from benchmarks.packing import table
from benchmarks.scaling import WIDTHS, llama
from tutelage.chat.rendered import Part, Rendered
from tutelage.config.schema import Layout, Precision, TrainConfig
from tutelage.model.attention import register_attention
from tutelage.model.head import supervised_losses
from tutelage.pack.batch import pack_batch
from tutelage.pack.plan import Step
from tutelage.pack.slices import NUM_CELLS, SLICES, cells_of
from tutelage.train.optim import build_optimiser
from tutelage.train.step import StepSettings, train_step

SETTINGS = StepSettings(
    layout=Layout.PACKED,
    micro_tokens=PACK_TOKENS,
    seed=0,
    precision=Precision.FP32,
    device=torch.device("cpu"),
    largest_grad_norm=1.0,
    neftune_alpha=0.0,
    sources=("random",),
)


def conversations() -> list[Rendered]:
    """Return documents that fill one pack, each a question and an answer with its stop token."""
    documents = []
    for one in documents_of_one_pack(0):
        part = np.full(len(one), Part.CONTENT, dtype=np.int8)
        part[-1] = Part.STOP
        message = (one.weights != 0).astype(np.int32)
        documents.append(replace(one, part=part, message=message, roles=("user", "assistant")))
    return documents


def seconds(act: Callable[[], object]) -> float:
    """Return how long something takes by the clock."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def main() -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    register_attention()
    documents = conversations()
    planned = Step(
        packs=(tuple(range(len(documents))),),
        num_tokens=sum(map(len, documents)),
        weight_sum=float(sum(document.weights[1:].sum() for document in documents)),
    )
    model = llama(WIDTHS[1])
    optimiser = build_optimiser(model, TrainConfig())
    batch = pack_batch(documents)
    with torch.no_grad():
        losses = supervised_losses(model, batch)
    rows = torch.stack([losses.loss.double()] * 4)
    cells = torch.zeros(4, NUM_CELLS, dtype=torch.float64)
    parts: dict[str, Callable[[], object]] = {
        "finding the cells": lambda: [cells_of(one, np.flatnonzero(one.weights[1:]) + 1) for one in documents],
        "adding to the table": lambda: cells.index_add_(1, batch.supervised_cell, rows),
        "reading the table": lambda: [cells.numpy().T[own].sum(axis=0).tolist() for own in SLICES.values()],
        "the whole step": lambda: train_step(model, optimiser, planned, documents, SETTINGS, step=1),
    }
    for act in parts.values():
        act()
    taken = [{name: seconds(act) for name, act in parts.items()} for _ in range(rounds)]
    median = {name: statistics.median(each[name] for each in taken) for name in parts}
    shares = sorted(1 - each["the whole step"] / sum(each.values()) for each in taken)
    found = [[name, f"{1e3 * value:.3f} ms"] for name, value in median.items()]
    low, high = (shares[int(q * (rounds - 1))] for q in (0.05, 0.95))
    found.append(["what slices take of a step", f"{statistics.median(shares):.3%} ({low:.3%} to {high:.3%})"])
    tokens = (
        f"{planned.num_tokens:,} tokens, {int(planned.weight_sum):,} of them supervised, {len(documents)} documents"
    )
    print(table([tokens, f"median of {rounds}"], found))


if __name__ == "__main__":
    main()
