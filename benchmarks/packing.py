"""How full packs are, and what planning a million documents costs.

    python -m benchmarks.packing
    python -m benchmarks.packing --data FILE.jsonl.gz --model FOLDER     real documents, rendered and tokenised

Without `--data` lengths are drawn from a log-normal distribution like that of instruction data (median 120 tokens).
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tutelage.chat.render import Renderer, RenderFailure, RenderOptions
from tutelage.chat.tokenizer import load_tokenizer
from tutelage.config.schema import DataConfig, SourceConfig
from tutelage.data.ledger import Ledger
from tutelage.data.order import permutation
from tutelage.data.sources import read_source
from tutelage.pack.plan import plan_packs

Lengths = npt.NDArray[np.int64]

EPOCHS = 5  # the fill is measured over as many shuffled orders
MILLION = 1_000_000


def instruction_like_lengths(count: int, *, longest: int, seed: int = 0) -> Lengths:
    """Draw document lengths in tokens: log-normal, median 120, cut at `longest`."""
    drawn = np.random.default_rng(seed).lognormal(np.log(120), 0.9, count)
    return np.clip(drawn.astype(np.int64), 1, longest)


def rendered_lengths(data: str, model: str) -> Lengths:
    """Read a data file, render it with the model's own template and return the length of each document in tokens."""
    tokenizer = load_tokenizer(model)
    renderer = Renderer(tokenizer, None, RenderOptions.from_config(DataConfig()))
    records = read_source(SourceConfig(path=data), Ledger())
    rendered = [out for out in renderer.render_many(records) if not isinstance(out, RenderFailure)]  # type: ignore[arg-type]
    return np.array([len(document) for out in rendered for document in out], dtype=np.int64)


def fill_row(lengths: Lengths, budget_tokens: int) -> list[str]:
    """Pack documents that fit, in several shuffled orders; median and least fill, and documents of a pack."""
    fitting = lengths[lengths <= budget_tokens]
    plans = []
    for epoch in range(EPOCHS):
        order = permutation(len(fitting), 0, epoch)
        plans.append(plan_packs(fitting[order], budget_tokens, seed=0, epoch=epoch))
    counts = np.array([len(pack) for pack in plans[0].packs])
    fills = [plan.fill for plan in plans]
    return [
        f"{budget_tokens:,}",
        f"{len(fitting):,} of {len(lengths):,}",
        f"{len(counts):,}",
        f"{100 * statistics.median(fills):.2f} % (least {100 * min(fills):.2f} %)",
        f"{np.percentile(counts, 5):.0f} / {np.median(counts):.0f} / {np.percentile(counts, 95):.0f}",
    ]


def cost_row(budget_tokens: int) -> list[str]:
    """Plan a million documents: seconds of the processor, and, in a second pass, the most memory that Python held for it."""
    lengths = instruction_like_lengths(MILLION, longest=budget_tokens)
    started = time.process_time()
    plan = plan_packs(lengths, budget_tokens, seed=0, epoch=0)
    seconds = time.process_time() - started
    tracemalloc.start()
    plan_packs(lengths, budget_tokens, seed=0, epoch=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return [f"{budget_tokens:,}", f"{seconds:.2f} s", f"{peak / 1e6:.0f} MB", f"{100 * plan.fill:.2f} %"]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a file that tutelage reads")
    parser.add_argument("--model", help="a model folder; tokenizer files alone will do")
    words = parser.parse_args()
    lengths = (
        rendered_lengths(words.data, words.model) if words.data else instruction_like_lengths(20_000, longest=8192)
    )
    heads = ["tokens of a pack", "documents that fit", "packs", "fill", "documents of a pack: 5 % / median / 95 %"]
    print(table(heads, [fill_row(lengths, budget) for budget in (1024, 2048, 4096, 8192)]))
    print()
    heads = ["tokens of a pack", "time for 1,000,000 documents", "memory", "fill"]
    print(table(heads, [cost_row(budget) for budget in (2048, 4096, 32768)]))


if __name__ == "__main__":
    main()
