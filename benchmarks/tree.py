"""What it saves to compute a prefix that documents share once: a training step on trees against the same documents in packs.

    python -m benchmarks.tree [--threads N] [--rounds 3] [--shapes 15M 100M]

One step is forward, loss on the supervised tokens, backward and AdamW. Losses and gradients are compared before anything is timed.
The two layouts take turns within a round, and the ratio of each round is taken before the median, so that other work on the
machine hits both alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.packing import table
from benchmarks.support.shapes import SHAPES, needed_arithmetic, random_llama, row_of
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Layout
from tutelage.model.attention import NAME, register_attention
from tutelage.model.head import supervised_losses
from tutelage.pack.batch import Batch, make_batches, pack_batch
from tutelage.pack.tree import common_prefix, find_shared_prefixes
from tutelage.train.environment import keep_freed_memory

PACK_TOKENS = 4096
TOLERANCE = 1e-4  # of the loss, and of the norm of the gradient: fp32, sums in another order


@dataclass(frozen=True)
class Rows:
    """Documents of one tree each step, and what they are called."""

    name: str
    documents: list[Rendered]

    def packed(self) -> list[Batch]:
        """Every document with its prefix of its own."""
        return make_batches(self.documents, Layout.PACKED, PACK_TOKENS)

    def as_tree(self) -> list[Batch]:
        """Every prefix once."""
        prefixes = find_shared_prefixes(self.documents, PACK_TOKENS)
        lengths = np.array([len(document) for document in self.documents])
        order, shared = prefixes.arranged(np.arange(len(self.documents)), lengths)
        return [pack_batch([self.documents[number] for number in order], shared.tolist())]


def answers(prompt: int, answer: int, *, count: int, vocabulary: int) -> Rows:
    """Make `count` answers to one prompt, of random tokens."""
    random = np.random.default_rng(0)
    asked = random.integers(3, vocabulary, prompt)
    rows = [np.concatenate([asked, random.integers(3, vocabulary, answer)]).astype(np.int32) for _ in range(count)]
    documents = [row_of(ids, prompt, f"answer {number}") for number, ids in enumerate(rows)]
    return Rows(f"{count} answers of {answer} tokens to a prompt of {prompt}", documents)


def turns(question: int, reasoning: int, answer: int, *, count: int, vocabulary: int) -> Rows:
    """Split a conversation into its turns, each trained with its reasoning, on a history without any."""
    random = np.random.default_rng(1)
    history = np.empty(0, dtype=np.int64)
    documents = []
    for number in range(count):
        history = np.concatenate([history, random.integers(3, vocabulary, question)])
        thought, said = (random.integers(3, vocabulary, length) for length in (reasoning, answer))
        ids = np.concatenate([history, thought, said]).astype(np.int32)
        documents.append(row_of(ids, len(history), f"turn {number}"))
        history = np.concatenate([history, said])
    return Rows(f"{count} turns of {question} + {answer} tokens, split, with {reasoning} of reasoning", documents)


def step(
    model: PreTrainedModel, optimiser: torch.optim.Optimizer, make: Callable[[], Sequence[Batch]]
) -> Callable[[], float]:
    """Return a function that takes one step, its batches made included, and returns its seconds."""

    def run() -> float:
        started = time.perf_counter()
        for batch in make():
            supervised_losses(model, batch).weighted_sum.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return time.perf_counter() - started

    return run


def require_equal(model: PreTrainedModel, one: Sequence[Batch], other: Sequence[Batch]) -> None:
    """Refuse to time two layouts that do not have the same loss and gradient."""
    found = []
    for batches in (one, other):
        model.zero_grad(set_to_none=True)
        loss = 0.0
        for batch in batches:
            part = supervised_losses(model, batch).weighted_sum
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        found.append((loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    model.zero_grad(set_to_none=True)
    (loss, gradient), (other_loss, other_gradient) = found
    assert abs(loss - other_loss) <= TOLERANCE * abs(loss), (loss, other_loss)
    assert (gradient - other_gradient).norm() <= TOLERANCE * gradient.norm()


def arithmetic_ratio(model: PreTrainedModel, rows: Rows) -> float:
    """Return how many times the operations of a tree the packs need: what counts, shared tokens once or for each row."""
    whole = needed_arithmetic(model, rows.documents).full_step
    repeated = [
        row_of(other.ids[:common], common, other.where)
        for one, other in pairwise(rows.documents)
        for common in (common_prefix(one, other),)
    ]
    return whole / (whole - needed_arithmetic(model, repeated).full_step)


def row_of_table(shape: str, rows: Rows, rounds: int) -> list[str]:
    """Measure one model on one kind of rows."""
    model = random_llama(shape).train()
    model.set_attn_implementation(NAME)
    require_equal(model, rows.packed(), rows.as_tree())
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    run_packs, run_tree = (step(model, optimiser, make) for make in (rows.packed, rows.as_tree))
    times = [(run_packs(), run_tree()) for _ in range(rounds + 1)][1:]  # the first round fills the caches
    ratios = [packs / tree for packs, tree in times]
    tokens = [sum(batch.num_tokens for batch in batches) for batches in (rows.packed(), rows.as_tree())]
    packs_seconds, tree_seconds = (statistics.median(seconds) for seconds in zip(*times, strict=True))
    return [
        shape,
        rows.name,
        f"{tokens[0]:,} / {tokens[1]:,} = {tokens[0] / tokens[1]:.2f}",
        f"{arithmetic_ratio(model, rows):.2f}",
        f"{packs_seconds:.2f} s",
        f"{tree_seconds:.2f} s",
        f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    keep_freed_memory()
    register_attention()
    lines = []
    for shape in words.shapes:
        vocabulary = SHAPES[shape]["vocab_size"]
        for rows in (
            answers(400, 80, count=8, vocabulary=vocabulary),
            answers(60, 120, count=4, vocabulary=vocabulary),
            turns(60, 100, 80, count=6, vocabulary=vocabulary),
        ):
            lines.append(row_of_table(shape, rows, words.rounds))
    heads = ["model", "rows of a step", "tokens: packs / tree", "arithmetic", "packs", "tree", "times faster"]
    print(table(heads, lines))
    print(f"\n{words.threads} threads, fp32, {words.rounds} rounds; medians, and the range of the rounds' ratios.")


if __name__ == "__main__":
    main()
