"""What compiled decoder layers save of a training step, what compiling them costs, and after how many steps that is won back.

    python -m benchmarks.compile [--shapes 15M 100M] [--method full] [--threads 1] [--rounds 3] [--device cuda] [--bf16]

One step is what training does, over one pack of instruction-like documents, another one in each round, so that every round has another
number of tokens. The two ways take turns within a round, and the ratio of each round is taken before the median. Compiling is the first
step's time beyond that of the later ones, with nothing kept from earlier runs. On a CPU a step's time is that of the process, summed
over its threads; on a GPU, and for compiling, it is that of the clock.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.attention import documents_of_one_pack
from benchmarks.packing import table
from benchmarks.support.shapes import SHAPES, random_llama
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Layout, LoraConfig, Method, Precision, TrainConfig
from tutelage.model.adapters import add_lora
from tutelage.model.attention import NAME, register_attention
from tutelage.model.compile import compile_layers
from tutelage.pack.plan import Step
from tutelage.train.environment import keep_freed_memory
from tutelage.train.optim import build_optimiser
from tutelage.train.step import StepSettings, train_step

PLAIN, COMPILED = "as they are", "compiled"
TOLERANCE = 1e-3  # of a loss, after a few steps in another order of rounding
MOST_DOCUMENTS = {"15M": 12, "100M": 5}  # of a pack, so that all ends in two minutes on a CPU


@dataclass(frozen=True)
class Taken:
    """What one step took by either clock, and its loss in nats per token."""

    seconds: float
    elapsed_seconds: float
    loss: float


def pack_of_round(shape: str, number: int) -> tuple[list[Rendered], Step]:
    """Return documents, and the step of one pack that they make."""
    documents = documents_of_one_pack(seed=number)[: MOST_DOCUMENTS[shape]]
    weight_sum = float(sum(document.weights.sum() for document in documents))
    return documents, Step((tuple(range(len(documents))),), sum(map(len, documents)), weight_sum)


def make_model(shape: str, method: Method, device: torch.device) -> nn.Module:
    """Make a random Llama, with or without adapters, ready to be trained."""
    model = random_llama(shape)
    model.set_attn_implementation(NAME)
    adapted: nn.Module = add_lora(model, LoraConfig(rank=16)) if method is Method.LORA else model
    return adapted.to(device).train()


def stepper(model: nn.Module, shape: str, settings: StepSettings) -> Callable[[int], Taken]:
    """Return a function that takes the step of a round."""
    optimiser = build_optimiser(model, TrainConfig())
    clock = time.perf_counter if settings.device.type == "cuda" else time.process_time

    def run(number: int) -> Taken:
        documents, planned = pack_of_round(shape, number)
        began, elapsed = clock(), time.perf_counter()
        result = train_step(model, optimiser, planned, documents, settings, step=1 + number)
        if settings.device.type == "cuda":
            torch.cuda.synchronize()
        return Taken(clock() - began, time.perf_counter() - elapsed, result.loss)

    return run


def measure(shape: str, method: Method, settings: StepSettings, num_rounds: int) -> list[str]:
    """Return the table's row of one shape."""
    models = {name: make_model(shape, method, settings.device) for name in (PLAIN, COMPILED)}
    compile_layers(models[COMPILED], settings.device)
    steps = {name: stepper(model, shape, settings) for name, model in models.items()}
    rounds = [{name: run(number) for name, run in steps.items()} for number in range(1 + num_rounds)]
    for taken in rounds:
        if not math.isclose(taken[PLAIN].loss, taken[COMPILED].loss, rel_tol=TOLERANCE):
            raise AssertionError(f"losses differ: {taken[PLAIN].loss} and {taken[COMPILED].loss}")
    first, *timed = rounds
    compiling = first[COMPILED].elapsed_seconds - statistics.median(taken[COMPILED].elapsed_seconds for taken in timed)
    ratios = sorted(taken[COMPILED].seconds / taken[PLAIN].seconds for taken in timed)
    plain, compiled = (statistics.median(taken[name].seconds for taken in timed) for name in (PLAIN, COMPILED))
    return [
        f"{shape}, {method.value}",
        f"{plain:.3f}",
        f"{compiled:.3f}",
        f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})",
        f"{compiling:.1f}",
        _won_back(compiling, plain * (1 - statistics.median(ratios))),
    ]


def _won_back(compiling: float, saved: float) -> str:
    return f"{compiling / saved:,.0f}" if saved > 0 else "never"


def settings_of(words: argparse.Namespace) -> StepSettings:
    """Return what all steps have in common."""
    return StepSettings(
        layout=Layout.PACKED,
        micro_tokens=4096,
        seed=0,
        precision=Precision.BF16 if words.bf16 else Precision.FP32,
        device=torch.device(words.device),
        largest_grad_norm=1.0,
        neftune_alpha=0.0,
        sources=("random",),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["15M", "100M"])
    parser.add_argument("--method", type=Method, choices=list(Method), default=Method.FULL)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    words = parser.parse_args(arguments)
    torch.set_num_threads(words.threads)
    torch.compiler.config.force_disable_caches = True
    keep_freed_memory()
    register_attention()
    rows = [measure(shape, words.method, settings_of(words), words.rounds) for shape in words.shapes]
    heads = [
        "model, method",
        "layers as they are, s",
        "compiled, s",
        "ratio (range)",
        "compiling, s",
        "steps that win it back",
    ]
    print(
        f"{'bf16' if words.bf16 else 'fp32'}, {words.threads} thread(s), {words.device}; packs of other lengths each\n"
    )
    print(table(heads, rows))


if __name__ == "__main__":
    main()
