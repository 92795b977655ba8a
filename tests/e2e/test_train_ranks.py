"""Runs whose weights are spread over two processes: as one process has them, and none the worse for one that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tiny import tiny_folder, tiny_model
from tutelage.cli.edge import guard
from tutelage.cli.main import app
from tutelage.config.schema import TrainConfig
from tutelage.files import jsonl
from tutelage.files.manifest import verify_manifest
from tutelage.train.checkpoint import load_checkpoint
from tutelage.train.optim import build_optimiser

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tutelage"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
STEPS = 10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model and conversations of unlike length."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny_folder(folder / "model", "llama_tied")
    rows = [
        {
            "prompt": f"Who is number {i}?" + " And who else?" * (i % 4),
            "completion": f" The baker of {i}." * (1 + i % 3),
        }
        for i in range(40)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def torchrun(place: Path, run: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run with two processes."""
    command = [*TORCHRUN, *words(place, run, *more)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


def words(place: Path, run: str, *more: str) -> list[str]:
    """Return the words of a short run; a stop token of its own gives adapters rows to train."""
    return [
        "train",
        f"model.path={place / 'model'}",
        "model.template=chatml",
        f"data.train.0.path={place / 'rows.jsonl'}",
        "data.held_out_fraction=0.1",
        "data.max_tokens=128",
        "data.cache=off",
        "train.batch_tokens=384",
        "train.learning_rate=1e-3",
        f"train.max_steps={STEPS}",
        "train.evaluate_every_steps=5",
        "train.neftune_alpha=5",
        "train.precision=fp32",
        "train.threads=1",
        "sample.count=2",
        "sample.max_new_tokens=6",
        f"run.dir={place / run}",
        *more,
    ]


def alone(place: Path, run: str, *more: str) -> None:
    """Run in this process."""
    assert guard(partial(app, words(place, run, *more))) == 0


def compare(one: Path, two: Path, *, rel: float) -> None:
    """Compare what two runs left: the figures of every step and evaluation, the answers, and the weights."""
    for name, keys in (("metrics", ("loss", "grad_norm")), ("evals", ("loss",))):
        lines = [jsonl.read(run / f"{name}.jsonl") for run in (one, two)]
        assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
        for first, second in zip(*lines, strict=True):
            for key in keys:
                assert second[key] == pytest.approx(first[key], rel=rel), (name, first["step"], key)
            for key in first.keys() & {"weight_sum", "tokens", "supervised_tokens", "documents", "packs"}:
                assert second[key] == first[key]
    answers = [[line["answer"] for line in jsonl.read(run / "samples.jsonl")] for run in (one, two)]
    assert answers[0] == answers[1]
    weights = [load_file(next((run / "final").glob("*.safetensors"))) for run in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for key, expected in weights[0].items():
        torch.testing.assert_close(weights[1][key], expected, rtol=0, atol=1e-4)
    checks = json.loads((two / "receipt.json").read_text())["checks"]
    assert {check["law"] for check in checks} >= {"isolation", "layout", "conservation"}
    assert all(check["passed"] for check in checks)


BF16 = pytest.param(["train.precision=bf16", "train.gradient_checkpointing=true"], marks=pytest.mark.slow)


@pytest.mark.parametrize("more", [["train.method=lora"], BF16])
def test_two_processes_that_share_the_weights_leave_what_one_leaves(place: Path, more: list[str]) -> None:
    name = more[0].partition("=")[2]
    alone(place, f"{name}-one", *more)
    ended = torchrun(place, f"{name}-two", "train.parallel=shard", *more)
    assert ended.returncode == 0, ended.stderr[-3000:]
    compare(place / f"{name}-one", place / f"{name}-two", rel=1e-6 if name == "lora" else 1e-4)
    kept: Any = json.loads((place / f"{name}-two" / "plan.json").read_text())["parallel"]
    assert kept == {"name": "shard", "reason": "asked for by train.parallel"}
    config = place / f"{name}-two" / "final" / "config.json"
    assert name == "lora" or json.loads(config.read_text())["architectures"] == ["LlamaForCausalLM"]


def test_a_killed_process_leaves_whole_checkpoints_and_one_process_goes_on(place: Path) -> None:
    alone(place, "whole")
    more = ["train.parallel=shard", "train.checkpoint_every_steps=1"]
    run = place / "killed"
    launched = subprocess.Popen(
        [*TORCHRUN, *words(place, "killed", *more)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    until = time.monotonic() + 120
    while not (run / "checkpoints" / "step-000004").is_dir():
        assert launched.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    workers = [int(pid) for pid in Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split()]
    os.kill(workers[-1], signal.SIGKILL)
    assert launched.wait(timeout=120) != 0
    assert not (run / "final").exists()
    folders = sorted((run / "checkpoints").glob("step-*"))
    assert folders and all(verify_manifest(folder) == [] for folder in folders)
    assert len(list(folders[-1].glob("weights-*-of-00002.safetensors"))) == 2
    alone(place, "killed", "train.checkpoint_every_steps=1", "--resume")
    compare(place / "whole", run, rel=1e-6)


def test_two_processes_that_compute_every_pass_together_leave_what_one_leaves(place: Path) -> None:
    texts = [{"text": f"The baker of {i} sells bread. " * (1 + i % 3)} for i in range(30)]
    (place / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    # Text has no chat template, and so brings no new tokens, with which embeddings in parts could not grow.
    more = [f"data.train.0.path={place / 'texts.jsonl'}", "model.template=null", "train.checkpoint_every_steps=5"]
    alone(place, "undivided", *more)
    ended = torchrun(place, "tensor", "train.parallel=tensor", *more)
    assert ended.returncode == 0, ended.stderr[-3000:]
    compare(place / "undivided", place / "tensor", rel=1e-6)
    # The parts of its checkpoint, of rows and of columns, are read as one.
    tensors = []
    for run in ("undivided", "tensor"):
        model = tiny_model("llama_tied")
        optimiser = build_optimiser(model, TrainConfig())
        assert load_checkpoint(place / run / "checkpoints" / "step-000005", model, optimiser).step == 5
        tensors.append([*model.parameters(), *(optimiser.state[p]["exp_avg"] for p in model.parameters())])
    for first, second in zip(*tensors, strict=True):
        torch.testing.assert_close(second, first, rtol=0, atol=1e-4)
    refused = torchrun(place, "adapters", "train.parallel=tensor", "train.method=lora")
    assert refused.returncode != 0 and "train.parallel=shard" in refused.stderr
