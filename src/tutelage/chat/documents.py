"""Many rendered documents in a few arrays: as they are kept on disk, and as a run reads them.

Weights, messages and parts are the same over long stretches, so that they are kept as runs: a token costs the four bytes
of its id and little more. A `Rendered` is built when somebody looks at it; what is asked of all documents at once
(lengths, loss weights) is an array from the start.
"""

# D documents, T tokens, R runs and B bytes of text of all of them together

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from tutelage.chat.rendered import Rendered

Int64s: TypeAlias = npt.NDArray[np.int64]
Columns: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""The arrays of a block by name; those of several blocks, end to end, are those of one larger block."""

DIGEST_BYTES = 16

DTYPES: dict[str, type[np.generic]] = {
    # [D]
    "lengths": np.int64,  # tokens
    "runs": np.int32,
    "text_bytes": np.int32,
    "stage": np.int32,
    "typed_controls": np.int32,
    "supervised": np.int64,
    "loss_weights": np.float64,
    # [D * DIGEST_BYTES]
    "digests": np.uint8,  # of ids and weights
    # [T]
    "ids": np.int32,
    # [R]
    "run_tokens": np.int32,
    "run_weight": np.float32,
    "run_message": np.int32,
    "run_part": np.int8,
    # [B]
    "texts": np.uint8,  # of each document in JSON: source, record id, where, roles
}


def columns_of(documents: Sequence[Rendered]) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of documents. Shapes: see `DTYPES`."""
    lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
    edges = _edges(lengths)
    weights = _end_to_end([document.weights for document in documents], np.float32)
    message = _end_to_end([document.message for document in documents], np.int32)
    part = _end_to_end([document.part for document in documents], np.int8)
    begins = np.zeros(len(weights), dtype=np.bool_)
    for labels in (weights.view(np.int32), message, part):  # bits of weights: -0.0 is another one than 0.0
        begins[1:] |= labels[1:] != labels[:-1]
    begins[edges[:-1][lengths > 0]] = True
    places = np.flatnonzero(begins)
    texts = [
        json.dumps([document.source, document.record_id, document.where, document.roles]).encode()
        for document in documents
    ]
    columns = {
        "lengths": lengths,
        "runs": np.diff(np.searchsorted(places, edges)),
        "text_bytes": [len(text) for text in texts],
        "stage": [document.stage for document in documents],
        "typed_controls": [document.typed_controls for document in documents],
        "supervised": [document.supervised_tokens for document in documents],
        "loss_weights": [_loss_weight(document) for document in documents],
        "digests": np.frombuffer(b"".join(map(_digest, documents)), dtype=np.uint8),
        "ids": _end_to_end([document.ids for document in documents], np.int32),
        "run_tokens": np.diff(places, append=len(weights)),
        "run_weight": weights[places],
        "run_message": message[places],
        "run_part": part[places],
        "texts": np.frombuffer(b"".join(texts), dtype=np.uint8),
    }
    return {name: np.asarray(columns[name], dtype=dtype) for name, dtype in DTYPES.items()}


def joined(blocks: Sequence[Columns]) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of several blocks as those of one."""
    return {
        name: np.concatenate([np.zeros(0, dtype), *(block[name] for block in blocks)]) for name, dtype in DTYPES.items()
    }


@dataclass(frozen=True, eq=False)
class _Block:
    """Columns, and where each document's part of them begins. Shapes: tokens, runs, texts are [D + 1]."""

    columns: Columns
    tokens: Int64s
    runs: Int64s
    texts: Int64s

    @classmethod
    def of(cls, columns: Columns) -> _Block:
        return cls(columns, *(_edges(columns[name]) for name in ("lengths", "runs", "text_bytes")))

    def document(self, number: int) -> Rendered:
        columns = self.columns
        tokens, runs, texts = (
            slice(edges[number], edges[number + 1]) for edges in (self.tokens, self.runs, self.texts)
        )
        source, record_id, where, roles = json.loads(columns["texts"][texts].tobytes().decode())
        counts = columns["run_tokens"][runs]
        return Rendered(
            ids=columns["ids"][tokens],
            weights=np.repeat(columns["run_weight"][runs], counts),
            message=np.repeat(columns["run_message"][runs], counts),
            part=np.repeat(columns["run_part"][runs], counts),
            roles=tuple(roles),
            record_id=record_id,
            source=source,
            where=where,
            stage=int(columns["stage"][number]),
            typed_controls=int(columns["typed_controls"][number]),
        )


