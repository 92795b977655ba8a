"""What preparing documents costs: rows per second and memory, the first time and from the cache.

    python -m benchmarks.preparation [--like t0|sgd] [--rows N] [--rounds 2]
    python -m benchmarks.preparation --data FILE --model FOLDER

Preparation is everything before the first step that needs no model: read, render, tokenise, mask, check, book. Every
measurement is a process of its own, as every run is one; the variants take turns. The time is that of the clock, from the
call to its result, loading the tokenizer included, with no library left to import. Memory is the peak of the process, and of the largest of its workers,
beyond what it held before the call. Where TRL is installed, the same rows also go through the constructor of its SFTTrainer, with a
model of a few weights and `packing=True`, which renders, tokenises and packs.

Without `--data`, chats are generated in the shape of two data sets: `t0` has one long prompt and one short answer a row,
`sgd` dialogues of some twenty short messages. TRL renders `chatml`, in which `{% generation %}` marks the
answers, and makes the same masks (`assistant_only_loss`), with as many processes as there are cores. The
model that ships lends its tokenizer and, having no template of its own, is given `chatml`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.packing import table
from tutelage.chat.documents import lengths_of
from tutelage.chat.tokenizer import load_tokenizer
from tutelage.config.schema import Config
from tutelage.model.locate import SHIPPED_FOLDER
from tutelage.train.prepare import build_renderer, prepare

MAX_TOKENS = 2048
# `chatml` for plain chats, with the mark by which transformers knows an answer.
CHATML_WITH_ANSWERS_MARKED = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' %}{% generation %}{{- message.content + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{- message.content + '<|im_end|>' }}{%- endif %}{{- '\\n' }}{%- endfor %}"
)
SENTENCES = (
    "How do people of a river village make bread for the morning market?",
    "Write a short list of important questions and explain why each of them matters.",
    "There were many different answers, because the number of examples in it was very large.",
    "First describe what you would do with 12 apples, then say which one of them was yours.",
)


@dataclass(frozen=True)
class Shape:
    """What rows of a data set look like: how many, their exchanges, and the words of a prompt and of an answer."""

    rows: int
    exchanges: float
    median_words: tuple[float, float]
    spread: float


SHAPES = {"t0": Shape(55_000, 1, (110, 8), 0.9), "sgd": Shape(12_000, 10, (9, 10), 0.5)}
WORDS = tuple(word for sentence in SENTENCES for word in sentence.split())


def main() -> None:
    """Print the table; with `--measure`, make one measurement and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a file that tutelage reads; for TRL, a JSON Lines file with `messages`")
    parser.add_argument("--model", default=str(SHIPPED_FOLDER), help="a model folder; tokenizer files alone will do")
    parser.add_argument("--template", help="as model.template; without --model it is chatml")
    parser.add_argument("--like", choices=tuple(SHAPES), default="t0", help="the shape of what is generated")
    parser.add_argument("--rows", type=int, help="rows to generate: all that the data set of this shape has")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", choices=("anew", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.template is None and words.model == str(SHIPPED_FOLDER):
        words.template = "chatml"
    if words.measure:
        print(json.dumps(_measure_trl(words) if words.measure == "trl" else _measure_own(words)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if words.data is None:
            words.data = str(_generated(Path(folder) / "chats.jsonl", words.like, words.rows))
        _print_table(words, Path(folder))


def _generated(path: Path, like: str, count: int | None) -> Path:
    """Write chats of a shape."""
    shape, random = SHAPES[like], np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count or shape.rows):
            messages = []
            for _ in range(max(1, random.poisson(shape.exchanges))):
                for role, median in zip(("user", "assistant"), shape.median_words, strict=True):
                    words = int(np.clip(random.lognormal(np.log(median), shape.spread), 1, 800))
                    messages.append({"role": role, "content": " ".join(random.choice(WORDS, size=words))})
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def _print_table(words: argparse.Namespace, folder: Path) -> None:
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(words.rounds):
        cache = str(folder / f"cache-{number}")
        found.setdefault("first run", []).append(_measured(words, "anew", cache))
        found.setdefault("from the cache", []).append(_measured(words, "anew", cache))
        if importlib.util.find_spec("trl"):
            found.setdefault("TRL", []).append(_measured(words, "trl", cache))
    rows = found["first run"][0]["rows"]
    lines = []
    for name, rounds in found.items():
        seconds = [one["seconds"] for one in rounds]
        ratios = [first["seconds"] / own for first, own in zip(found["first run"], seconds, strict=True)]
        lines.append(
            (
                name,
                f"{rows / statistics.median(seconds):,.0f}",
                f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})",
                f"{statistics.median(one['processor_seconds'] for one in rounds):.2f}",
                f"{statistics.median(ratios):.2f}",
                f"{statistics.median(one['bytes'] for one in rounds) / 2**20:,.0f}",
            )
        )
    print(f"{rows:,.0f} rows, {found['first run'][0]['tokens']:,.0f} tokens; median of {words.rounds} rounds\n")
    print(
        table(
            ("preparation", "rows/s", "seconds (range)", "processor seconds", "speed against the first run", "MiB"),
            lines,
        )
    )


