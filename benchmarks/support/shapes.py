"""Random models and rows of the sizes that are measured, and the arithmetic that training on them needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from tutelage.chat.rendered import Rendered

CONTEXT = 2048
SHAPES = {
    "15M": {
        "vocab_size": 32_000,
        "hidden_size": 288,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
    },
    "100M": {
        "vocab_size": 49_152,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
}


@dataclass(frozen=True)
class Lengths:
    """The lengths of instruction rows in tokens: log-normal around these medians, `spread` being the sigma of both."""

    prompt: int
    answer: int
    spread: float
    longest: int = 1024


ORDINARY = Lengths(prompt=60, answer=120, spread=0.7)
PROMPT_HEAVY = Lengths(prompt=400, answer=80, spread=0.5)


def random_llama(shape: str, *, vocabulary: int | None = None) -> PreTrainedModel:
    """Make a random Llama of one of `SHAPES`, embedding and head tied, by default with the vocabulary of its shape."""
    numbers = {**SHAPES[shape], **({"vocab_size": vocabulary} if vocabulary else {})}
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        LlamaConfig(**numbers, tie_word_embeddings=True, max_position_embeddings=CONTEXT)
    )
    return model


def random_rows(lengths: Lengths, *, tokens: int, vocabulary: int, seed: int = 0) -> list[Rendered]:
    """Draw rows of random tokens, of which the answers are supervised, until the next would exceed `tokens`."""
    random = np.random.default_rng(seed)
    rows: list[Rendered] = []
    left = tokens
    while True:
        drawn = random.lognormal(np.log([lengths.prompt, lengths.answer]), lengths.spread)
        prompt, answer = np.clip(drawn.astype(np.int64), 1, lengths.longest // 2).tolist()
        left -= prompt + answer
        if left < 0:
            return rows
        ids = random.integers(3, vocabulary, prompt + answer).astype(np.int32)
        rows.append(row_of(ids, prompt, f"row {len(rows)}"))


def row_of(ids: npt.NDArray[np.int32], prompt_tokens: int, name: str) -> Rendered:
    """Return a row of which everything after the prompt is supervised."""
    weights = (np.arange(len(ids)) >= prompt_tokens).astype(np.float32)
    nothing = np.zeros(len(ids), dtype=np.int32)
    return Rendered(ids, weights, nothing, nothing.astype(np.int8), (), name, "random", name)


@dataclass(frozen=True)
class Arithmetic:
    """The floating-point operations of one step that count, a multiply-add as two.

    The body runs on real tokens, the head on supervised ones, attention on the pairs that causality allows within a row.
    """

    forward: float
    full_step: float
    lora_step: float


def needed_arithmetic(model: PreTrainedModel, rows: Sequence[Rendered], *, rank: int = 16) -> Arithmetic:
    """Count the matrix products of a step: forward, and the gradients of inputs and of weights, each as much again.

    With LoRA frozen matrices have no gradient, and the narrow ones of rank `rank` beside each linear layer are added.
    """
    head = model.get_output_embeddings().weight.numel()
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.get_output_embeddings()]
    body = sum(linear.weight.numel() for linear in linears)
    narrow = sum(rank * (linear.in_features + linear.out_features) for linear in linears)
    config = model.config
    width = config.num_attention_heads * (config.hidden_size // config.num_attention_heads)
    tokens = sum(map(len, rows))
    pairs = sum(len(row) * (len(row) + 1) / 2 for row in rows)
    # Scores and values: a product of `width` each for every pair; both inputs of both products have gradients.
    attention = 2 * 2 * width * config.num_hidden_layers * pairs
    once = 2 * body * tokens + 2 * head * sum(row.supervised_tokens for row in rows)
    adapters = 2 * narrow * tokens
    return Arithmetic(
        forward=once + attention, full_step=3 * (once + attention), lora_step=2 * once + 3 * (attention + adapters)
    )
