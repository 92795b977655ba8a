"""What a training step costs here and in TRL: the same weights, rows, loss and optimiser, by turns.

    python -m benchmarks.trl [--cases NAME ...] [--rounds 3] [--threads N] [--processor-time]

A step is everything from documents to changed weights: forward, loss, backward, clipping, AdamW (fused, on both sides), in fp32
on the CPU; in bf16 as well where that is faster, which is then what `precision: auto` here and TRL by itself take. This
side is the training step of a run, on a model that was loaded as a run loads it; TRL's is `SFTTrainer.train()`, timed from the
beginning of a step to its end, batches already collated. Each variant is a process of its own, with the settings a user would
get, and they take turns; ratios are those of a round. Before anything is timed, loss and gradients of all variants are compared
in a first step without clipping.

TRL packs best-fit-decreasing into rows of `max_length`, one row a forward pass (faster on a CPU than several, which become one
row under one mask), without gradient checkpointing. Its trainer always uses its fused head; "model's own loss" is the same
trainer with the `compute_loss` of transformers' Trainer, which makes full logits. The goals are stated against both.

The ceiling is the best rate of a plain fp32 matrix product of this machine, measured in a turn of each round.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.packing import table
from benchmarks.support.shapes import (
    ORDINARY,
    PROMPT_HEAVY,
    Lengths,
    needed_arithmetic,
    random_llama,
    random_rows,
    row_of,
)
from benchmarks.support.turns import Turns, seconds_of, take_turns, workers
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Checkpointing, Config, Layout, Precision
from tutelage.model.checkpointing import set_checkpointing
from tutelage.model.locate import SHIPPED_FOLDER
from tutelage.pack.plan import PlanOptions, plan_epoch
from tutelage.train.environment import keep_freed_memory
from tutelage.train.optim import build_optimiser
from tutelage.train.precision import WORTHWHILE, bf16_speed
from tutelage.train.step import StepSettings, train_step
from tutelage.train.trainee import Start, make_trainee

LEARNING_RATE = 1e-5
LARGEST_NORM = 1.0
CLOCKS = {"seconds": time.perf_counter, "processor_seconds": time.process_time}
MICRO_TOKENS = 2048
TRL_LENGTH = 1024
FUSED, OWN, PADDED = "TRL, packed, its fused head", "TRL, packed, model's own loss", "TRL, padded, its fused head"
FULL, LORA, CEILING = "tutelage", "tutelage, LoRA", "ceiling"
SELECTIVE = "tutelage, selective checkpointing"
HERE = (FULL, LORA, SELECTIVE)


@dataclass(frozen=True)
class Case:
    """One comparison: a model shape, rows of `tokens` tokens in all for a step, and what trains."""

    name: str
    shape: str
    lengths: Lengths
    tokens: int
    variants: tuple[str, ...]
    method: str = "full"
    vocabulary: int | None = None
    trl_length: int = TRL_LENGTH
    precision: str = "fp32"
    goal: float | None = None  # least ratio of TRL's time to ours
    goal_ceiling: float | None = None  # least part of the ceiling
    by_name_only: bool = False


SPEED = (
    Case("15M, ordinary rows", "15M", ORDINARY, 4096, (FULL, OWN, FUSED, PADDED), goal=2.8, goal_ceiling=0.70),
    Case("15M, prompt-heavy rows", "15M", PROMPT_HEAVY, 4096, (FULL, OWN, FUSED), goal=4.0),
    Case("100M, ordinary rows", "100M", ORDINARY, 2048, (FULL, OWN, FUSED), goal=1.8, goal_ceiling=0.85),
    Case("100M, ordinary rows, LoRA", "100M", ORDINARY, 2048, (FULL, LORA, OWN, FUSED), method="lora", goal=3.0),
    Case("15M, ordinary rows, bf16", "15M", ORDINARY, 4096, (FULL, OWN, FUSED), precision="bf16", goal=2.8),
    Case(
        "15M, prompt-heavy rows, bf16",
        "15M",
        PROMPT_HEAVY,
        4096,
        (FULL, OWN, FUSED),
        precision="bf16",
        goal=4.0,
        by_name_only=True,
    ),
    Case(
        "100M, ordinary rows, bf16",
        "100M",
        ORDINARY,
        2048,
        (FULL, OWN, FUSED),
        precision="bf16",
        goal=1.8,
        by_name_only=True,
    ),
    Case(
        "100M, ordinary rows, LoRA, bf16",
        "100M",
        ORDINARY,
        2048,
        (FULL, LORA, OWN, FUSED),
        method="lora",
        precision="bf16",
        goal=3.0,
        by_name_only=True,
    ),
)
MEMORY = tuple(
    Case(
        f"100M, vocabulary of {vocabulary:,}",
        "100M",
        ORDINARY,
        2048,
        (FULL, SELECTIVE, OWN, FUSED),
        vocabulary=vocabulary,
        trl_length=MICRO_TOKENS,
    )
    for vocabulary in (32_000, 151_936)
)
LORA_GOAL, MEMORY_GOAL = 0.68, 0.6


@dataclass(frozen=True)
class Job:
    """What one worker does: a variant on a model and rows that lie in files; where its first gradients go."""

    variant: str
    method: str
    model: str
    rows: str
    gradients: str
    trl_length: int
    precision: str


# ---- the workers


def work(job: Job) -> None:
    """Take steps, a turn each, until there are no more turns."""
    torch.manual_seed(0)
    if job.variant == CEILING:
        _measure_products()
    elif job.variant in HERE:
        _train_here(job)
    else:
        _train_with_trl(job)


def _measure_products() -> None:
    """Answer with the best rate of a plain matrix product, in operations a second, over sizes that fill the cores."""
    turns = Turns()
    sizes = [(2048, 2048, 2048), (2048, 768, 2048), (2048, 2048, 768)]
    factors = [(torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)) for m, k, n in sizes]
    while True:
        turns.wait()
        rates = dict.fromkeys(CLOCKS, 0.0)
        for left, right, out in factors:
            for _ in range(6):
                began = {name: now() for name, now in CLOCKS.items()}
                torch.mm(left, right, out=out)
                for name, now in CLOCKS.items():
                    rates[name] = max(rates[name], 2 * left.numel() * right.shape[1] / (now() - began[name]))
        turns.done(rates=rates)


def _train_here(job: Job) -> None:
    """Take the training steps of a run."""
    keep_freed_memory()
    config = Config.model_validate(
        {
            "model": {"path": job.model},
            "train": {"method": job.method, "learning_rate": LEARNING_RATE, "micro_tokens": MICRO_TOKENS},
        }
    )
    device = torch.device("cpu")
    model = make_trainee(config, start=Start.WEIGHTS, device=device, precision=Precision(job.precision)).model
    set_checkpointing(model, Checkpointing.SELECTIVE if job.variant == SELECTIVE else Checkpointing.NONE)
    _draw_adapters(model)
    rows = load_rows(Path(job.rows))
    lengths, weights = [len(row) for row in rows], [float(row.weights.sum()) for row in rows]
    options = PlanOptions(MICRO_TOKENS, sum(lengths), batch_sequences=len(rows))
    (planned,) = plan_epoch(range(len(rows)), lengths, weights, options, epoch=0)
    optimiser = build_optimiser(model, config.train)
    unclipped = StepSettings(
        layout=Layout.PACKED,
        micro_tokens=MICRO_TOKENS,
        seed=0,
        precision=Precision(job.precision),
        device=device,
        largest_grad_norm=0.0,
        neftune_alpha=0.0,
        sources=("random",),
    )
    clipped = replace(unclipped, largest_grad_norm=LARGEST_NORM)
    before_first = optimiser.register_step_pre_hook(lambda *_: _save_gradients(model, job))
    turns = Turns()
    for step in count(1):
        turns.wait()
        result = train_step(model, optimiser, planned, rows, unclipped if step == 1 else clipped, step=step)
        turns.done(loss=result.loss)
        before_first.remove()


def _train_with_trl(job: Job) -> None:
    """Let TRL train, a step a turn."""
    from datasets import Dataset
    from peft import LoraConfig as PeftLoraConfig
    from transformers import AutoTokenizer, Trainer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    turns = Turns()

    class Recorded(SFTTrainer):  # type: ignore[misc]
        """The trainer as it is, with the losses of the micro-batches of a step added up."""

        loss_of_step = 0.0

        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            loss: Tensor = super().training_step(*args, **kwargs)
            self.loss_of_step += loss.item()
            return loss

    class FullLogits(Recorded):
        compute_loss = Trainer.compute_loss

    class InTurn(TrainerCallback):  # type: ignore[misc]
        """Waits for a turn before each step, and answers after it; the first step is not clipped and leaves its gradients."""

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            trainer.loss_of_step = 0.0
            turns.wait()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                _save_gradients(trainer.model, job)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.done(loss=trainer.loss_of_step)
            args.max_grad_norm = LARGEST_NORM

    packed = job.variant != PADDED
    rows = load_rows(Path(job.rows))
    dataset = Dataset.from_list(
        [{"input_ids": row.ids.tolist(), "labels": np.where(row.weights > 0, row.ids, -100).tolist()} for row in rows]
    )
    settings = SFTConfig(
        output_dir=str(Path(job.rows).parent / "trl"),
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        use_cpu=True,
        bf16=job.precision == "bf16",
        packing=packed,
        max_length=job.trl_length,
        per_device_train_batch_size=1 if packed else 8,
        gradient_accumulation_steps=len(rows),  # at least the batches of an epoch, which is a step
        activation_checkpointing=False,
        optim="adamw_torch_fused",
        adam_beta2=0.95,
        weight_decay=0.0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        max_steps=10**6,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    adapters = PeftLoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    kind = FullLogits if job.variant == OWN else Recorded
    trainer = kind(
        model=job.model,
        args=settings,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(SHIPPED_FOLDER),
        peft_config=adapters if job.method == "lora" else None,
        callbacks=[InTurn()],
    )
    _draw_adapters(trainer.model)
    trainer.train()


@torch.no_grad()
def _draw_adapters(model: torch.nn.Module) -> None:
    """Fill adapters with the same numbers whoever made them; at zero, as they begin, half of them would have no gradient."""
    random = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            parameter.normal_(0.0, 0.02, generator=random)


def _save_gradients(model: torch.nn.Module, job: Job) -> None:
    named = {name: p.grad.contiguous() for name, p in model.named_parameters() if p.grad is not None}
    save_file(named, job.gradients)


# ---- rows in files


def save_rows(path: Path, rows: Sequence[Rendered]) -> None:
    """Write rows, each as its tokens and the length of its prompt."""
    pairs = [[row.ids.tolist(), int(np.argmax(row.weights > 0))] for row in rows]
    path.write_text(json.dumps(pairs), encoding="utf-8")


def load_rows(path: Path) -> list[Rendered]:
    """Read what `save_rows` wrote."""
    pairs = json.loads(path.read_text(encoding="utf-8"))
    return [row_of(np.array(ids, dtype=np.int32), prompt, f"row {i}") for i, (ids, prompt) in enumerate(pairs)]


# ---- the comparison


@dataclass(frozen=True)
class Agreement:
    """How far two variants are apart in the first step.

    `loss` relative to itself, `gradient` the largest difference of a parameter's gradient, as a part of its norm.
    """

    loss: float
    gradient: float


CLOSE = {"fp32": Agreement(1e-5, 1e-3), "bf16": Agreement(1e-3, 0.1)}  # rounding, in sums of another order


@dataclass(frozen=True)
class Comparison:
    """A case with what its variants answered in each timed round, and how far each is from ours."""

    case: Case
    answers: Mapping[str, Sequence[Mapping[str, Any]]]
    agreement: Mapping[str, Agreement]
    operations: float
    num_rows: int
    num_tokens: int
    num_supervised: int

    def ratios(self, over: str, under: str, clock: str) -> list[float]:
        """Return the time of `over` relative to that of `under` in each round, smallest first."""
        pairs = zip(seconds_of(self.answers[over], clock), seconds_of(self.answers[under], clock), strict=True)
        return sorted(one / other for one, other in pairs)

    def fastest_of_trl(self, clock: str) -> str:
        """Return the variant of TRL that packs and took least time."""
        names = [name for name in (OWN, FUSED) if name in self.answers]
        return min(names, key=lambda name: statistics.median(seconds_of(self.answers[name], clock)))

    def peaks(self) -> dict[str, int]:
        """Return the most bytes that each variant held, beyond what it held with its model before the first step."""
        return {name: max(answer["peak_bytes"] for answer in self.answers[name]) for name in self.case.variants}

    def parts_of_ceiling(self, clock: str) -> list[float]:
        """Return the rate of needed operations of a full step, as a part of the rate of a plain product, for each round."""
        pairs = zip(seconds_of(self.answers[FULL], clock), self.answers[CEILING], strict=True)
        return sorted(self.operations / seconds / best["rates"][clock] for seconds, best in pairs)


def compare(case: Case, *, rounds: int, threads: int, together: bool = True) -> Comparison:
    """Start the variants of a case, hold their first step, which warms up, to ours, and time as many rounds.

    They take turns where they are held in memory `together`; else one is over before the next begins.
    Raises: AssertionError where a loss or a gradient of one variant is not that of ours.
    """
    model = random_llama(case.shape, vocabulary=case.vocabulary)
    rows = random_rows(case.lengths, tokens=case.tokens, vocabulary=model.config.vocab_size)
    needed = needed_arithmetic(model, rows)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        save_rows(Path(folder) / "rows.json", rows)
        jobs = {
            name: asdict(
                Job(
                    variant=name,
                    method=case.method if name != FULL else "full",
                    model=folder,
                    rows=str(Path(folder) / "rows.json"),
                    gradients=str(Path(folder) / f"{number}.safetensors"),
                    trl_length=case.trl_length,
                    precision=case.precision,
                )
            )
            for number, name in enumerate((*case.variants, *((CEILING,) if case.goal_ceiling else ())))
        }
        first: dict[str, list[dict[str, Any]]] = {}
        answers: dict[str, list[dict[str, Any]]] = {}
        agreement: dict[str, Agreement] = {}
        ours = LORA if case.method == "lora" else FULL  # stands before those of TRL
        for group in [jobs] if together else [{name: job} for name, job in jobs.items()]:
            with workers("benchmarks.trl", group, threads=threads) as turns:
                first |= take_turns(turns, 1)
                for name in set(turns) & {OWN, FUSED, PADDED}:
                    steps, files = (first[name][0], first[ours][0]), (jobs[name]["gradients"], jobs[ours]["gradients"])
                    agreement[name] = agree(steps, files, within=CLOSE[case.precision])
                answers |= take_turns(turns, rounds)
    return Comparison(
        case,
        answers,
        agreement,
        needed.full_step,
        len(rows),
        sum(map(len, rows)),
        sum(row.supervised_tokens for row in rows),
    )


def agree(answers: tuple[Mapping[str, Any], Mapping[str, Any]], files: tuple[str, str], within: Agreement) -> Agreement:
    """Return how far a variant's first step and ours are apart, from (theirs, ours).

    Raises: AssertionError where that is not `within` bounds.
    """
    (their_loss, our_loss), (theirs, ours) = (answer["loss"] for answer in answers), map(load_file, files)
    assert theirs.keys() == ours.keys(), f"other parameters have gradients: {sorted(theirs.keys() ^ ours.keys())}"
    apart = Agreement(
        loss=abs(their_loss - our_loss) / abs(our_loss),
        gradient=max(float((theirs[name] - ours[name]).norm() / ours[name].norm()) for name in ours),
    )
    assert apart.loss < within.loss, f"the losses are {their_loss} and {our_loss}"
    assert apart.gradient < within.gradient, f"gradients differ by {apart.gradient:.1e} of their norm"
    return apart


# ---- the tables


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return the median with the range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def speed_table(found: Sequence[Comparison], clock: str) -> str:
    """Return a row for each variant of each case."""
    rows = []
    for one in found:
        ours = LORA if one.case.method == "lora" else FULL
        for name in one.case.variants:
            seconds = statistics.median(seconds_of(one.answers[name], clock))
            apart = one.agreement.get(name)
            difference = f"{apart.loss:.0e}, {apart.gradient:.0e}" if apart else ""
            rates = f"{one.num_tokens / seconds:,.0f}", f"{one.num_supervised / seconds:,.0f}"
            rows.append([one.case.name, name, *rates, spread(one.ratios(name, ours, clock)), difference])
    heads = ["case", "variant", "tokens/s", "supervised tokens/s", "time relative to ours (range)"]
    return table([*heads, "loss, gradient apart"], rows)


def memory_table(found: Sequence[Comparison], clock: str) -> str:
    """Return a row for each variant of each case: the peak of the resident set beyond what the process held with its model."""
    rows = []
    for one in found:
        peaks = one.peaks()
        for name in one.case.variants:
            relative = f"{peaks[FULL] / peaks[name]:.2f}", f"{one.ratios(name, FULL, clock)[0]:.2f}"
            rows.append([one.case.name, name, f"{peaks[name] / 1e6:,.0f}", *relative])
    return table(
        ["case", "variant", "peak of a step, MB", "our peak relative to it", "its time relative to ours"], rows
    )


def goals_table(speed: Sequence[Comparison], memory: Sequence[Comparison], clock: str) -> str:
    """Return each goal beside what was reached."""
    rows = []

    def goal(what: str, bound: float, values: Sequence[float], *, least: bool) -> None:
        middle = statistics.median(values)
        reached = "yes" if (middle >= bound if least else middle <= bound) else "no"
        rows.append([what, f"{'at least' if least else 'at most'} {bound:g}", spread(values), reached])

    for one in speed:
        ours = LORA if one.case.method == "lora" else FULL
        best = one.fastest_of_trl(clock)
        for name in dict.fromkeys((best, FUSED)):
            if one.case.goal:
                ratios = one.ratios(name, ours, clock)
                goal(f"{one.case.name}: time of {name}, to ours", one.case.goal, ratios, least=True)
        if one.case.method == "lora":
            ratios = one.ratios(LORA, FULL, clock)
            goal(f"{one.case.name}: our LoRA step to our full step", LORA_GOAL, ratios, least=False)
        if one.case.goal_ceiling:
            parts = one.parts_of_ceiling(clock)
            goal(f"{one.case.name}: part of the product ceiling", one.case.goal_ceiling, parts, least=True)
    for one in memory:
        peaks = one.peaks()
        for ours, theirs in product((FULL, SELECTIVE), (OWN, FUSED)):
            what = f"{one.case.name}: peak of {ours}, to that of {theirs}"
            goal(what, MEMORY_GOAL, [peaks[ours] / peaks[theirs]], least=False)
    return table(["goal", "bound", "reached (range)", "met"], rows)


def main() -> None:
    """Print the tables, or work for a process that does."""
    names = [case.name for case in (*SPEED, *MEMORY)]
    usual = [case.name for case in (*SPEED, *MEMORY) if not case.by_name_only]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told = f"of {', '.join(names)}; by default {', '.join(usual)}"
    parser.add_argument("--cases", nargs="+", choices=names, default=usual, metavar="NAME", help=told)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--processor-time", action="store_true", help="not by the clock: for a machine with other work")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.worker:
        work(Job(**json.loads(words.worker)))
        return
    if importlib.util.find_spec("trl") is None:
        print('TRL is not installed, so nothing is compared with it: `pip install -e ".[bench]"` brings it.')
        return
    clock = "processor_seconds" if words.processor_time else "seconds"
    torch.set_num_threads(words.threads)
    precisions = {"fp32", "bf16"} if bf16_speed(words.threads) >= WORTHWHILE else {"fp32"}
    timed = [case for case in SPEED if case.name in words.cases and case.precision in precisions]
    speed = [_told(compare(case, rounds=words.rounds, threads=words.threads)) for case in timed]
    weighed = [case for case in MEMORY if case.name in words.cases]
    memory = [_told(compare(case, rounds=1, threads=words.threads, together=False)) for case in weighed]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("trl", "transformers", "peft", "torch"))
    print(f"{versions}; {words.threads} thread(s), {words.rounds} rounds of speed, one of memory\n")
    for one in (*speed, *memory):
        print(
            f"- {one.case.name}: {one.num_rows} rows, {one.num_tokens:,} tokens, {one.num_supervised:,} supervised, "
            f"{one.operations / 1e9:,.0f} billion operations needed for a full step"
        )
    tables = [speed_table(speed, clock)] if speed else []
    tables += [memory_table(memory, clock)] if memory else []
    print("\n" + "\n\n".join([*tables, goals_table(speed, memory, clock)]))


def _told(comparison: Comparison) -> Comparison:
    print(f"{comparison.case.name} done", file=sys.stderr, flush=True)
    return comparison


if __name__ == "__main__":
    main()