def _measured(words: argparse.Namespace, what: str, cache: str) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.preparation", "--measure", what, "--cache", cache]
    command += ["--data", words.data, "--model", words.model]
    command += ["--template", words.template] if words.template else []
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return measured


def _timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return the result of `work`, and its seconds and peak memory (bytes) beyond what the process held before."""
    before, worked_before = _peak_bytes(), _processor_seconds()
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    worked = _processor_seconds() - worked_before
    return result, {"seconds": seconds, "processor_seconds": worked, "bytes": _peak_bytes() - before}


def _processor_seconds() -> float:
    """Return what this process, and those that it has ended, have computed."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak_bytes() -> float:
    """Return the peak of this process, and of the largest of those that it has ended."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return 1024.0 * sum(resource.getrusage(one).ru_maxrss for one in who)  # Linux counts in KiB


def _measure_own(words: argparse.Namespace) -> dict[str, float]:
    config = Config.model_validate(
        {
            "model": {"path": words.model, "template": words.template},
            "data": {
                "train": [{"path": words.data}],
                "max_tokens": MAX_TOKENS,
                "too_long": "drop",
                "max_bad_fraction": 1.0,
                "cache": words.cache,
            },
        }
    )
    build_renderer(config)  # imports what loads tokenizers; the one that is timed is loaded again
    prepared, measured = _timed(lambda: prepare(config))
    tokens = int(lengths_of(prepared.documents).sum())
    return {**measured, "rows": prepared.ledger.totals.rows, "tokens": tokens}


def _measure_trl(words: argparse.Namespace) -> dict[str, float]:
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, LlamaConfig
    from trl import SFTConfig, SFTTrainer

    renderer = build_renderer(Config.model_validate({"model": {"path": words.model, "template": words.template}}))
    tokenizer = load_tokenizer(renderer.tokenizer.hf.name_or_path).hf
    marks_answers = words.template == "chatml"
    if marks_answers:
        tokenizer.chat_template = CHATML_WITH_ANSWERS_MARKED
    elif renderer.template is not None:
        tokenizer.chat_template = renderer.template.source
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **shape))
    with tempfile.TemporaryDirectory() as folder:
        rows = load_dataset("json", data_files=words.data, split="train", cache_dir=folder)
        settings = SFTConfig(
            output_dir=folder,
            max_length=MAX_TOKENS,
            packing=True,
            assistant_only_loss=marks_answers,
            dataset_num_proc=os.cpu_count(),
            use_cpu=True,
            bf16=False,
            report_to="none",
        )
        _, measured = _timed(
            lambda: SFTTrainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer)
        )
    return {**measured, "rows": len(rows)}


if __name__ == "__main__":
    main()
