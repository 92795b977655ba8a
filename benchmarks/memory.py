"""The peak of a training step: as it is predicted before the run, and as it is measured.

    python -m benchmarks.memory [--threads 1] [--device cuda] [--all]

One row is a process of its own, that makes a random Llama, predicts the peak of a step over one pack of instruction-like documents,
and takes that step. On a GPU the measured figure is the peak of torch's allocator. On a CPU it is what torch's allocator gave out,
read from its own record, and beside it the growth of the resident set since before the model was made, which is what a run
reports: in it are pages of libraries and what kernels take for themselves as well. `--all` adds the larger combinations.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.lora import LORA, SHAPES
from benchmarks.packing import instruction_like_lengths, table
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Checkpointing, Layout, Method, Precision, TrainConfig
from tutelage.model.adapters import add_lora
from tutelage.model.attention import NAME, register_attention
from tutelage.model.checkpointing import set_checkpointing
from tutelage.model.head import supervised_losses
from tutelage.model.lora_linear import narrow_frozen_matrices
from tutelage.pack.batch import Batch, pack_batch
from tutelage.train.environment import keep_freed_memory
from tutelage.train.memory import predict_peak
from tutelage.train.optim import build_optimiser, clip_gradients
from tutelage.train.step import StepSettings
from tutelage.train.usage import PeakMeter

MB = 1e6
TOLERANCE = 0.15


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    shape: str
    vocabulary: int
    method: str
    checkpointing: str
    tokens: int
    precision: str = "fp32"


CASES = (
    *(Case("15M", 32_000, m, k, 1024) for m, k in product(("full", "lora"), ("none", "selective", "layers"))),
    Case("15M", 32_000, "full", "none", 4096),
    *(Case("15M", 152_000, method, "none", 1024) for method in ("full", "lora")),
    Case("15M", 32_000, "full", "none", 1024, "bf16"),
    *(Case("100M", 32_000, method, "none", 1024) for method in ("full", "lora")),
)
LARGER_CASES = tuple(
    Case("100M", vocabulary, method, kind, tokens)
    for vocabulary, method, kind, tokens in product(
        (32_000, 152_000), ("full", "lora"), ("none", "selective", "layers"), (1024, 2048, 4096)
    )
)


@dataclass(frozen=True)
class Figures:
    """Bytes: predicted, given out by torch's allocator, and by which the resident set grew (None on a GPU)."""

    predicted: int
    allocated: int
    resident: int | None


def pack_of(tokens: int) -> Batch:
    """Draw instruction-like documents until they fill a pack; the later two thirds of each are supervised."""
    random = np.random.default_rng(0)
    documents: list[Rendered] = []
    left = tokens
    for length in instruction_like_lengths(400, longest=1024).tolist():
        length = min(length, left)
        left -= length
        if length == 0:
            break
        weights = np.zeros(length, dtype=np.float32)
        weights[length // 3 :] = 1.0
        nothing = np.zeros(length, dtype=np.int32)
        ids = random.integers(3, 32_000, length).astype(np.int32)
        name = str(len(documents))
        documents.append(Rendered(ids, weights, nothing, nothing.astype(np.int8), (), name, "random", name))
    return pack_batch(documents)


def measure(case: Case, device: torch.device) -> Figures:
    """Predict a step of `case`, and take it."""
    register_attention()
    if device.type == "cpu":
        keep_freed_memory()
    warm_up(device)
    meter = PeakMeter(device)
    config, settings = TrainConfig(method=Method(case.method)), settings_of(case, device)
    model = model_of(case, device)
    batch, small = pack_of(case.tokens).to(device), pack_of(64).to(device)
    predicted = predict_peak(model, batch, settings, config, accumulates=False).total

    optimiser = build_optimiser(model, config)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step(of: Batch) -> None:
        with settings.autocast():
            losses = supervised_losses(model, of)
        (losses.weighted_sum / of.num_supervised).backward()  # type: ignore[no-untyped-call]
        del losses
        clip_gradients(parameters, settings.largest_grad_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    step(small)  # makes the optimiser's state
    meter.begin()
    if device.type == "cuda":
        step(batch)
        return Figures(predicted, meter.peak_bytes() or 0, None)
    states = [value for state in optimiser.state.values() for value in state.values()]
    standing = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers(), *states))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step(batch)
    resident = meter.peak_bytes()
    now = highest = 0
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return Figures(predicted, standing + highest, resident)


