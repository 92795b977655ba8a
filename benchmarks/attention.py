"""What a training step costs in each layout, and in which precision, on this machine.

    python -m benchmarks.attention [--threads 1] [--rounds 5] [--device cuda]

One step is forward, loss on the supervised tokens, and backward, over the same documents each time: padded rows with
transformers' sdpa, one pack with transformers' block mask, and one pack with attention per document. The variants take turns
within a round, and the ratio of each round is taken before the median, so that other work on the machine hits all alike. On a
CPU the time is that of the process, summed over its threads; on a GPU it is that of the clock.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.packing import instruction_like_lengths, table
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Layout
from tutelage.model.attention import NAME, register_attention
from tutelage.model.head import supervised_losses
from tutelage.pack.batch import Batch, make_batches, pack_batch

PACK_TOKENS = 2048


def small_llama(device: torch.device) -> PreTrainedModel:
    """Make a random Llama of 15.2 million parameters: width 288, 6 layers, vocabulary 32,000, tied."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=288,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        tie_word_embeddings=True,
        max_position_embeddings=PACK_TOKENS,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(device)


def documents_of_one_pack(seed: int) -> list[Rendered]:
    """Draw instruction-like documents until a pack is full; the later two thirds of each are supervised."""
    random = np.random.default_rng(seed)
    documents: list[Rendered] = []
    left = PACK_TOKENS
    for length in instruction_like_lengths(200, longest=1024, seed=seed).tolist():
        if length > left:
            break
        left -= length
        weights = np.zeros(length, dtype=np.float32)
        weights[length // 3 :] = 1.0
        ids = random.integers(3, 32_000, length).astype(np.int32)
        nothing = np.zeros(length, dtype=np.int32)
        name = f"{seed}-{len(documents)}"
        documents.append(Rendered(ids, weights, nothing, nothing.astype(np.int8), (), name, "random", name))
    return documents


def step(
    model: PreTrainedModel, attention: str, batches: Sequence[Batch], *, bf16: bool = False
) -> Callable[[], float]:
    """Return a function that runs one step and returns its seconds."""
    clock = time.perf_counter if batches[0].device.type == "cuda" else time.process_time

    def run() -> float:
        model.set_attn_implementation(attention)
        model.zero_grad(set_to_none=True)
        started = clock()
        for batch in batches:
            with torch.autocast(batch.device.type, torch.bfloat16) if bf16 else nullcontext():
                losses = supervised_losses(model, batch)
            losses.weighted_sum.backward()  # type: ignore[no-untyped-call]
        if batches[0].device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - started

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    register_attention()
    device = torch.device(words.device)
    model = small_llama(device)
    documents = documents_of_one_pack(seed=0)
    packed = [pack_batch(documents).to(device)]
    longest = max(map(len, documents))
    padded = [batch.to(device) for batch in make_batches(documents, Layout.PADDED, longest * len(documents))]
    grouped = [batch.to(device) for batch in make_batches(documents, Layout.PADDED, PACK_TOKENS)]
    variants = {
        "padded rows, one batch": step(model, "sdpa", padded),
        f"padded rows, grouped by length to {PACK_TOKENS:,} slots": step(model, "sdpa", grouped),
        "one pack, block mask of transformers": step(model, "sdpa", packed),
        "one pack, attention per document": step(model, NAME, packed),
        "one pack, attention per document, bf16 autocast": step(model, NAME, packed, bf16=True),
    }
    for run in variants.values():
        run()
    rounds = [{name: run() for name, run in variants.items()} for _ in range(words.rounds)]
    reference = "one pack, attention per document"
    tokens = sum(map(len, documents))
    rows = []
    for name in variants:
        seconds = statistics.median(each[name] for each in rounds)
        ratios = [each[name] / each[reference] for each in rounds]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append([name, f"{tokens / seconds:,.0f}", spread])
    print(f"{tokens:,} tokens in {len(documents)} documents, {words.threads} thread(s), {words.device}\n")
    print(
        table(
            ["layout and attention", "real tokens per second of a thread", "time relative to per document (range)"],
            rows,
        )
    )


if __name__ == "__main__":
    main()
