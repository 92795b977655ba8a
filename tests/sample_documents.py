"""Rendered documents of chosen lengths with random tokens, for tests of packing, batches and losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tiny import VOCABULARY
from tutelage.chat.rendered import Rendered

LENGTHS = (5, 17, 1, 9, 31, 2)  # odd ones, a single token, and some longer than the attention windows of `tiny` (8)


def document(ids: Sequence[int], weights: Sequence[float], *, name: str = "a", source: str = "source") -> Rendered:
    """Return a document of the given tokens and loss weights."""
    count = len(ids)
    return Rendered(
        ids=np.asarray(ids, dtype=np.int32),
        weights=np.asarray(weights, dtype=np.float32),
        message=np.zeros(count, dtype=np.int32),
        part=np.zeros(count, dtype=np.int8),
        roles=("assistant",),
        record_id=name,
        source=source,
        where=name,
    )


def random_documents(lengths: Sequence[int] = LENGTHS, *, seed: int = 0, sources: int = 2) -> list[Rendered]:
    """Return documents with random tokens; about half of the tokens are supervised, with weights of 0.5, 1 and 2."""
    random = np.random.default_rng(seed)
    return [
        document(
            random.integers(3, VOCABULARY, length).tolist(),
            (random.choice([0.0, 0.0, 0.5, 1.0, 2.0], length)).tolist(),
            name=f"document-{seed}-{number}",
            source=f"source-{number % sources}",
        )
        for number, length in enumerate(lengths)
    ]
