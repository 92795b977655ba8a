"""Which arithmetic a run uses, and why: asked of the machine itself where nobody said."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch
from transformers import PretrainedConfig

from tutelage.config.schema import Precision, TrainConfig
from tutelage.parallel import agree

PROBE_SHAPE = (1024, 512, 512)
"""Rows, depth and columns of the product that is timed: a layer of a small model, some milliseconds in fp32."""
ROUNDS = 5
WORTHWHILE = 1.5  # times as fast; below, the casts between the two formats eat what the products save
LEAST_HIDDEN_SIZE = 128  # narrower models spend their time beside the products


@dataclass(frozen=True)
class PrecisionChoice:
    """The arithmetic of a run, and why it was taken."""

    precision: Precision
    reason: str


def choose_precision(config: TrainConfig, device: torch.device, architecture: PretrainedConfig) -> PrecisionChoice:
    """Return the arithmetic to use: what `train.precision` says, else the faster one of this device; all ranks agree.

    bf16 here means bf16 products over fp32 weights. On a CPU it depends on the processor whether that is several times
    faster or many times slower, so that a product of each kind is timed.
    """
    if config.precision is not Precision.AUTO:
        return PrecisionChoice(config.precision, "asked for by train.precision")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return PrecisionChoice(Precision.BF16, "this GPU has it")
        return PrecisionChoice(Precision.FP32, "this GPU has no bf16")
    if architecture.get_text_config().hidden_size < LEAST_HIDDEN_SIZE:
        return PrecisionChoice(Precision.FP32, "the model is too narrow to gain from another")
    ratio = agree.value_of_main(round(100 * bf16_speed(torch.get_num_threads())), device) / 100
    reason = f"bf16 products take {1 / ratio:.2g} of the time of fp32 ones on this processor"
    return PrecisionChoice(Precision.BF16 if ratio >= WORTHWHILE else Precision.FP32, reason)


@cache
def bf16_speed(threads: int) -> float:
    """Return how many times as fast as an fp32 product a bf16 one is on this CPU with `threads` threads (0.01 at least).

    Medians of interleaved rounds, after a first one that is not counted: it sets the kernels up. Where bf16 is emulated the
    first round is slow enough to decide.
    """
    rows, depth, columns = PROBE_SHAPE
    pairs = {
        dtype: (torch.ones(rows, depth, dtype=dtype), torch.ones(depth, columns, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in pairs}
    for round_number in range(ROUNDS + 1):
        for dtype, (left, right) in pairs.items():
            started = time.perf_counter()
            torch.mm(left, right)
            seconds[dtype].append(time.perf_counter() - started)
        if round_number == 0 and seconds[torch.bfloat16][0] > 0.2:
            break
        if round_number == 0:
            seconds = {dtype: [] for dtype in pairs}
    return max(0.01, median(seconds[torch.float32]) / median(seconds[torch.bfloat16]))
