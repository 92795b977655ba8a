"""What preparing documents costs: rows per second and memory, the first time and from the cache.

    python -m benchmarks.preparation [--rows 13000] [--rounds 3]
    python -m benchmarks.preparation --data FILE --model FOLDER

Preparation is everything before the first step that needs no model: read, render, tokenise, mask, check, book. Every
measurement is a process of its own, as every run is one; the variants take turns. The time is that of the clock, from the
call to its result, loading the tokenizer included, with no library left to import. Memory is the peak of the process beyond what
it held before the call. Where TRL is installed, the same rows also go through the constructor of its SFTTrainer, with a
model of a few weights and `packing=True`, which renders, tokenises and packs.

Without `--data`, chats are generated whose prompts and answers are as long as those of instruction data (log-normal). The
model that ships lends its tokenizer and, having no template of its own, is given `chatml`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.packing import table
from tutelage.chat.tokenizer import load_tokenizer
from tutelage.config.schema import Config
from tutelage.model.locate import SHIPPED_FOLDER
from tutelage.train.prepare import build_renderer, prepare

MAX_TOKENS = 2048
SENTENCES = (
    "How do people of a river village make bread for the morning market?",
    "Write a short list of important questions and explain why each of them matters.",
    "There were many different answers, because the number of examples in it was very large.",
    "First describe what you would do with 12 apples, then say which one of them was yours.",
)
WORDS = tuple(word for sentence in SENTENCES for word in sentence.split())


def main() -> None:
    """Print the table; with `--measure`, make one measurement and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a file that tutelage reads; for TRL, a JSON Lines file with `messages`")
    parser.add_argument("--model", default=str(SHIPPED_FOLDER), help="a model folder; tokenizer files alone will do")
    parser.add_argument("--template", help="as model.template; without --model it is chatml")
    parser.add_argument("--rows", type=int, default=13_000, help="rows to generate without --data")
    parser.add_argument("--rounds", type=int, default=3)
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
            words.data = str(_generated(Path(folder) / "chats.jsonl", words.rows))
        _print_table(words, Path(folder))


def _generated(path: Path, count: int) -> Path:
    """Write chats with prompts of about 45 and answers of about 90 words in the median."""
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            texts = [
                " ".join(random.choice(WORDS, size=int(np.clip(random.lognormal(np.log(median), 0.9), 3, 800))))
                for median in (45, 90)
            ]
            messages = [
                {"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)
            ]
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
                f"{statistics.median(ratios):.2f}",
                f"{statistics.median(one['bytes'] for one in rounds) / 2**20:,.0f}",
            )
        )
    print(f"{rows:,.0f} rows, {found['first run'][0]['tokens']:,.0f} tokens; median of {words.rounds} rounds\n")
    print(table(("preparation", "rows/s", "seconds (range)", "speed against the first run", "MiB"), lines))


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
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return result, {"seconds": seconds, "bytes": 1024.0 * (peak - before)}  # Linux counts in KiB


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
    tokens = sum(map(len, prepared.documents))
    return {**measured, "rows": prepared.ledger.totals.rows, "tokens": tokens}


def _measure_trl(words: argparse.Namespace) -> dict[str, float]:
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, LlamaConfig
    from trl import SFTConfig, SFTTrainer

    renderer = build_renderer(Config.model_validate({"model": {"path": words.model, "template": words.template}}))
    tokenizer = load_tokenizer(renderer.tokenizer.hf.name_or_path).hf
    if renderer.template is not None:
        tokenizer.chat_template = renderer.template.source
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **shape))
    with tempfile.TemporaryDirectory() as folder:
        rows = load_dataset("json", data_files=words.data, split="train", cache_dir=folder)
        settings = SFTConfig(
            output_dir=folder, max_length=MAX_TOKENS, packing=True, use_cpu=True, bf16=False, report_to="none"
        )
        _, measured = _timed(
            lambda: SFTTrainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer)
        )
    return {**measured, "rows": len(rows)}


if __name__ == "__main__":
    main()
