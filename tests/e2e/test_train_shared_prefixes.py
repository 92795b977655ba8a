"""Runs on rows that share prompts: found in the data, told, the same as separate rows step by step, resumable, on two ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tiny import tiny_folder
from tutelage.cli.edge import guard
from tutelage.cli.main import app
from tutelage.config.load import load_config
from tutelage.files import jsonl
from tutelage.files.rundir import RunDir
from tutelage.generate.local import generate
from tutelage.train.loop import train
from tutelage.train.narrate import Narrator

PLACES = ("village", "harbour", "forest", "castle", "market", "island")
ANSWERS = 4

# Shows the reasoning of the last answer only, so that each turn is trained on a history of its own.
REWRITING_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == 'assistant' and message.reasoning_content and loop.last %}<think>{{ message.reasoning_content }}</think>{% endif %}
{{- message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


class Stopper(Narrator):
    """Sends this process a SIGTERM when a step is done, as a scheduler would."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, metrics: Mapping[str, Any]) -> None:
        if metrics["step"] == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    tiny_folder(folder / "llama")
    tiny_folder(folder / "dropping", "gpt2")
    tiny_folder(folder / "windowed", "mistral")
    tiny_folder(folder / "mamba", "mamba")
    rows = [
        {
            "prompt": f"Please write a short story about the {place}, its keeper and two dogs.",
            "completion": f"Story {n}.",
        }
        for n in range(ANSWERS)
        for place in PLACES
    ]
    write_rows(folder / "answers.jsonl", rows)
    write_rows(folder / "alone.jsonl", [{"prompt": f"{place} and two dogs?", "completion": "No."} for place in PLACES])
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def words(place: Path, run: Path, *more: str, model: str = "llama", data: str = "answers") -> list[str]:
    return [
        f"model.path={place / model}",
        "model.template=chatml",
        f"data.train.0.path={place / data}.jsonl",
        "data.max_tokens=256",
        "train.batch_sequences=16",
        "train.learning_rate=5e-3",
        "train.threads=1",
        "train.precision=fp32",
        "sample.count=0",
        f"run.dir={run}",
        *more,
    ]


def tutelage(*command: str) -> int:
    """Run the command line in this process and return its exit code."""
    return guard(partial(app, list(command)))


def plan_of(run: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((run / "plan.json").read_text())
    return plan


@pytest.mark.parametrize("model", ["llama", "windowed"])
def test_several_answers_to_a_prompt_are_found_told_and_counted(
    place: Path, tmp_path: Path, capsys: Any, model: str
) -> None:
    assert tutelage("train", *words(place, tmp_path / "run", model=model)) == 0
    said = capsys.readouterr().err
    plan = plan_of(tmp_path / "run")
    assert plan["computed_tokens"] < 0.6 * plan["planned_tokens"]
    told = f"{plan['planned_tokens'] / plan['computed_tokens']:.1f}x fewer tokens"
    assert f"shared prefixes: {told}" in " ".join(said.split())
    assert plan["shared_prefixes"].startswith(told)
    lines = jsonl.read(tmp_path / "run" / "metrics.jsonl")
    assert [line["documents"] for line in lines] == [16, 8]
    assert sum(line["tokens"] for line in lines) == plan["planned_tokens"]
    assert sum(line["computed_tokens"] for line in lines) == plan["computed_tokens"]
    assert all(line["fill"] <= 1 for line in lines)
    checks = {check["name"]: check for check in json.loads((tmp_path / "run" / "receipt.json").read_text())["checks"]}
    assert checks["shared prefixes"]["passed"]
    assert checks["tokens from plan to loss"]["passed"]


def test_a_dry_run_names_the_factor(place: Path, tmp_path: Path, capsys: Any) -> None:
    assert tutelage("train", *words(place, tmp_path / "run"), "--dry-run") == 0
    assert "x fewer tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    "setting", ["train.method=lora", "train.gradient_checkpointing=selective", "train.gradient_checkpointing=layers"]
)
def test_a_step_on_trees_is_the_step_on_the_same_documents_in_rows(place: Path, tmp_path: Path, setting: str) -> None:
    """One step an epoch holds all documents either way, so both runs must take the same course."""
    courses = {}
    for name in ("true", "false"):
        more = ["train.batch_sequences=24", "train.epochs=3", f"train.shared_prefixes={name}", setting]
        assert tutelage("train", *words(place, tmp_path / name, *more)) == 0
        courses[name] = jsonl.read(tmp_path / name / "metrics.jsonl")
    assert len(courses["true"]) == 3
    for tree, rows in zip(courses["true"], courses["false"], strict=True):
        for key in ("loss", "grad_norm"):
            assert tree[key] == pytest.approx(rows[key], rel=1e-4)
        for key in ("weight_sum", "tokens", "supervised_tokens", "documents", "correct"):
            assert tree[key] == rows[key]
        assert tree["computed_tokens"] < rows["computed_tokens"] == rows["tokens"]


