"""From rendered documents to the tensors of one forward pass, in any of three layouts.

packed  one stream [1, T]: documents one after the other, positions restart, attention stays inside a document
padded  rows [B, T]: one document a row, padded on the right
single  one document [1, T]

Whatever is known on the host (lengths, document boundaries, which tokens carry loss) stays known there, so that a step on a
GPU never has to wait for the device to answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from tutelage.chat.rendered import IGNORED_TARGET, Rendered
from tutelage.config.schema import Layout
from tutelage.pack.plan import plan_packs

# B rows, T tokens of a row, D documents, S supervised tokens


@dataclass(frozen=True, eq=False)
class Batch:
    """The tensors of one forward pass.

    Shapes: input_ids, position_ids, targets [B, T] int64; weights [B, T] fp32; attention_mask [B, T] int64 or None;
    cu_seqlens [D + 1] int32, boundaries in the stream of real tokens; document_keys [D] int64;
    supervised [S] int64, flat positions b * T + t of the tokens that carry loss; supervised_document [S] int64.
    `targets` and `weights` are shifted already: position t holds what the model must predict there.
    `lengths` repeats the boundaries on the host. `layout` is packed, padded or single.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    attention_mask: torch.Tensor | None
    cu_seqlens: torch.Tensor
    document_keys: torch.Tensor
    supervised: torch.Tensor
    supervised_document: torch.Tensor
    lengths: tuple[int, ...]
    document_sources: tuple[str, ...]
    layout: Layout

    @property
    def num_tokens(self) -> int:
        """Real tokens, padding not counted."""
        return sum(self.lengths)

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


def pack_batch(documents: Sequence[Rendered]) -> Batch:
    """Put documents one after the other in a single stream [1, T]."""
    lengths = tuple(len(document) for document in documents)
    shifted = [document.shifted() for document in documents]
    weights_T = np.concatenate([weights for _, weights in shifted])
    document_T = np.repeat(np.arange(len(documents)), lengths)
    supervised_S = np.flatnonzero(weights_T)
    return Batch(
        input_ids=_row([document.ids for document in documents]),
        position_ids=_row([np.arange(length) for length in lengths]),
        targets=_row([targets for targets, _ in shifted]),
        weights=torch.from_numpy(weights_T)[None],
        attention_mask=None,
        cu_seqlens=_boundaries(lengths),
        document_keys=_keys(documents),
        supervised=torch.from_numpy(supervised_S),
        supervised_document=torch.from_numpy(document_T[supervised_S]),
        lengths=lengths,
        document_sources=tuple(document.source for document in documents),
        layout=Layout.PACKED,
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
        targets=torch.from_numpy(targets),
        weights=torch.from_numpy(weights),
        attention_mask=torch.from_numpy((position_ids < np.asarray(lengths)[:, None]).astype(np.int64)),
        cu_seqlens=_boundaries(lengths),
        document_keys=_keys(documents),
        supervised=torch.from_numpy(supervised_S),
        supervised_document=torch.from_numpy(supervised_S // T),
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


def _keys(documents: Sequence[Rendered]) -> torch.Tensor:
    return torch.tensor([document_key(document) for document in documents], dtype=torch.int64)
