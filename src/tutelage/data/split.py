"""The held-out split: by content, so that a prompt is on the same side in every run, file and order.

What is promised: two records whose prompts have the same words are on the same side. "The same words" means equal after
Unicode compatibility normalisation, case folding, and removal of everything that is neither letter, mark nor digit at the
edges of a word. Which side a record falls on depends on its own prompt, the fraction and the seed, on nothing else: rows
added, removed or moved elsewhere do not move it, and a larger fraction only ever adds to the held-out side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from tutelage.data.conversation import Record
from tutelage.data.order import hash64


def split_held_out(records: Iterable[Record], fraction: float, *, seed: int = 0) -> tuple[list[Record], list[Record]]:
    """Return (train, held_out), each in the order of `records`; about `fraction` of the prompts are held out."""
    train: list[Record] = []
    held_out: list[Record] = []
    for record in records:
        (held_out if is_held_out(record, fraction, seed=seed) else train).append(record)
    return train, held_out


def is_held_out(record: Record, fraction: float, *, seed: int = 0) -> bool:
    """Return on which side of the split a record falls."""
    if not fraction:
        return False  # nothing is held out, and no words need to be compared
    digest = hashlib.sha256(record.prompt_key.encode()).digest()
    return hash64(seed, int.from_bytes(digest[:8], "big")) < fraction * 2**64