@pytest.mark.parametrize(
    ("more", "model", "data", "reason"),
    [
        ((), "llama", "alone", "no rows share a prefix worth it"),
        (("train.shared_prefixes=false",), "llama", "answers", "off"),
        (("train.neftune_alpha=5",), "llama", "answers", "NEFTune"),
        (("train.packing=false",), "llama", "answers", "a row each"),
        ((), "dropping", "answers", "dropout"),
        (("train.method=lora", "train.lora.dropout=0.1"), "llama", "answers", "dropout"),
        (("model.attention=sdpa",), "llama", "answers", "in a tree of this model"),
        ((), "mamba", "answers", "trained padded"),
    ],
)
def test_whatever_stands_against_it_is_named_and_rows_are_trained(
    place: Path, tmp_path: Path, more: tuple[str, ...], model: str, data: str, reason: str
) -> None:
    run = tmp_path / "run"
    assert tutelage("train", *words(place, run, "train.max_steps=1", *more, model=model, data=data)) == 0
    plan = plan_of(run)
    assert reason in plan["shared_prefixes"]
    assert plan["computed_tokens"] == plan["planned_tokens"]


def test_the_turns_of_conversations_whose_history_is_rewritten_share_it(place: Path, tmp_path: Path) -> None:
    chats = []
    for place_name in PLACES:
        chats.append({"messages": []})
        for turn in range(4):
            chats[-1]["messages"] += [
                {"role": "user", "content": f"Tell me story number {turn} about the {place_name} by the river."},
                {"role": "assistant", "content": f"Story {turn}.", "reasoning_content": f"Think of {turn}."},
            ]
    write_rows(tmp_path / "chats.jsonl", chats)
    (tmp_path / "rewriting.jinja").write_text(REWRITING_TEMPLATE)
    more = (
        f"model.template={tmp_path / 'rewriting.jinja'}",
        f"data.train.0.path={tmp_path / 'chats.jsonl'}",
        "data.max_tokens=512",
    )
    assert tutelage("train", *words(place, tmp_path / "run", *more)) == 0
    plan = plan_of(tmp_path / "run")
    assert plan["documents"] == 4 * len(PLACES)
    assert plan["computed_tokens"] < 0.6 * plan["planned_tokens"]


def test_copies_of_a_row_count_each(place: Path, tmp_path: Path) -> None:
    row = {"prompt": "Please write a short story about the village, its keeper and two dogs.", "completion": "Story."}
    write_rows(tmp_path / "copies.jsonl", [row] * 8)
    assert (
        tutelage(
            "train",
            *words(
                place, tmp_path / "run", "train.batch_sequences=32", f"data.train.0.path={tmp_path / 'copies.jsonl'}"
            ),
        )
        == 0
    )
    plan, (line,) = plan_of(tmp_path / "run"), jsonl.read(tmp_path / "run" / "metrics.jsonl")
    assert (line["documents"], line["supervised_tokens"]) == (8, plan["supervised_tokens"])
    assert plan["computed_tokens"] == plan["planned_tokens"] // 8 + 7


def outcome(run: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Return the bytes of the final weights, and every step's figures without the clock."""
    weights = {name: tensor.numpy().tobytes() for name, tensor in load_file(run / "final/model.safetensors").items()}
    lines = jsonl.read(run / "metrics.jsonl")
    return weights, [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_run_on_trees_that_was_cut_ends_as_if_it_had_not_been(place: Path, tmp_path: Path) -> None:
    def go(name: str, narrator: Narrator | None = None, *, resume: bool = False) -> str:
        more = ["train.batch_tokens=256", "train.epochs=2", "train.shared_prefixes=true", "data.max_tokens=256"]
        resolved = load_config(None, [w for w in words(place, tmp_path / name, *more) if "batch_sequences" not in w])
        with RunDir.open(tmp_path / name, lock=True) if resume else RunDir.create(tmp_path / name) as run:
            return train(resolved, run, generate=generate, narrator=narrator, resume=resume).status

    assert go("straight") == "finished"
    assert plan_of(tmp_path / "straight")["computed_tokens"] < plan_of(tmp_path / "straight")["planned_tokens"]
    assert go("cut", Stopper(2)) == "stopped"
    assert go("cut", resume=True) == "finished"
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "straight")


@pytest.mark.parametrize("parallel", ["replicate", "shard"])
def test_two_ranks_train_on_trees_as_one_process_does(place: Path, tmp_path: Path, parallel: str) -> None:
    more = ["train.micro_tokens=64", "data.max_tokens=64"]
    assert tutelage("train", *words(place, tmp_path / "one", *more)) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tutelage"]
    ended = subprocess.run(
        [*command, "train", *words(place, tmp_path / "two", *more, f"train.parallel={parallel}")],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    one, two = (jsonl.read(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 2
    for alone, together in zip(one, two, strict=True):
        assert alone["packs"] > 1 and alone["computed_tokens"] < alone["tokens"]
        for key in ("loss", "grad_norm"):
            assert together[key] == pytest.approx(alone[key], rel=1e-4)
        for key in ("weight_sum", "tokens", "computed_tokens", "supervised_tokens", "documents"):
            assert together[key] == alone[key]
