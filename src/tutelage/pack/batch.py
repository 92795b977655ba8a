"""From rendered documents to the tensors of one forward pass, in any of three layouts.

packed  one stream [1, T]: documents one after the other, positions restart, attention stays inside a document; those that share
        a prefix may be the branches of a tree (see `tree`)
padded  rows [B, T]: one document a row, padded on the right
single  one document [1, T]

Whatever is known on the host (lengths, document boundaries, which tokens carry loss) stays known there, so that a step on a
GPU never has to wait for the device to answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tutelage.chat.rendered import IGNORED_TARGET, Rendered
from tutelage.config.schema import Layout
from tutelage.pack.plan import plan_packs
from tutelage.pack.slices import cells_of
from tutelage.pack.tree import Tree, grow_tree

# B rows, T tokens of a row, D documents, S supervised tokens


@dataclass(frozen=True, eq=False)
class Batch:
    """The tensors of one forward pass.

    Shapes: input_ids, position_ids [B, T] int64; attention_mask [B, T] int64 or None; document_keys [D] int64;
    cu_seqlens [D + 1] int32, boundaries in the stream of real tokens: of documents, or of the segments of a `tree`.
    Of every loss, S in all: supervised [S] int64, the flat position b * T + t that predicts; supervised_targets [S] int64, the
    token it must predict; supervised_weights [S] fp32; supervised_document [S] int64; supervised_cell [S] int64, of `slices`. In a
    tree a position may occur several times: the last token of a prompt predicts the first one of each answer.
    `lengths` are those of the documents, on the host. `layout` is packed, padded or single.
    With a tree, the keys of segment g's attention are those at path_places[cu_pathlens[g]:cu_pathlens[g + 1]], int64 and int32.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    cu_seqlens: torch.Tensor
    document_keys: torch.Tensor
    supervised: torch.Tensor
    supervised_targets: torch.Tensor
    supervised_weights: torch.Tensor
    supervised_document: torch.Tensor
    supervised_cell: torch.Tensor
    lengths: tuple[int, ...]
    document_sources: tuple[str, ...]
    layout: Layout
    tree: Tree | None = None
    path_places: torch.Tensor | None = None
    cu_pathlens: torch.Tensor | None = None

    @property
    def stream_lengths(self) -> tuple[int, ...]:
        """The pieces that the stream consists of: documents, or the segments of a tree."""
        return self.lengths if self.tree is None else tuple(segment.length for segment in self.tree.segments)

    @property
    def num_tokens(self) -> int:
        """Tokens that the model computes, padding not counted; shared ones count once."""
        return sum(self.stream_lengths)

    @property
    def num_supervised(self) -> int:
        """Tokens that carry loss."""
        return self.supervised.numel()

    @property
    def num_documents(self) -> int:
        """Documents in the batch."""
        return len(self.lengths)

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.input_ids.device

    def places(self, document: int) -> npt.NDArray[np.int64]:
        """Return the flat positions [L] of a document's tokens."""
        if self.tree is not None:
            return self.tree.places(self.tree.paths[document])
        in_rows = self.layout is Layout.PADDED
        start = document * self.input_ids.shape[1] if in_rows else sum(self.lengths[:document])
        return np.arange(start, start + self.lengths[document])

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`; copies from pinned memory do not block."""
        everything = ((f.name, getattr(self, f.name)) for f in fields(self))
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in everything if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)


def make_batches(documents: Sequence[Rendered], layout: Layout, micro_tokens: int) -> list[Batch]:
    """Lay documents out as batches of at most `micro_tokens` slots each (padding counted).

    A single document longer than `micro_tokens` gets a batch of its own. Layout `auto` must be decided before.
    """
    if layout is Layout.PACKED:
        return [pack_batch(group) for group in _packed_groups(documents, micro_tokens)]
    if layout is Layout.PADDED:
        return [pad_batch(group) for group in _padded_groups(documents, micro_tokens)]
    if layout is Layout.SINGLE:
        return [replace(pack_batch([document]), layout=Layout.SINGLE) for document in documents]
    raise ValueError(f"layout {layout} names no arrangement of tensors; choose packed, padded or single")


def pack_batch(documents: Sequence[Rendered], shared: Sequence[int] = ()) -> Batch:
    """Put documents one after the other in a single stream [1, T].

    `shared` are the tokens that each shares with the one before, which then stand there once; by default none.
    """
    if any(shared):
        return _tree_batch(documents, shared)
    lengths = tuple(len(document) for document in documents)
    shifted = [document.shifted() for document in documents]
    weights_T = np.concatenate([weights for _, weights in shifted])
    targets_T = np.concatenate([targets for targets, _ in shifted])
    document_T = np.repeat(np.arange(len(documents)), lengths)
    supervised_S = np.flatnonzero(weights_T)
    return Batch(
        input_ids=_row([document.ids for document in documents]),
        position_ids=_row([np.arange(length) for length in lengths]),
        attention_mask=None,
        cu_seqlens=_boundaries(lengths),
        document_keys=_keys(documents),
        supervised=torch.from_numpy(supervised_S),
        supervised_targets=torch.from_numpy(targets_T[supervised_S]),
        supervised_weights=torch.from_numpy(weights_T[supervised_S]),
        supervised_document=torch.from_numpy(document_T[supervised_S]),
        supervised_cell=_cells(documents),
        lengths=lengths,
        document_sources=tuple(document.source for document in documents),
        layout=Layout.PACKED,
    )


def _tree_batch(documents: Sequence[Rendered], shared: Sequence[int]) -> Batch:
    """Put the tokens that no document before has one after the other in a single stream [1, T]."""
    for (before, document), common in zip(pairwise(documents), shared[1:], strict=True):
        if not np.array_equal(before.ids[:common], document.ids[:common]):
            raise ValueError(f"{before.where} and {document.where} do not share their first {common} tokens")
    lengths = tuple(len(document) for document in documents)
    tree = grow_tree(lengths, shared)
    paths = [tree.places(tree.path_to(number)) for number in range(len(tree.segments))]
    places, targets, weights = [], [], []
    for document, path in zip(documents, tree.paths, strict=True):
        targets_L, weights_L = document.shifted()
        supervised_L = np.flatnonzero(weights_L)
        places.append(tree.places(path)[supervised_L])
        targets.append(targets_L[supervised_L])
        weights.append(weights_L[supervised_L])
    new = list(zip(documents, shared, strict=True))
    return Batch(
        input_ids=_row([document.ids[common:] for document, common in new]),
        position_ids=_row([np.arange(common, len(document)) for document, common in new]),
        attention_mask=None,
        cu_seqlens=_boundaries([segment.length for segment in tree.segments]),
        document_keys=_keys(documents),
        supervised=torch.from_numpy(np.concatenate(places)),
        supervised_targets=torch.from_numpy(np.concatenate(targets)),
        supervised_weights=torch.from_numpy(np.concatenate(weights)),
        supervised_document=torch.from_numpy(np.repeat(np.arange(len(documents)), [len(place) for place in places])),
        supervised_cell=_cells(documents),
        lengths=lengths,
        document_sources=tuple(document.source for document in documents),
        layout=Layout.PACKED,
        tree=tree,
        path_places=torch.from_numpy(np.concatenate(paths)),
        cu_pathlens=_boundaries([len(path) for path in paths]),
    )


def pad_batch(documents: Sequence[Rendered]) -> Batch:
    """Give each document a row, padded on the right with id 0 under an attention mask of 0."""
    lengths = tuple(len(document) for document in documents)
    B, T = len(documents), max(lengths)
    input_ids = np.zeros((B, T), dtype=np.int64)
    targets = np.full((B, T), IGNORED_TARGET, dtype=np.int64)
    weights = np.zeros((B, T), dtype=np.float32)
    for row, document in enumerate(documents):
        input_ids[row, : lengths[row]] = document.ids
        targets[row, : lengths[row]], weights[row, : lengths[row]] = document.shifted()
    position_ids = np.broadcast_to(np.arange(T), (B, T))
    supervised_S = np.flatnonzero(weights)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids.copy()),
        attention_mask=torch.from_numpy((position_ids < np.asarray(lengths)[:, None]).astype(np.int64)),
        cu_seqlens=_boundaries(lengths),
        document_keys=_keys(documents),
        supervised=torch.from_numpy(supervised_S),
        supervised_targets=torch.from_numpy(targets.ravel()[supervised_S]),
        supervised_weights=torch.from_numpy(weights.ravel()[supervised_S]),
        supervised_document=torch.from_numpy(supervised_S // T),
        supervised_cell=_cells(documents),
        lengths=lengths,
        document_sources=tuple(document.source for document in documents),
        layout=Layout.PADDED,
    )


def document_key(document: Rendered) -> int:
    """Return a signed 64-bit key of a document that is the same in every run, batch and process."""
    name = f"{document.record_id}/{document.stage}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)


def _packed_groups(documents: Sequence[Rendered], micro_tokens: int) -> list[list[Rendered]]:
    """Return the documents as given when they fit one stream, else best-fit packs of them."""
    lengths = [len(document) for document in documents]
    if sum(lengths) <= micro_tokens:
        return [list(documents)] if documents else []
    packs = plan_packs(lengths, max(micro_tokens, *lengths), seed=0, epoch=0, longest_first=True).packs
    return [[documents[i] for i in pack] for pack in packs]


def _padded_groups(documents: Sequence[Rendered], micro_tokens: int) -> list[list[Rendered]]:
    """Group documents of like length, longest first, so that rows times the longest stays within `micro_tokens`."""
    groups: list[list[Rendered]] = []
    for document in sorted(documents, key=len, reverse=True):
        if groups and (len(groups[-1]) + 1) * len(groups[-1][0]) <= micro_tokens:
            groups[-1].append(document)
        else:
            groups.append([document])
    return groups


def _row(pieces: Sequence[np.typing.NDArray[np.integer]]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(pieces).astype(np.int64))[None]


def _boundaries(lengths: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _cells(documents: Sequence[Rendered]) -> torch.Tensor:
    """Return the cells of all supervised tokens, document after document."""
    of_each = [cells_of(document, np.flatnonzero(document.weights[1:]) + 1) for document in documents]
    return torch.from_numpy(np.concatenate(of_each))


def _keys(documents: Sequence[Rendered]) -> torch.Tensor:
    return torch.tensor([document_key(document) for document in documents], dtype=torch.int64)