def warm_up(device: torch.device) -> None:
    """Load the libraries of a first product and its gradient, which are no part of a model."""
    left = torch.ones(64, 64, device=device, requires_grad=True)
    (left @ left).sum().backward()  # type: ignore[no-untyped-call]


def settings_of(case: Case, device: torch.device) -> StepSettings:
    """Return what the step needs to know."""
    return StepSettings(
        layout=Layout.PACKED,
        micro_tokens=case.tokens,
        seed=0,
        precision=Precision(case.precision),
        device=device,
        largest_grad_norm=1.0,
        neftune_alpha=0.0,
        sources=("random",),
    )


def model_of(case: Case, device: torch.device) -> torch.nn.Module:
    """Make a random Llama, ready for its first step."""
    shape = {**SHAPES[case.shape], "vocab_size": case.vocabulary}
    llama = AutoModelForCausalLM.from_config(LlamaConfig(**shape, tie_word_embeddings=True))
    llama.set_attn_implementation(NAME)
    model: torch.nn.Module = add_lora(llama, LORA) if case.method == "lora" else llama
    if case.precision == "bf16":
        narrow_frozen_matrices(model, torch.bfloat16)
    set_checkpointing(model, Checkpointing(case.checkpointing))
    return model.to(device).train()


def in_own_process(case: Case, arguments: argparse.Namespace) -> Figures:
    """Measure `case` in a process that has held no other model."""
    command = [sys.executable, "-m", "benchmarks.memory", "--case", json.dumps(asdict(case))]
    command += ["--threads", str(arguments.threads), "--device", arguments.device]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return Figures(**json.loads(printed.strip().splitlines()[-1]))


def row(case: Case, figures: Figures) -> list[str]:
    """Return the row of the table."""
    resident = "-" if figures.resident is None else f"{figures.resident / MB:,.0f} MB"
    of_resident = "-" if figures.resident is None else f"{figures.predicted / figures.resident:.2f}"
    return [
        f"{case.shape}, vocabulary {case.vocabulary:,}, {case.precision}",
        case.method,
        case.checkpointing,
        f"{case.tokens:,}",
        f"{figures.predicted / MB:,.0f} MB",
        f"{figures.allocated / MB:,.0f} MB",
        f"{figures.predicted / figures.allocated:.3f}",
        resident,
        of_resident,
    ]


HEADER = [
    "Llama",
    "method",
    "checkpointing",
    "tokens",
    "predicted",
    "allocated",
    "predicted / allocated",
    "resident",
    "predicted / resident",
]


def main() -> None:
    """Print the table, or the figures of one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--all", action="store_true", help="every combination for the 100M shape, too")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.case:
        figures = measure(Case(**json.loads(arguments.case)), torch.device(arguments.device))
        print(json.dumps(asdict(figures)))
        return
    measured = [(case, in_own_process(case, arguments)) for case in CASES + (LARGER_CASES if arguments.all else ())]
    print(table(HEADER, [row(case, figures) for case, figures in measured]))
    ratios = [figures.predicted / figures.allocated for _, figures in measured]
    within = sum(abs(ratio - 1) <= TOLERANCE for ratio in ratios)
    print(
        f"\n{within} of {len(ratios)} within {TOLERANCE:.0%} of what was allocated; "
        f"ratios from {min(ratios):.2f} to {max(ratios):.2f}."
    )


if __name__ == "__main__":
    main()
