"""Noise on the embeddings during training (NEFTune) that belongs to the document, not to the batch it is in.

The paper adds uniform noise in ±alpha / sqrt(L * H) to the embeddings of a sequence of L tokens. Taking L from the row,
as trainers do, makes the noise of the same document weaker the fuller its pack is; drawing it from a generator makes it
depend on what was drawn before. Here L is the document's own length, and each value is a hash of
(seed, step, document, position, channel): the same alone, padded, packed, on any rank, on any device, and after a resume.

Source: Jain et al. 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning", arXiv 2310.05914, algorithm 1.
The hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.pack.batch import Batch

# B rows, T tokens of a row, D documents, N real tokens of a batch (padding not counted), H hidden channels


@contextmanager
def noisy_embeddings(model: nn.Module, batch: Batch, *, alpha: float, seed: int, step: int) -> Iterator[None]:
    """Add this step's noise of `batch` to the input embeddings of any forward pass inside; nothing in evaluation mode.

    `alpha` is the paper's strength (5, 10 or 15 there; 0 is off). Padding gets no noise.
    """
    if alpha == 0 or not model.training:
        yield
        return

    def add_noise(_: nn.Module, __: tuple[Any, ...], embedded_BTH: Tensor) -> Tensor:
        noise_NH = embedding_noise(
            batch.document_keys.to(embedded_BTH.device),
            batch.lengths,
            embedded_BTH.shape[-1],
            alpha=alpha,
            seed=seed,
            step=step,
        )
        return embedded_BTH + _laid_out(noise_NH, batch, embedded_BTH)

    unwrapped: Any = getattr(model, "module", model)
    handle = unwrapped.get_input_embeddings().register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()


def embedding_noise(
    document_keys: Tensor, lengths: Sequence[int], hidden: int, *, alpha: float, seed: int, step: int
) -> Tensor:
    """Return the noise of documents laid end to end, uniform in ±alpha / sqrt(L * H) with L each document's length.

    Shapes: document_keys [D] int64, lengths D integers; the result is [N, H] fp32 on the device of `document_keys`.
    """
    device = document_keys.device
    length_D = torch.tensor(lengths).to(device, non_blocking=True)
    start_D = length_D.cumsum(0) - length_D
    document_N = torch.repeat_interleave(torch.arange(len(lengths), device=device), length_D, output_size=sum(lengths))
    position_N = torch.arange(sum(lengths), device=device) - start_D[document_N]

    state_D = _mix(_mix(_mix(document_keys ^ _signed(seed)) ^ step))
    state_N = _mix(state_D[document_N] ^ position_N)
    # One hash is 64 bits: enough for two channels.
    channel = torch.arange((hidden + 1) // 2, device=device) * _GOLDEN
    bits_NC = _mix(state_N[:, None] + channel)
    noise_NH = bits_NC.view(torch.int32)[:, :hidden].to(torch.float32)
    scale_D = torch.tensor([alpha / math.sqrt(length * hidden) for length in lengths], dtype=torch.float64)
    return noise_NH.mul_((scale_D * 2.0**-31).to(torch.float32).to(device, non_blocking=True)[document_N][:, None])


def _laid_out(noise_NH: Tensor, batch: Batch, like_BTH: Tensor) -> Tensor:
    """Arrange the noise of the real tokens as the batch arranges the tokens; padding gets zeros."""
    noise_NH = noise_NH.to(like_BTH.dtype)
    if batch.attention_mask is None:
        return noise_NH.view_as(like_BTH)
    T = like_BTH.shape[1]
    slots = torch.cat([torch.arange(row * T, row * T + length) for row, length in enumerate(batch.lengths)])
    laid_out = torch.zeros_like(like_BTH)
    laid_out.view(-1, like_BTH.shape[-1])[slots.to(like_BTH.device, non_blocking=True)] = noise_NH
    return laid_out


def _signed(value: int) -> int:
    """Return the 64-bit pattern of an unsigned number as the signed number that torch knows."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST_FACTOR = _signed(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = _signed(0x94D049BB133111EB)


def _mix(value: Tensor) -> Tensor:
    """Mix 64 bits; int64 multiplication wraps, and a masked arithmetic shift is the logical one."""
    value = value + _GOLDEN
    value ^= (value >> 30).bitwise_and_(2**34 - 1)
    value *= _FIRST_FACTOR
    value ^= (value >> 27).bitwise_and_(2**37 - 1)
    value *= _SECOND_FACTOR
    value ^= (value >> 31).bitwise_and_(2**33 - 1)
    return value
