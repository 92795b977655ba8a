"""A run directory made by hand, with every file the report reads: a real-looking course of training, no training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

SOURCES = ("dolly", "replay")
SLICES = {"turn 1": 0.6, "turn 2": 0.4, "first token": 0.1, "answer": 0.9, "stop token": 0.1}
PROMPTS = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": "Why is the sky blue?"},
    ],
)


def make_run(folder: Path, *, num_steps: int = 200, learning_rate: float = 2e-4, held_out: bool = True) -> Path:
    """Write a finished LoRA run of `num_steps` steps into `folder` and return it."""
    folder.mkdir(parents=True)
    _json(folder / "run.json", {"status": "finished", "started": "2026-11-02T09:00:00+00:00", "ended": "2026-11-02T09:21:40+00:00", "result": None})  # fmt: skip
    (folder / "config.yaml").write_text(_CONFIG.format(learning_rate=learning_rate))
    _json(
        folder / "origins.json",
        {"model.path": "sft.yaml:2", "train.learning_rate": "command line", "train.seed": "default"},
    )
    _json(
        folder / "environment.json",
        {"python": "3.12.1", "device": "cpu", "threads": 2, "packages": {"torch": "2.13.0"}},
    )
    _json(folder / "plan.json", _plan(num_steps))
    _json(folder / "ledger.json", _LEDGER)
    _json(folder / "receipt.json", {"checks": _CHECKS})
    _json(folder / "masks.json", {"documents": [_mask("data/dolly.jsonl:17"), _mask("data/dolly.jsonl:902")]})
    _lines(folder / "metrics.jsonl", [_step(i, num_steps, learning_rate) for i in range(1, num_steps + 1)])
    if held_out:
        points = range(0, num_steps + 1, max(1, num_steps // 10))
        _lines(folder / "evals.jsonl", [_evaluation(i, num_steps) for i in points])
    _lines(
        folder / "samples.jsonl", [_sample(i, num_steps, p) for i in (0, num_steps // 2, num_steps) for p in range(2)]
    )
    return folder


def add_scores(folder: Path) -> None:
    """Add the scores of a lab run."""
    kinds = [("closed-book questions", 3, 96), ("word tasks", 0, 91), ("refusals", 8, 99), ("several turns", 1, 88)]
    _json(
        folder / "scores.json",
        {
            "title": "Lessons of the small world",
            "command": "tutelage demo",
            "kinds": [
                {"name": name, "base": {"correct": base, "total": 120}, "tuned": {"correct": tuned, "total": 120}}
                for name, base, tuned in kinds
            ] + [{"name": "stories", "base": None, "tuned": {"correct": 70, "total": 80}}],
            "losses": [{"name": "held-out pre-training text", "base": {"loss_sum": 2000.0, "weight_sum": 1000.0}, "tuned": {"loss_sum": 2021.0, "weight_sum": 1000.0}}],
            "answers": [{"kind": "word tasks", "question": "Reverse: one two", "expected": "two one", "base": "three four", "tuned": "two one", "base_correct": False, "tuned_correct": True}],
        },
    )  # fmt: skip


def _step(i: int, num_steps: int, peak: float) -> dict[str, Any]:
    tokens = 3900 + (i * 37) % 180
    supervised = 1500 + (i * 53) % 240
    mean = _curve(i, num_steps) + 0.16 * math.sin(i * 2.3) * math.cos(i * 0.71)
    replay = 0.1 * supervised
    return {
        "step": i,
        "epoch": 2 * i / num_steps,
        "loss": mean,
        "loss_sum": mean * supervised,
        "weight_sum": supervised,
        "tokens": tokens,
        "supervised_tokens": supervised,
        "documents": 21,
        "packs": 2,
        "fill": tokens / 4096,
        "seconds": 2.9 + 0.4 * math.sin(i),
        "learning_rate": peak * min(1, i / 6) * (0.55 + 0.45 * math.cos(math.pi * i / num_steps)),
        "grad_norm": 0.6 + 1.8 * math.exp(-i / 12) + 0.1 * math.sin(i * 1.7),
        "per_source": {
            "dolly": [mean * 0.97 * (supervised - replay), supervised - replay],
            "replay": [(mean + 0.4) * replay, replay],
        },
        "replay_weight": 1 + (i > num_steps // 2),
        "per_slice": {name: [mean * part * supervised, part * supervised] for name, part in SLICES.items()},
    }


def _curve(i: int, num_steps: int) -> float:
    return 1.35 + 1.5 * math.exp(-5 * i / num_steps)


def _evaluation(i: int, num_steps: int) -> dict[str, Any]:
    loss = _curve(i, num_steps) + 0.05 + 0.1 * (i / num_steps) ** 3
    sources = {"dolly": (loss, 9000), "replay": (loss + 0.3, 1000)}
    per_source = {
        name: {"loss_sum": mean * n, "weight_sum": n, "correct": int(n * (0.7 - 0.1 * mean)), "tokens": n}
        for name, (mean, n) in sources.items()
    }
    return {
        "step": i,
        "loss": loss + 0.03,
        "perplexity": math.exp(loss + 0.03),
        "seconds": 4.2,
        "per_source": per_source,
        "per_slice": {
            name: {"loss_sum": loss * part * 9000, "weight_sum": part * 9000, "correct": 1, "tokens": part * 9000}
            for name, part in SLICES.items()
        },
    }


def _sample(step: int, last: int, prompt: int) -> dict[str, Any]:
    first = (
        "France? What is the capital of Spain? What is the capital of",
        "blue. The sky is blue. The sky is blue. The sky",
    )
    later = (
        "The capital of France is Paris.",
        "Air scatters short waves more than long ones, so blue light reaches us from everywhere.",
    )
    answer = first[prompt] if step == 0 else later[prompt] if step == last else later[prompt][:24]
    return {"step": step, "prompt": PROMPTS[prompt], "answer": answer, "stopped": step > 0, "num_tokens": 7 + prompt}


def _plan(num_steps: int) -> dict[str, Any]:
    edges = [0, 64, 128, 256, 512, 1024, 2048]
    return {
        "documents": 13440, "held_out_documents": 260, "tokens": 2_480_112, "supervised_tokens": 983_207, "packs": 1216, "fill": 0.9957,
        "steps": num_steps, "epochs": 2, "parameters": 135_000_000, "trainable_parameters": 4_880_000,
        "layout": {"name": "packed", "reason": "the model keeps documents apart"},
        "attention": {"name": "tutelage", "reason": "attention per document on this device"},
        "shared_prefixes": "2.8x fewer tokens, 885,754 computed of 2,480,112 trained on",
        "memory_bytes": {"weights": 540_000_000, "gradients": 19_500_000, "optimiser": 39_000_000, "activations": 310_000_000},
        "memory_predicted_bytes": 908_500_000,
        "histograms": {
            "document_tokens": {"edges": edges, "counts": [1020, 5200, 4300, 2100, 700, 120]},
            "supervised_tokens": {"edges": edges, "counts": [6100, 4400, 2000, 800, 130, 10]},
        },
        "shares": [
            {"source": "dolly", "asked": None, "realised": 0.9013, "documents": 12900, "tokens": 2_300_000, "supervised_tokens": 886_150},
            {"source": "replay", "asked": 0.1, "realised": 0.0987, "documents": 540, "tokens": 180_112, "supervised_tokens": 97_057},
        ],
    }  # fmt: skip


def _mask(where: str) -> dict[str, Any]:
    turns = [
        (0, "user", [("<|im_start|>", "header", 0), ("user", "header", 0), ("\n", "header", 0), ("Name", "content", 0), (" a", "content", 0), (" colour", "content", 0), (".", "content", 0), ("<|im_end|>", "stop", 0), ("\n", "header", 0)]),
        (1, "assistant", [("<|im_start|>", "header", 0), ("assistant", "header", 0), ("\n", "header", 0), ("<think>", "reasoning", 0.5), (" easy", "reasoning", 0.5), ("Blue", "content", 1), (".", "content", 1), ("<|im_end|>", "stop", 1), ("\n", "header", 0)]),
    ]  # fmt: skip
    tokens = [[piece, weight, message, role, part] for message, role, pieces in turns for piece, part, weight in pieces]
    return {
        "where": where,
        "source": "dolly",
        "why": "longest",
        "num_tokens": 40,
        "supervised_tokens": 5,
        "tokens": tokens,
    }


_LEDGER = {
    "sources": {
        "dolly": {"taken_as": "alpaca", "files": {"data/dolly.jsonl": "512b1a"}, "rows": 13447, "kept": 13160, "dropped": {"empty message": 3, "too long": 284},
         "tokens": {"rendered": {"tokens": 2_300_000, "supervised": 886_150}, "trained": {"tokens": 4_600_000, "supervised": 1_772_300}}},
        "replay": {"taken_as": "text", "rows": 540, "kept": 540, "dropped": {},
         "tokens": {"rendered": {"tokens": 180_112, "supervised": 97_057}, "trained": {"tokens": 360_224, "supervised": 194_114}}},
    }
}  # fmt: skip

_CHECKS = [
    {"law": "safety", "name": "weights are safetensors", "passed": True, "figures": {}, "detail": ""},
    {"law": "mask", "name": "ids equal the template's", "passed": True, "figures": {"conversations": 64}, "detail": ""},
    {"law": "isolation", "name": "documents of a pack", "passed": True,
     "figures": {"max_logit_change": 0.0, "tolerance": 1e-6}, "detail": "fp32, attention tutelage"},
    {"law": "layout", "name": "first step", "passed": False, "figures": {"relative_difference": 0.02}, "detail": "packed against single"},
    {"law": "replay", "name": "fingerprint at resume", "passed": None, "figures": {"steps": None}, "detail": "not resumed"},
]  # fmt: skip

_CONFIG = """\
model: {{path: HuggingFaceTB/SmolLM2-135M, template: chatml}}
data:
  train:
  - {{path: data/dolly.jsonl, kind: alpaca}}
  - {{path: data/replay.jsonl, kind: text, share: 0.1}}
  max_tokens: 2048
train:
  method: lora
  learning_rate: {learning_rate}
  clip_grad_norm: 1.0
  seed: 0
  lora: {{rank: 16}}
run: {{dir: runs/x}}
"""


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
