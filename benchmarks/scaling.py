"""How the time of a training step grows with tokens, with the size of the model, and falls with processes.

    python -m benchmarks.scaling [--rounds 2]

One step is what training does: forward, loss of the supervised tokens, backward, clipping and AdamW, in fp32 on one CPU thread a
process. Tokens: packs of instruction-like documents for a 15 M Llama, so that only the number of documents grows. Size: the same pack
for Llamas of three widths. Processes: the same step of four packs by one and by two processes over gloo, by the clock, from barrier to
barrier; the rest is processor time. Variants take turns within a round, and the ratio of each round is taken before the median.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.attention import PACK_TOKENS, documents_of_one_pack
from benchmarks.packing import table
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Layout, Precision, TrainConfig
from tutelage.model.attention import NAME, register_attention
from tutelage.pack.plan import Step
from tutelage.parallel import agree
from tutelage.train.environment import keep_freed_memory
from tutelage.train.optim import build_optimiser
from tutelage.train.step import StepSettings, train_step

WIDTHS = (192, 288, 480)
PACKS = (1, 2, 4)
PROCESSES = (1, 2)
CPU = torch.device("cpu")


def llama(width: int) -> PreTrainedModel:
    """Make a random Llama of 6 layers with a tied vocabulary of 32,000."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=6,
        num_attention_heads=width // 48,
        num_key_value_heads=width // 48,
        tie_word_embeddings=True,
        max_position_embeddings=PACK_TOKENS,
    )
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation(NAME)
    return model.train()


def step_of(num_packs: int) -> tuple[list[Rendered], Step]:
    """Return documents that fill so many packs, and the step that they make."""
    packs = [documents_of_one_pack(seed) for seed in range(num_packs)]
    documents = [document for pack in packs for document in pack]
    numbers = iter(range(len(documents)))
    planned = Step(
        packs=tuple(tuple(next(numbers) for _ in pack) for pack in packs),
        num_tokens=sum(map(len, documents)),
        weight_sum=float(sum(document.weights.sum() for document in documents)),
    )
    return documents, planned


def stepper(model: PreTrainedModel, num_packs: int, clock: Callable[[], float]) -> Callable[[], float]:
    """Return a function that takes one step over so many packs and returns its seconds."""
    documents, planned = step_of(num_packs)
    optimiser = build_optimiser(model, TrainConfig())
    settings = StepSettings(
        layout=Layout.PACKED,
        micro_tokens=PACK_TOKENS,
        seed=0,
        precision=Precision.FP32,
        device=CPU,
        largest_grad_norm=1.0,
        neftune_alpha=0.0,
        sources=("random",),
    )

    def run() -> float:
        agree.barrier()
        started = clock()
        train_step(model, optimiser, planned, documents, settings, step=1)
        agree.barrier()
        return clock() - started

    return run


def take_turns(variants: dict[str, Callable[[], float]], num_rounds: int) -> list[dict[str, float]]:
    """Run every variant once untimed, then once a round."""
    for run in variants.values():
        run()
    return [{name: run() for name, run in variants.items()} for _ in range(num_rounds)]


def rows_of(rounds: Sequence[dict[str, float]], reference: str, amounts: dict[str, float]) -> list[list[str]]:
    """Return a row a variant: its amount of work, median seconds, and time against work, both relative to `reference`."""
    rows = []
    for name, amount in amounts.items():
        ratios = sorted(each[name] / each[reference] for each in rounds)
        work = amount / amounts[reference]
        seconds = statistics.median(each[name] for each in rounds)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        rows.append([name, f"{amount:,.4g}", f"{seconds:.2f}", f"{work:.2f}", spread])
    return rows


def needed_operations(model: PreTrainedModel, planned: Step, documents: Sequence[Rendered]) -> float:
    """Return the multiply-adds of one forward pass through matrices: the body at every token, the head where there is loss."""
    head = model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in model.parameters() if p.dim() == 2) - head
    supervised = sum(int((documents[i].weights > 0).sum()) for i in planned.documents)
    return float(body * planned.num_tokens + head * supervised)


def of_tokens(num_rounds: int) -> str:
    """Return the table of step time against tokens."""
    variants, tokens = {}, {}
    for num_packs in PACKS:
        name = f"{num_packs} packs" if num_packs > 1 else "1 pack"
        variants[name] = stepper(llama(288), num_packs, time.process_time)
        tokens[name] = float(step_of(num_packs)[1].num_tokens)
    rows = rows_of(take_turns(variants, num_rounds), "1 pack", tokens)
    return table(["15 M Llama", "tokens", "seconds", "tokens, relative", "time, relative (range)"], rows)


def of_size(num_rounds: int) -> str:
    """Return the table of step time against the size of the model."""
    documents, planned = step_of(1)
    models = {f"{width} wide": llama(width) for width in WIDTHS}
    operations = {name: needed_operations(model, planned, documents) / 1e9 for name, model in models.items()}
    variants = {name: stepper(model, 1, time.process_time) for name, model in models.items()}
    rows = rows_of(take_turns(variants, num_rounds), f"{WIDTHS[0]} wide", operations)
    header = ["Llama", "billion multiply-adds, forward", "seconds", "work, relative", "time, relative (range)"]
    return table(header, rows)


def of_processes(num_rounds: int) -> str:
    """Return the table of step time against processes, each on a thread of its own."""
    rounds = []
    for _ in range(num_rounds):
        rounds.append({str(count): _with_processes(count) for count in PROCESSES})
    rows = rows_of(rounds, "1", {str(count): 1 / count for count in PROCESSES})
    return table(
        ["processes", "packs of a process, share", "seconds", "work, relative", "time, relative (range)"], rows
    )


def _with_processes(count: int) -> float:
    """Return the median seconds of a step of four packs that `count` processes share."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["-m", "benchmarks.scaling", "--one-of-several"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return float(json.loads(ended.stdout.strip().splitlines()[-1]))


def one_of_several() -> None:
    """Take steps as one process of several; the first prints their median seconds."""
    with agree.process_group(CPU):
        run = stepper(llama(288), PACKS[-1], time.perf_counter)
        run()
        seconds = statistics.median(run() for _ in range(2))
        if agree.is_main():
            print(json.dumps(seconds))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one-of-several", action="store_true", help=argparse.SUPPRESS)
    words = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    register_attention()
    if words.one_of_several:
        one_of_several()
        return
    print("\n\n".join(make(words.rounds) for make in (of_tokens, of_size, of_processes)))


if __name__ == "__main__":
    main()
