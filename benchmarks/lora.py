"""What a training step with LoRA costs, relative to one that trains all weights.

    python -m benchmarks.lora [--shapes 15M 100M] [--threads N] [--rounds 2] [--device cuda] [--bf16]

One step is forward, loss on the supervised tokens, backward, clipping and AdamW, over one pack of instruction-like documents:
all weights, LoRA of rank 16 on all linear layers with peft's layers, and the same with the fused ones that training uses. Before
timing, the losses of all three are checked to be equal, the gradients of both LoRA models with each other and, by the chain rule,
with those of the weights they stand beside. The variants take turns within a round, and the ratio of each round is taken before the
median.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from peft.tuners.lora import Linear as PeftLinear
from transformers import PreTrainedModel

from benchmarks.attention import documents_of_one_pack
from benchmarks.packing import table
from benchmarks.support.shapes import SHAPES, random_llama
from tutelage.config.schema import LoraConfig, TrainConfig
from tutelage.model.adapters import add_lora
from tutelage.model.attention import NAME, register_attention
from tutelage.model.head import supervised_losses
from tutelage.model.lora_linear import narrow_frozen_matrices
from tutelage.pack.batch import Batch, pack_batch
from tutelage.train.environment import keep_freed_memory
from tutelage.train.optim import build_optimiser, clip_gradients

LORA = LoraConfig(rank=16)
FULL, PEFT, FUSED = "all weights", "LoRA, layers of peft", "LoRA, fused layers"
LARGEST_NORM = 1.0


@dataclass(frozen=True)
class Setting:
    """Where and how the steps are computed."""

    batch: Batch
    bf16: bool

    def backward(self, model: torch.nn.Module) -> torch.Tensor:
        """Make the gradient of the mean loss, and return that loss."""
        with torch.autocast(self.batch.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            losses = supervised_losses(model, self.batch)
        loss = losses.weighted_sum / self.batch.num_supervised
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def make_models(shape: str, setting: Setting) -> dict[str, torch.nn.Module]:
    """Make the same random Llama three times, for each way to train it."""

    def llama() -> PreTrainedModel:
        model = random_llama(shape)
        model.set_attn_implementation(NAME)
        return model

    models: dict[str, torch.nn.Module] = {FULL: llama(), PEFT: add_lora(llama(), LORA), FUSED: add_lora(llama(), LORA)}
    for layer in models[PEFT].modules():
        vars(layer).pop("forward", None)  # the fused one, which stands before that of the class
    if setting.bf16:
        narrow_frozen_matrices(models[FUSED], torch.bfloat16)
    return {name: model.to(setting.batch.device).train() for name, model in models.items()}


def require_equal(models: dict[str, torch.nn.Module], setting: Setting) -> None:
    """Check that the three have the same loss and gradients; leave no gradient behind."""
    tolerance = 0.02 if setting.bf16 else 1e-4  # of the norm of a gradient
    losses = {name: setting.backward(model) for name, model in models.items()}
    for loss in losses.values():
        torch.testing.assert_close(loss, losses[FULL], rtol=1e-3 if setting.bf16 else 1e-5, atol=0)
    weights = dict(models[FULL].named_modules())
    of_peft = dict(models[PEFT].named_modules())
    for name, layer in models[FUSED].named_modules():
        if isinstance(layer, PeftLinear):
            a_RI, b_OR = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            by_chain_rule = (
                layer.scaling["default"] * weights[name.removeprefix("base_model.model.")].weight.grad @ a_RI.t()
            )
            for want in (by_chain_rule, of_peft[name].lora_B["default"].weight.grad):
                difference = ((b_OR.grad - want).norm() / want.norm()).item()
                if difference > tolerance:
                    raise AssertionError(f"{name}: gradients differ by {difference:.1e} of their norm")
    for model in models.values():
        model.zero_grad(set_to_none=True)


def step(model: torch.nn.Module, setting: Setting) -> Callable[[], float]:
    """Return a function that runs one step and returns its seconds."""
    on_gpu = setting.batch.device.type == "cuda"
    optimiser = build_optimiser(model, TrainConfig())

    def run() -> float:
        started = time.perf_counter()
        setting.backward(model)
        clip_gradients(model.parameters(), LARGEST_NORM)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return run


def rows_of(shape: str, setting: Setting, num_rounds: int) -> list[list[str]]:
    """Measure one shape and return its rows of the table."""
    models = make_models(shape, setting)
    require_equal(models, setting)
    variants = {name: step(model, setting) for name, model in models.items()}
    for run in variants.values():
        run()
    rounds = [{name: run() for name, run in variants.items()} for _ in range(num_rounds)]
    rows = []
    for name in variants:
        seconds = statistics.median(each[name] for each in rounds)
        ratios = [each[name] / each[FULL] for each in rounds]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append([shape, name, f"{sum(setting.batch.lengths) / seconds:,.0f}", spread])
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="under autocast to bf16, frozen matrices stored in it")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    if words.device == "cpu":
        keep_freed_memory()
    register_attention()
    setting = Setting(pack_batch(documents_of_one_pack(seed=0)).to(torch.device(words.device)), words.bf16)
    rows = [row for shape in words.shapes for row in rows_of(shape, setting, words.rounds)]
    batch = setting.batch
    precision = "bf16" if words.bf16 else "fp32"
    print(
        f"{sum(batch.lengths):,} tokens, {batch.num_supervised:,} of them supervised, in {batch.num_documents} documents, "
        f"{precision}, {words.threads} thread(s), {words.device}\n"
    )
    print(table(["model", "what trains", "tokens per second", "time relative to all weights (range)"], rows))


if __name__ == "__main__":
    main()
