"""Run under torchrun by `test_ranks_law.py`: the gradient of one step, as this world size computes it.

Writes, from rank 0, the loss sums and the gradient of every parameter of a tiny model to the folder in argv[1].
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
from tutelage.config.schema import Layout, Precision
from tutelage.model.attention import NAME, register_attention
from tutelage.pack.plan import Step
from tutelage.parallel import agree
from tutelage.train.objective import total
from tutelage.train.step import StepSettings, accumulate_gradients

# One pack, an odd number of packs, and a pack of one document: a rank has nothing to do, or more than the other.
STEPS = (
    Step(packs=((0, 1, 2),), num_tokens=31, weight_sum=7.0),
    Step(packs=((0, 1), (2, 3), (4,)), num_tokens=64, weight_sum=13.0),
)


def main(folder: Path) -> None:
    """Compute every step in every layout and write what came out."""
    torch.set_num_threads(1)
    register_attention()
    documents = random_documents()
    results: dict[str, torch.Tensor] = {}
    sums: dict[str, list[float]] = {}
    with agree.process_group(torch.device("cpu")):
        for number, step in enumerate(STEPS):
            for layout in (Layout.PACKED, Layout.PADDED, Layout.SINGLE):
                model = tiny_model("llama_tied", dtype=torch.float64)
                model.set_attn_implementation(NAME)
                model.train()
                settings = StepSettings(
                    layout=layout,
                    micro_tokens=16,
                    seed=0,
                    precision=Precision.FP32,
                    device=torch.device("cpu"),
                    largest_grad_norm=1.0,
                    neftune_alpha=5.0,
                    sources=("source-0", "source-1"),
                )
                totals = accumulate_gradients(model, step, documents, settings, step=number).over_all_ranks()
                found = total(totals.by_source)
                agree.sum_gradients(model.parameters())
                name = f"{number}/{layout.value}"
                sums[name] = [found.loss_sum, found.weight_sum, found.correct, found.tokens]
                results |= {f"{name}/{key}": p.grad for key, p in model.named_parameters() if p.grad is not None}
        if agree.is_main():
            save_file(results, folder / "gradients.safetensors")
            (folder / "sums.json").write_text(json.dumps(sums))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