class Documents(Sequence[Rendered]):
    """Documents in blocks of columns, one after another; a slice is a tuple of `Rendered`.

    Example:
        >>> Documents([]).lengths.tolist()
        []
    """

    def __init__(self, blocks: Sequence[Columns]) -> None:
        self._blocks = [_Block.of(block) for block in blocks]
        self._starts = _edges(np.array([len(block["lengths"]) for block in blocks], dtype=np.int64))

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, key: int) -> Rendered: ...

    @overload
    def __getitem__(self, key: slice) -> tuple[Rendered, ...]: ...

    def __getitem__(self, key: int | slice) -> Rendered | tuple[Rendered, ...]:
        if isinstance(key, slice):
            return tuple(self[number] for number in range(*key.indices(len(self))))
        number = key + len(self) if key < 0 else key
        if not 0 <= number < len(self):
            raise IndexError(f"document {key} of {len(self)}")
        block = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._blocks[block].document(int(number - self._starts[block]))

    def __iter__(self) -> Iterator[Rendered]:
        for block in self._blocks:
            for number in range(len(block.tokens) - 1):
                yield block.document(number)

    @cached_property
    def lengths(self) -> Int64s:
        """Tokens of each document [D]."""
        return self._column("lengths")

    @property
    def ids(self) -> list[npt.NDArray[np.int32]]:
        """Ids of each document, where they stand."""
        return [
            block.columns["ids"][start:end] for block in self._blocks for start, end in pairwise(block.tokens.tolist())
        ]

    @cached_property
    def supervised(self) -> Int64s:
        """Tokens of each document that are predicted with a weight [D]."""
        return self._column("supervised")

    @cached_property
    def loss_weights(self) -> npt.NDArray[np.float64]:
        """Sum of the loss weights of each document [D]."""
        return self._column("loss_weights")

    @cached_property
    def digests(self) -> npt.NDArray[np.uint8]:
        """A hash of the ids and weights of each document [D * DIGEST_BYTES]."""
        return self._column("digests")

    def _column(self, name: str) -> npt.NDArray[Any]:
        return np.concatenate([np.zeros(0, DTYPES[name]), *(block.columns[name] for block in self._blocks)])


def lengths_of(documents: Sequence[Rendered]) -> Int64s:
    """Return the tokens of each document [D]."""
    if isinstance(documents, Documents):
        return documents.lengths
    return np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))


def ids_of(documents: Sequence[Rendered]) -> list[npt.NDArray[np.int32]]:
    """Return the ids of each document, without anything else of it."""
    if isinstance(documents, Documents):
        return documents.ids
    return [document.ids for document in documents]


def supervised_of(documents: Sequence[Rendered]) -> Int64s:
    """Return the supervised tokens of each document [D]."""
    if isinstance(documents, Documents):
        return documents.supervised
    return np.array([document.supervised_tokens for document in documents], dtype=np.int64)


def loss_weights_of(documents: Sequence[Rendered]) -> npt.NDArray[np.float64]:
    """Return the sum of loss weights of each document [D]; the first token is never predicted and never counts."""
    if isinstance(documents, Documents):
        return documents.loss_weights
    return np.array([_loss_weight(document) for document in documents], dtype=np.float64)


def digests_of(documents: Sequence[Rendered]) -> bytes:
    """Return a hash of the ids and weights of each document, end to end."""
    if isinstance(documents, Documents):
        return documents.digests.tobytes()
    return b"".join(map(_digest, documents))


def _loss_weight(document: Rendered) -> float:
    return float(document.weights[1:].sum(dtype=np.float64))


def _digest(document: Rendered) -> bytes:
    digest = hashlib.sha256(len(document).to_bytes(8, "little"))
    digest.update(document.ids.tobytes())
    digest.update(document.weights.tobytes())
    return digest.digest()[:DIGEST_BYTES]


def _edges(sizes: npt.NDArray[Any]) -> Int64s:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes, dtype=np.int64)])


def _end_to_end(arrays: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=dtype), *arrays]).astype(dtype, copy=False)
