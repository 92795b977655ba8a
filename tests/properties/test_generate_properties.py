"""Streaming and noise, for any input: nothing is lost between pieces, and a document's noise is its own."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import VOCABULARY, tiny_tokenizer
from tutelage.generate.local import IncrementalText, sample_tokens
from tutelage.model.noise import embedding_noise

TOKENIZER = tiny_tokenizer()


def streamed(tokenizer: Any, ids: list[int]) -> list[str]:
    text = IncrementalText(tokenizer)
    return [*(text.add(token) for token in ids), text.rest()]


@settings(max_examples=200)
@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=30))
def test_pieces_of_any_tokens_join_to_their_text(ids: list[int]) -> None:
    assert "".join(streamed(TOKENIZER, ids)) == (TOKENIZER.decode(ids) if ids else "")


@cache
def real_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["models/stories260K", "tokenizers/qwen3", "tokenizers/mistral-v3-instruct"])
def test_pieces_of_any_text_join_to_it_with_real_tokenizers(shared_data: Path, name: str) -> None:
    tokenizer = real_tokenizer(shared_data / name)

    @settings(max_examples=50)
    @given(st.text(max_size=60))
    def check(text: str) -> None:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)

    check()


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(1, 40)), min_size=1, max_size=6),
    st.integers(1, 17),
    st.integers(0, 2**63 - 1),
    st.integers(0, 10**6),
)
def test_the_noise_of_a_document_never_depends_on_its_neighbours(
    documents: list[tuple[int, int]], hidden: int, seed: int, step: int
) -> None:
    keys = torch.tensor([key for key, _ in documents])
    lengths = [length for _, length in documents]
    together = embedding_noise(keys, lengths, hidden, alpha=5, seed=seed, step=step)
    for key, length, part in zip(keys, lengths, together.split(lengths), strict=True):
        assert torch.equal(part, embedding_noise(key[None], [length], hidden, alpha=5, seed=seed, step=step))
        assert float(part.abs().max()) <= 5 / (length * hidden) ** 0.5 * (1 + 1e-6)


@settings(max_examples=100)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.1, 5),
    st.floats(0.01, 1),
)
def test_a_sampled_token_is_always_one_that_top_p_keeps(
    logits: list[float], chance: float, temperature: float, top_p: float
) -> None:
    chosen = int(sample_tokens(torch.tensor([logits]), torch.tensor([chance], dtype=torch.float64), temperature, top_p))
    probability = torch.softmax(torch.tensor(logits).double() / temperature, dim=-1)
    likelier = float(probability[probability > probability[chosen]].sum())
    assert likelier < top_p + 1e-9
