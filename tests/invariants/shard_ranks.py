"""Run by `test_shard_law.py`, alone or under torchrun: a few steps of tiny models whose weights are spread over the ranks.

argv: a folder for what came out, and where each run begins: `begin`, or the folder of such a run to go on from. One process holds the
model whole.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from sample_documents import random_documents
from tiny import tiny_model
from tutelage.config.schema import Layout, LoraConfig, Precision, TrainConfig
from tutelage.model.adapters import add_lora
from tutelage.model.attention import NAME, register_attention
from tutelage.pack.plan import Step
from tutelage.parallel import agree
from tutelage.parallel.shard import shard_model, whole_weights
from tutelage.train.checkpoint import RunState, load_checkpoint, save_checkpoint
from tutelage.train.evaluate import evaluate
from tutelage.train.optim import build_optimiser
from tutelage.train.step import StepSettings, train_step
from tutelage.train.stop import Improvement

# One pack, so that all but one rank have nothing to do; three of unlike cost; all documents.
STEPS = (
    Step(packs=((0, 1, 2),), num_tokens=23, weight_sum=7.0),
    Step(packs=((0, 1), (2, 3), (4,)), num_tokens=63, weight_sum=13.0),
    Step(packs=((5, 4), (3, 2), (1, 0)), num_tokens=65, weight_sum=11.0),
)
SAVED_AFTER = 2
MODELS = (("llama", "full"), ("llama_tied", "full"), ("llama", "lora"), ("llama_tied", "lora"))
DOCUMENTS = random_documents()
CPU = torch.device("cpu")


def make_model(family: str, method: str) -> torch.nn.Module:
    """Return a tiny model in fp64 and in training mode; rows of two tokens train with its adapters."""
    model = tiny_model(family, dtype=torch.float64)
    model.set_attn_implementation(NAME)
    if method == "lora":
        model = add_lora(model, LoraConfig(rank=2), seed=0, new_ids=(5, 9)).to(torch.float64)
    model = model.train()
    return model if agree.world_size() == 1 else shard_model(model, CPU)


def settings_of(layout: Layout) -> StepSettings:
    """Return settings with noise on the embeddings and gradients that are clipped."""
    return StepSettings(
        layout=layout,
        micro_tokens=48,
        seed=0,
        precision=Precision.FP32,
        device=CPU,
        largest_grad_norm=0.5,
        neftune_alpha=5.0,
        sources=("source-0", "source-1"),
    )


def main(folder: Path, begins: list[str]) -> None:
    """Take the steps with every model, from every beginning; leave figures, and the weights at the end, whole."""
    torch.set_num_threads(1)
    register_attention()
    with agree.process_group(CPU):
        for number, begin in enumerate(begins):
            run(folder, begin, number)


def run(folder: Path, begin: str, number: int) -> None:
    """Take the steps from one beginning."""
    figures: dict[str, list[float]] = {}
    weights: dict[str, torch.Tensor] = {}
    for family, method in MODELS:
        name = f"{family}-{method}"
        settings = settings_of(Layout.PADDED if family == "llama_tied" else Layout.PACKED)
        model = make_model(family, method)
        optimiser = build_optimiser(model, TrainConfig(learning_rate=1e-2, weight_decay=0.1))
        done = 0
        if begin != "begin":
            done = load_checkpoint(Path(begin) / name, model, optimiser).step
        for step, planned in enumerate(STEPS[done:], start=done + 1):
            result = train_step(model, optimiser, planned, DOCUMENTS, settings, step=step)
            held_out = evaluate(model, DOCUMENTS[2:5], settings, step=step)
            figures[f"{name}/{step}"] = [result.loss, result.grad_norm, held_out.loss, held_out.step]
            if step == SAVED_AFTER and begin == "begin":
                save_checkpoint(folder / name, model, optimiser, RunState(step, Improvement(), "", "", ""))
        gathered = whole_weights(model, trainable_only=True)
        own = {key: p.detach() for key, p in model.named_parameters() if p.requires_grad}
        for key, tensor in (own if gathered is None else gathered).items():
            weights[f"{name}/{key}"] = tensor.clone()
    if agree.is_main():
        save_file(weights, folder / f"weights-{number}.safetensors")
        (folder / f"figures-{number}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
